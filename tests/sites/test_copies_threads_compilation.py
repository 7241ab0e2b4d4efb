"""Copies, pickles, threads and compiled models: each is gated on its own."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import softgate as sg
from site_networks import (
    NET_SITES,
    RULE,
    SPELLINGS,
    Spelled,
    assert_close,
    assert_equal,
    differ,
    gradients,
    images,
    soft_gradients,
    vectors,
)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle, through_file])
def test_a_copy_of_an_attached_model_is_attached_on_its_own(net, through):
    x = images()
    bare, soft = gradients(net, x), soft_gradients(net, x)
    sites = sg.attach(net, RULE)
    twin = through(net)
    assert_close(gradients(twin, x), soft)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    sites.use(None)
    assert_equal(gradients(net, x), bare)  # its own weights, its own rule
    twin.load_state_dict(net.state_dict())
    assert_close(gradients(twin, x), soft)
    sites.detach()
    assert_close(gradients(twin, x), soft)
    sg.detach(twin)
    assert_equal(gradients(twin, x), bare)
    assert [sorted(module.__dict__) for module in twin.modules()] == [sorted(m.__dict__) for m in net.modules()]
    assert all(module.inplace for module in twin.modules() if isinstance(module, nn.ReLU))


def test_two_threads_on_one_attached_model_both_get_soft_gates(net):
    x = [images(), -images()]
    expected = [soft_gradients(net, one) for one in x]
    start, results = threading.Barrier(2), [[], []]

    def work(mine):
        start.wait()
        for _ in range(20):
            results[mine].append(gradients(net, x[mine]))

    with sg.attach(net, RULE) as sites:
        threads = [threading.Thread(target=work, args=(mine,)) for mine in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [site.name for site in sites.table()] == NET_SITES
    for mine in (0, 1):
        assert len(results[mine]) == 20
        for found in results[mine]:
            assert_close(found, expected[mine])


def test_a_thread_without_the_model_is_not_gated_while_another_is_inside_of_it():
    inside, done, seen = threading.Event(), threading.Event(), []

    class Waiting(Spelled):
        def forward(self, x):
            inside.set()
            done.wait(60)
            return super().forward(x)

    def bystander():
        inside.wait(60)
        z = -torch.ones(3, requires_grad=True)
        seen.append(grad(F.relu(z).sum(), z)[0])
        done.set()

    model = Waiting(SPELLINGS["F.relu(z)"])
    done.set()  # for the trace
    sites = sg.attach(model, RULE)
    inside.clear()
    done.clear()
    thread = threading.Thread(target=bystander)
    thread.start()
    with sites:
        model(vectors())
    thread.join()
    assert torch.equal(seen[0], torch.zeros(3))


@pytest.mark.parametrize("wrap", ["wrapper", "in place"])
def test_a_compiled_attached_model_equals_eager_and_follows_use(net, wrap):
    torch._dynamo.reset()
    x = images()
    bare, soft = gradients(net, x), soft_gradients(net, x)
    with sg.attach(net, RULE) as sites:
        if wrap == "wrapper":
            compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        else:
            net.compile(fullgraph=True, backend="aot_eager")
            compiled = net
        assert_close(gradients(compiled, x), soft)
        sites.use(None)
        assert_close(gradients(compiled, x), bare)
        with sites.use(sg.Surrogate(mix=0.5)):
            half = gradients(compiled, x)
        assert differ(half, bare)
        assert differ(half, soft)
        sites.use(RULE)
        assert_close(gradients(compiled, x), soft)


def test_a_compiled_model_in_training_mode_equals_eager(net):
    torch._dynamo.reset()
    twin, x = copy.deepcopy(net).train(), images()
    net.train()
    expected = soft_gradients(twin, x)
    with sg.attach(net, RULE):
        assert_close(gradients(torch.compile(net, fullgraph=True, backend="aot_eager"), x), expected)
