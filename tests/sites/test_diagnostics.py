"""Diagnoses against a slow reference, what they leave untouched, and what dead and revived mean."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import reference
import softgate as sg
from softgate import SoftgateError

RULE = sg.Surrogate(mix=0.8)


class Net(nn.Module):
    """BatchNorm, dropout, in-place and functional ReLUs, a ReLU6, a pooling; every pre-activation can be kept."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(4, 5, 3).double()
        self.norm, self.drop = nn.BatchNorm2d(4).double(), nn.Dropout(0.3)
        self.relu, self.six, self.pool = nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.MaxPool2d(2)
        self.head = nn.Linear(5, 6).double()
        self.never = nn.ReLU()
        nn.init.constant_(self.b.bias, 0.1)

    def forward(self, x):
        x = self.pool(self.relu(self.norm(self.a(x))))
        x = self.six(self.b(self.drop(x)) * 8)
        return self.head(F.relu(x.mean((2, 3)) - 0.5))


NAMES = ["relu", "pool", "six", "(model).relu"]


def images(count=6, seed=0):
    return torch.randn(count, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gate(rule, z):
    return rule.mix * reference.sigmoid(z) + (1 - rule.mix) * reference.hard(z)


def by_hand(net, x, labels, rule):
    """Gradients at the four pre-activations, and the pre-activations, from the formulas."""
    kept = []

    def keep(z):
        z.retain_grad()
        kept.append(z)
        return z

    def relu(z):
        return F.relu(z) if rule is None else reference.relu(z, lambda v: gate(rule, v))

    def pool(z):
        hard = F.max_pool2d(z, 2)
        return hard if rule is None else torch.lerp(hard, reference.max_pool2d(z, 2), rule.mix)

    with torch.random.fork_rng():
        h = pool(keep(relu(keep(net.norm(net.a(x.clone().requires_grad_()))))))
        z = keep(net.b(net.drop(h)) * 8)
        h = relu(z) - relu(z - 6)
        loss = F.cross_entropy(net.head(relu(keep(h.mean((2, 3)) - 0.5))), labels)
    return grad(loss, kept), kept


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("attached", [True, False])
def test_a_diagnosis_is_that_of_two_passes_written_out(train, attached):
    net, x, labels = Net().train(train), images(), torch.tensor([0, 1, 2, 3, 4, 5])
    twin = copy.deepcopy(net)
    sites = sg.attach(net, sg.Surrogate()) if attached else None
    found = sg.diagnose(net, x, labels, RULE)
    soft, zs = by_hand(twin, x, labels, RULE)
    hard, _ = by_hand(twin, x, labels, None)
    assert [site.name for site in found] == NAMES
    assert {type(site.kind) for site in found} == {str}  # plain data: checkpoints hold it
    for site, s, h in zip(found, soft, hard, strict=True):
        assert site.cosine == pytest.approx(float((s * h).sum() / s.norm() / h.norm()), rel=1e-9), site.name
        assert site.norm_ratio == pytest.approx(float(s.norm() / h.norm()), rel=1e-9), site.name
        assert site.cosine < 0.9999
    means = [gate(RULE, zs[0]), None, gate(RULE, zs[2]) - gate(RULE, zs[2] - 6), gate(RULE, zs[3])]
    for site, z, mean in zip(found, zs, means, strict=True):
        if mean is None:
            assert math.isnan(site.gate_mean)
            assert (site.units, site.dead_units) == (0, ())
            continue
        assert site.gate_mean == pytest.approx(float(mean.detach().mean()), rel=1e-12)
        dead = [c for c in range(z.shape[1]) if not (z[:, c] > 0).any()]
        assert (site.units, list(site.dead_units)) == (z.shape[1], dead)
        assert site.dead == len(dead) / z.shape[1]
    assert sites is None or sites.rule == sg.Surrogate()


@pytest.mark.parametrize("rule", [RULE, sg.Surrogate(scale="channel"), sg.Surrogate(gain="matched")], ids=str)
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_a_look_changes_nothing(rule, attached, copied, monkeypatch):
    if not copied:  # as where parts are sharded
        monkeypatch.setattr("softgate.sites.diagnostics.sharing_copy", lambda *args, **kwargs: None)
    net = Net().train()
    net.norm.eval()
    sites = sg.attach(net, sg.Surrogate(scale="channel")) if attached else None
    net(images(seed=2)).sum().backward()
    grads, state = [p.grad.clone() for p in net.parameters() if p.grad is not None], copy.deepcopy(net.state_dict())
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    scales = copy.deepcopy(sites.scales.state_dict()) if sites else None
    calls = [(site.name, site.calls) for site in sites.table()] if sites else None
    x = images()
    before = x.clone()
    sg.diagnose(net, x, lambda out: out.square().sum(), rule)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, before)
    assert x.grad is None
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(
        torch.equal(p, q) for p, q in zip([p.grad for p in net.parameters() if p.grad is not None], grads, strict=True)
    )
    if sites is None:
        assert "forward" not in vars(net)
        return
    assert not sites.observers
    assert [(site.name, site.calls) for site in sites.table()] == calls
    for name, kept in scales.items():
        assert torch.equal(sites.scales[name].mean, kept["mean"])
        assert torch.equal(sites.scales[name].variance, kept["variance"])


def test_the_true_gradient_has_cosine_and_ratio_one_and_spared_sites_the_hard_gates_mean():
    net, x = Net().eval(), images()
    hard = sg.diagnose(net, x, lambda out: out.sum(), sg.Surrogate(sg.gates.Hard(), sg.pools.Hard()))
    for site in hard:
        assert site.cosine == pytest.approx(1, abs=1e-12)
        assert site.norm_ratio == pytest.approx(1, abs=1e-12)
    spared = sg.diagnose(net, x, lambda out: out.sum(), sg.Surrogate(sites=sg.Select(names=("pool",))))
    assert spared[0].gate_mean == hard[0].gate_mean
    assert spared[2].cosine == pytest.approx(1, abs=1e-12)
    assert spared[0].cosine < 0.9999


def test_a_dead_layer_has_nan_where_nothing_is_divided_by_nothing_and_can_be_revived():
    net, x = Net().eval(), images()
    with torch.no_grad():
        net.b.bias.copy_(torch.tensor([-1e3, 5, -1e3, 5, 5]))
    some = sg.diagnose(net, x, lambda out: out.sum(), RULE)
    assert some[2].dead_units == (0, 2)
    assert some[2].dead == 0.4
    with torch.no_grad():
        net.b.bias[0], net.b.bias[1] = 5, -1e3
    after = sg.diagnose(net, x, lambda out: out.sum(), RULE)
    assert after[2].dead_units == (1, 2)
    assert sg.revived(some, after)["six"] == 1
    assert set(sg.revived(some, after)) == {"relu", "six", "(model).relu"}
    with torch.no_grad():
        net.head.weight.zero_()
    none = sg.diagnose(net, x, lambda out: out.sum(), RULE)
    assert all(math.isnan(site.cosine) and math.isnan(site.norm_ratio) for site in none)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, 1]), r"target of shape \(2,\) and logits of shape \(6, 6\)"),
        (3, r"target=3: classes \[B\] or a function"),
        (lambda out: out, "the loss must be one number"),
        (lambda out: torch.zeros(()), "depends on x"),
    ],
)
def test_a_wrong_target_is_one_sentence_and_the_model_is_left_as_it_was(target, message):
    net = Net()
    with pytest.raises(SoftgateError, match=message):
        sg.diagnose(net, images(), target, RULE)
    assert "forward" not in vars(net)


def test_a_rule_without_statistics_is_refused_by_name_in_eval_mode():
    with pytest.raises(SoftgateError, match="no statistics of relu yet"):
        sg.diagnose(Net().eval(), images(), lambda out: out.sum(), sg.Surrogate(scale="channel"))
