"""Mixed precision, memory orders, compilation, CUDA graphs, and a step that never waits for the device."""

import pytest
import torch
import torchvision
from memory import measure
from torch import nn
from torch.nn import functional as F

import reference
import softgate as sg
from device_networks import images, network, passed

RULE = sg.Surrogate()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["net", "resnet18"])
def test_under_autocast_values_are_the_bare_networks_and_gradients_finite(name, dtype, device):
    model, x = network(name, device, torch.float32), images(device, dtype=torch.float32)
    with torch.autocast(device.type, dtype):
        bare = passed(model, x)
        with sg.attach(model, RULE):
            found = passed(model, x)
    with sg.attach(model, RULE):
        exact = passed(model, x)
    assert torch.equal(found[0], bare[0])
    for one, other in zip(found, exact, strict=True):
        assert one.isfinite().all()
        assert reference.distance(one, other) < 0.2


def test_a_scaled_float16_step_moves_every_weight(device):
    model, x = network("net", device, torch.float32), images(device, 4, dtype=torch.float32)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler(device.type, init_scale=256.0)
    before = [p.detach().clone() for p in model.parameters()]
    with sg.attach(model.train(), RULE):
        with torch.autocast(device.type, torch.float16):
            loss = F.cross_entropy(model(x), torch.arange(4, device=device))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 256.0, "a gradient was not finite"
    assert not any(torch.equal(one, p) for one, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["net", "resnet18"])
def test_channels_last_changes_gradients_by_rounding_only(name, device):
    model, x = network(name, device), images(device)
    with sg.attach(model, RULE):
        expected = passed(model, x)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    bare = passed(model, x)
    with sg.attach(model, RULE):
        found = passed(model, x)
    assert torch.equal(found[0], bare[0])
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) < 1e-10


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_compiled_without_a_break_gradients_are_the_eager_ones(layout, device):
    torch._dynamo.reset()
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    model = body.eval().to(device, memory_format=layout)
    x = images(device, 4, 16, torch.float32).to(memory_format=layout)
    # The CPU's compiler of C++ takes a minute; its graphs are the same ones.
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    with sg.attach(model, RULE):
        found = passed(torch.compile(model, fullgraph=True, backend=backend), x)
        for one, other in zip(found, passed(model, x), strict=True):
            assert reference.distance(one, other) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_what_is_kept_for_the_backward_pass_is_no_more_than_the_bare_networks(name, device):
    held = {arm: measure(name, arm, 64, 2)[0] for arm in ("vanilla", "softgate")}
    assert 0 < held["softgate"] <= held["vanilla"]


def test_a_compiled_step_with_cuda_graphs_has_the_eager_gradients(cuda):
    torch._dynamo.reset()
    model, x = network("net", cuda, torch.float32), images(cuda, 4, 16, torch.float32)
    with sg.attach(model, RULE):
        compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
        for _ in range(3):  # the first ones warm up and record
            torch.compiler.cudagraph_mark_step_begin()
            found = passed(compiled, x)
        for one, other in zip(found, passed(model, x), strict=True):
            assert reference.distance(one, other) < 1e-4


def test_a_step_can_be_recorded_as_a_cuda_graph_and_replayed_on_other_images(cuda):
    model = network("net", cuda, torch.float32)
    still = images(cuda, 4, 16, torch.float32)

    def step():
        for p in model.parameters():
            p.grad = None
        loss = model(still).square().sum()
        loss.backward()
        return loss

    with sg.attach(model, RULE):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        still.copy_(still.flip(0) * 2 + 1)
        graph.replay()
        found = [loss.detach().clone(), *(p.grad.clone() for p in model.parameters())]
        expected = [step().detach(), *(p.grad for p in model.parameters())]
    for one, other in zip(found, expected, strict=True):
        assert reference.distance(one, other) < 1e-6


@pytest.mark.parametrize("gain", ["raw", "unit_rms", "matched"])
def test_a_step_never_waits_for_the_device(gain, cuda):
    rule = sg.Surrogate(gain=gain)
    model = torchvision.models.resnet18(num_classes=5).to(cuda)
    x, labels = images(cuda, 4, 64, torch.float32), torch.arange(4, device=cuda)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    with sg.attach(model, rule) as sites:
        step()  # what is looked at once, such as the graph of the first pass, may wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
            sites.use(rule)
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_synchronised_batch_norms_of_one_rank_change_nothing(cuda, tmp_path):
    torch.distributed.init_process_group("nccl", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        model, x = network("resnet18", cuda).train(), images(cuda, 4)
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network("resnet18", cuda).train())
        found = []
        for each in (model, synchronised):
            with sg.attach(each, RULE):
                found.append(passed(each, x))
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(*found, strict=True):
        assert reference.distance(one, other) < 1e-8
