"""Activation checkpointing changes no gradient, or is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision.models import DenseNet

import reference
import softgate as sg
from mode_networks import (
    OTHER,
    RULE,
    Applied,
    CheckpointedBody,
    Net,
    assert_close,
    gradients,
    images,
    soft_gradients,
    vectors,
)
from random_blocks import FUNCTIONS, INPLACE


class Checkpointed(Net):
    """The stem as a checkpointed module, the rest as the parts of a checkpointed sequence."""

    def __init__(self, how):
        super().__init__()
        self.tail = nn.Sequential(self.a, nn.ReLU(inplace=True), self.b, nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
        self.how = how

    def forward(self, x):
        if self.how is None:
            return self.head(self.tail(self.stem(x)).mean((2, 3)))
        x = checkpoint(self.stem, x, use_reentrant=self.how)
        return self.head(checkpoint_sequential(self.tail, 2, x, use_reentrant=self.how).mean((2, 3)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("rule", [RULE, OTHER], ids=["rule", "other"])
def test_checkpointed_modules_and_sequences_have_the_gradients_of_the_unchecked_ones(reentrant, train, rule):
    plain, model = (Checkpointed(how).double().train(train) for how in (None, reentrant))
    with sg.attach(plain, rule), sg.attach(model, rule):
        assert_close(gradients(model, images()), gradients(plain, images()), within=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_whole_attached_model_can_be_checkpointed(residual, reentrant):
    expected = soft_gradients(residual, images())
    with sg.attach(residual, RULE):
        wrapped = Wrapped(residual, reentrant)
        assert_close(gradients(wrapped, images()), expected)


class Wrapped(nn.Module):
    def __init__(self, net, reentrant):
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


def test_densenets_memory_efficient_mode_changes_no_gradient():
    found = []
    for efficient in (False, True):
        torch.manual_seed(0)
        model = DenseNet(4, (2, 2), 8, num_classes=3, memory_efficient=efficient).double().train()
        with sg.attach(model, RULE) as sites:
            found.append(gradients(model, images(4, 3, 32, 32)))
            assert sites.count() == 2 * 4 + 3
    assert_close(*found, within=0)
    torch.manual_seed(0)
    model = DenseNet(4, (2, 2), 8, num_classes=3).double().train()
    assert_close(found[0], soft_gradients(model, images(4, 3, 32, 32)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("how", ["use", "detach"])
def test_a_checkpointed_model_is_recomputed_under_the_rule_of_its_forward_pass_or_refuses(reentrant, pooling, how):
    model = CheckpointedBody(reentrant, pooling)
    with sg.attach(model, RULE) as sites:
        expected = gradients(model, images())[1]
        x = images().requires_grad_()
        loss = model(x).square().sum()
        if how == "use":
            sites.use(None)
        else:
            sites.detach()
        try:
            loss.backward()
        except sg.SoftgateError:
            return
    assert reference.distance(x.grad, expected) <= 1e-12


class Repeated(nn.Module):
    """One ReLU called twice, the second time in a checkpoint."""

    def __init__(self, reentrant):
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(6, 6).double(), nn.Linear(6, 6).double(), nn.ReLU()
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.relu, self.b(self.relu(self.a(x))), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_call_belongs_to_the_site_it_recomputes(reentrant):
    with sg.attach(Repeated(reentrant), RULE) as sites:
        gradients(sites.model, vectors())
        calls = {site.name: site.calls for site in sites.table()}
    assert calls["relu"] == 1
    assert calls["relu#2"] in (1, 2)


@pytest.mark.parametrize(
    "rule",
    [
        sg.Surrogate(scale="channel"),
        sg.Surrogate(gate=sg.gates.Random()),
        sg.Surrogate(sites=sg.Select(names=["relu"])),
    ],
    ids=["scale", "random", "chosen"],
)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_call_whose_number_matters_is_refused(reentrant, rule):
    with sg.attach(Repeated(reentrant).train(), rule) as sites, pytest.raises(sg.SoftgateError, match="more than once"):
        gradients(sites.model, vectors())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_function_is_refused_where_only_its_forward_pass_shows_it(reentrant):
    def branching(z):
        return checkpoint(F.relu, z, use_reentrant=reentrant) if z.sum() > -1e9 else z

    with sg.attach(Applied(branching), RULE) as sites:
        assert sites.table() == []  # it cannot be traced
        with pytest.raises(sg.UnreachableSites, match="checkpoint a module instead"):
            gradients(sites.model, vectors())


@pytest.mark.parametrize("compiled", [True, False])
def test_a_checkpointed_function_is_refused(compiled):
    torch._dynamo.reset()
    model = Applied(lambda z: checkpoint(F.relu, z, use_reentrant=False))
    with pytest.raises(sg.UnreachableSites, match="checkpoint a module instead"), sg.attach(model, RULE):
        gradients(torch.compile(model, backend="aot_eager") if compiled else model, vectors())


POOLINGS = {
    "max_pool2d": lambda z: F.max_pool2d(z, 2),
    "with indices": lambda z: F.max_pool2d(z, 2, return_indices=True)[0],
    "amax": lambda z: z.amax((2, 3), keepdim=True),
    "max": lambda z: z.max(3, keepdim=True)[0],
}
ACTS = {**FUNCTIONS, **INPLACE, **POOLINGS}


class Counted(nn.Module):
    """Counts its runs before and behind a function under test, with a BatchNorm before it."""

    def __init__(self, act):
        super().__init__()
        self.act, self.conv, self.norm = act, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.register_buffer("before", torch.zeros(()))
        self.register_buffer("behind", torch.zeros(()))

    def forward(self, x):
        z = self.norm(self.conv(x))
        self.before += 1
        y = self.act(z)
        self.behind += 1
        return y


class CheckpointedCounted(nn.Module):
    def __init__(self, act, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.head = nn.Conv2d(3, 3, 1), Counted(act), nn.Linear(3, 2)
        self.reentrant = reentrant

    def forward(self, x):
        return self.head(checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant).mean((2, 3)))


RULES = [RULE, sg.Surrogate(pool=sg.pools.Hard(), mix=0.5), sg.Surrogate(pool=sg.pools.SoftmaxFull(), scale="channel")]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("act", ACTS)
def test_a_checkpoint_runs_as_far_a_second_time_as_in_the_bare_model(act, reentrant):
    """It stops once it has every tensor that was saved: which they are must not change where the last one is."""

    def buffers(rule=None, attached=True):
        model = CheckpointedCounted(ACTS[act], reentrant).double().train()
        if attached:
            sg.attach(model, rule)
        model(images()).sum().backward()
        return {name: buffer for name, buffer in model.named_buffers() if "scale" not in name}

    bare = buffers(attached=False)
    assert float(bare["body.before"]) == 2
    for rule in (None, *RULES):
        found = buffers(rule)
        assert all(torch.equal(found[name], value) for name, value in bare.items()), rule
