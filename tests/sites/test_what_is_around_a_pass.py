"""What surrounds a forward pass and must not be mistaken for it, nor it for that: teachers, hypernetworks, modes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import softgate as sg
from reference import distance
from site_networks import OwnGate

RULE = sg.Surrogate(gate=sg.gates.Sigmoid(0.4))


class Plain(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, seed=0, inplace=False):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.relu, self.last = nn.Linear(4, 6), nn.ReLU(inplace), nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        return self.last(self.relu(self.first(x)))


def vectors():
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


def slopes(net):
    x = vectors()
    return torch.autograd.grad(net(x).sin().sum(), [x, *net.parameters()])


def untraceable(x):
    """A branch on values, at which no symbolic trace gets past."""
    return float(x.detach().sum()) > 1e9


@pytest.mark.parametrize("rule", [None, sg.Surrogate(gate=sg.gates.Sigmoid(2.0))])
def test_a_teacher_with_a_rule_of_its_own_keeps_it_within_a_student(rule):
    class Student(Plain):
        def __init__(self):
            super().__init__()
            self.teacher = [Plain(seed=1)]

        def forward(self, x):
            return super().forward(x) + self.teacher[0](x)

    student = Student()
    teacher, alone = copy.deepcopy(student.teacher[0]), Plain()
    sg.attach(student.teacher[0], rule)
    sg.attach(student, RULE)
    sg.attach(teacher, rule)
    sg.attach(alone, RULE)
    x = vectors()
    found = torch.autograd.grad(student(x).sum(), x)[0]
    want = torch.autograd.grad(alone(x).sum() + teacher(x).sum(), x)[0]
    assert distance(found, want) < 1e-14


def test_depth_counts_sites_that_only_one_mode_has():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))

        def forward(self, x):
            x = self.parts[0](x)
            x = self.parts[1](x) if self.training else x
            return self.parts[2](x)

    def choice(net):
        with sg.attach(net, sg.Surrogate(sites=sg.Select(depth=(0.6, 1.0)))) as sites:
            net.train()(torch.randn(2, 4, requires_grad=True))
            return {name for name in ("parts.0.1", "parts.1.1", "parts.2.1") if sites._active.governs(name, "relu")}

    assert choice(Deep().eval()) == choice(Deep().train()) == {"parts.2.1"}


def test_depth_of_a_site_that_no_pass_has_shown_is_refused():
    class Branching(Plain):
        def forward(self, x):
            h = self.first(x)
            h = F.relu(h) if untraceable(x) or self.training else h
            return self.last(self.relu(h))

    net = Branching().eval()
    sites = sg.attach(net, None)
    net(vectors())
    sites.use(sg.Surrogate(sites=sg.Select(depth=(0.0, 0.5))))
    with pytest.raises(sg.SoftgateError, match="was not called in the pass that showed the order"):
        net.train()(vectors())


def test_attach_draws_no_random_numbers():
    class Noisy(Plain):
        def forward(self, x):
            return super().forward(x + torch.randn(4))

    net = Noisy()
    before = torch.get_rng_state()
    sg.attach(net, RULE)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_input_that_an_untraceable_model_writes_to_later_is_kept_in_a_copy():
    class Writing(Plain):
        def forward(self, x, add=torch.Tensor.add_):
            z = self.first(x)
            if untraceable(z):
                return z
            y = F.relu(z)
            if self.training:
                add(z, 1)
            return self.last(y) + z.sum()

    class Apart(Writing):
        def forward(self, x):
            return super().forward(x, add=lambda z, one: None)  # z.sum() moves by a number: the gradients do not

    net, apart = Writing().train(), Apart().train()
    sites = [sg.attach(each, RULE) for each in (net, apart)]
    for _ in range(2):
        x, same = vectors(), vectors()
        found = torch.autograd.grad(net(x).sum(), x)[0]
        assert torch.equal(found, torch.autograd.grad(apart(same).sum(), same)[0])
    assert sites[0]._gating.overwritten == {"(model).relu"}
    assert sites[1]._gating.overwritten == set()


def test_a_hypernetwork_that_makes_the_weights_is_none_of_the_models_activations():
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.maker = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 24)).double()
            self.net = Plain()

        def forward(self, x):
            weight = self.maker(torch.ones(1, 2, dtype=torch.float64)).view(6, 4)
            return torch.func.functional_call(self.net, {"first.weight": weight}, (x,))

    whole = Hyper()
    sg.attach(whole.net, RULE)
    x = vectors()
    out = whole(x)
    held = Plain()
    with torch.no_grad():
        held.first.weight.copy_(whole.maker(torch.ones(1, 2, dtype=torch.float64)).view(6, 4))
    sg.attach(held, RULE)
    same = vectors()
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.autograd.grad(held(same).sum(), same)[0])


@pytest.mark.parametrize(
    "way",
    [
        lambda y: y.data.__setitem__(..., 0.5),
        lambda y: y.detach().numpy().__setitem__(..., 0.5),
        lambda y: y[1:].data.__setitem__(..., 0.5),
        lambda y: torch.from_dlpack(y.detach()).__setitem__(..., 0.5),
    ],
)
def test_an_output_whose_memory_somebody_got_hold_of_is_not_recomputed(way):
    class Escaping(Plain):
        def forward(self, x):
            y = self.relu(self.first(x))
            way(y)
            return self.last(y)

    shared, kept = Escaping(), Escaping()
    sg.attach(shared, RULE)
    sg.attach(kept, RULE, share=False)
    assert all(map(torch.equal, slopes(shared), slopes(kept)))


def test_a_relu_where_gradients_are_off_is_no_call_of_a_site():
    class Mixed(Plain):
        def forward(self, x):
            with torch.no_grad():
                kept = F.relu(self.first(x))
            return self.last(self.relu(OwnGate.apply(self.first(x)) - kept))

    net = Mixed()
    with sg.attach(net, RULE) as sites, pytest.warns(sg.SoftgateWarning, match=r"autograd\.Function in OwnGate"):
        net(vectors())
    assert {site.name: site.calls for site in sites.table()}["relu"] == 1
    assert sum(site.calls for site in sites.table()) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recurrent_relu_is_refused_by_name(reentrant):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.rnn = nn.Linear(4, 6), nn.ReLU(), nn.RNN(6, 6, nonlinearity="relu")

        def forward(self, x):
            return checkpoint(self.rnn, self.relu(self.first(x)), use_reentrant=reentrant)[0]

    net = Recurrent().double()
    with pytest.raises(sg.UnreachableSites, match=r"rnn \(rnn_relu\)"), sg.attach(net, RULE):
        net(vectors()).sum().backward()


@pytest.mark.parametrize("schedule", [{"mix": {"start": 0.0, "end": 1.0, "until": 3}}, {"on": {"begin": 5}}])
def test_a_rule_that_is_hard_at_first_is_checked_over_its_whole_schedule(schedule):
    rule = sg.Surrogate.from_dict({"schedule": schedule})
    assert not rule.at().softens_relu

    class Late(Plain):
        def forward(self, x):
            return F.gelu(super().forward(x)) if not untraceable(x) else x

    with pytest.raises(sg.UnreachableSites, match="gelu"):
        sg.attach(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.GELU()), rule)
    net = Late()
    with sg.attach(net, rule), pytest.raises(sg.UnreachableSites, match="gelu"):
        net(vectors())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("read_twice", [False, True])
def test_an_inplace_flag_that_is_flipped_after_attach_does_what_it_does_in_the_bare_network(inplace, read_twice):
    class Net(Plain):
        def forward(self, x):
            z = self.first(x)
            y = self.relu(z)
            return self.last(y + z if read_twice else y)

    bare, net = Net(inplace=not inplace), Net(inplace=inplace)
    sg.attach(net, RULE)
    net(vectors())
    net.relu.inplace = not inplace
    assert torch.equal(net(vectors()), bare(vectors()))


class Guided(Plain):
    """A teacher without gradients, whose activation no rule covers, beside the network."""

    def __init__(self, traceable, checkpointed=None):
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.PReLU()).double()
        self.part = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()
        self.traceable, self.checkpointed = traceable, checkpointed

    def forward(self, x):
        if self.checkpointed is not None:
            x = checkpoint(self.part, x, use_reentrant=self.checkpointed)
        if not self.traceable and untraceable(x):
            return x
        with torch.no_grad():
            wanted = self.teacher(x)
        return super().forward(x) - wanted


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("checkpointed", [None, False, True])
def test_a_teacher_without_gradients_is_no_reason_to_refuse(traceable, checkpointed):
    net = Guided(traceable, checkpointed)
    with sg.attach(net, RULE) as sites:
        net(vectors()).sum().backward()
    assert all(site.covered for site in sites.table())


def test_a_choice_by_depth_allows_a_branch_that_never_has_a_gradient():
    class Beside(Plain):
        def forward(self, x):
            with torch.no_grad():
                beside = F.relu(self.first(x))
            return self.last(self.relu(self.first(x)) + beside)

    net = Beside()
    with sg.attach(net, sg.Surrogate(sites=sg.Select(depth=(0.0, 0.5)))) as sites:
        expected = net(vectors())
        with torch.no_grad():
            assert torch.equal(net(vectors()), expected)
    assert [site.name for site in sites.table() if site.calls] == ["relu", "(model).relu"]


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_without_activations_is_fine_where_others_have_them(traceable, training):
    """An auxiliary part that only training runs, or an early exit."""

    class Sometimes(Plain):
        def forward(self, x):
            if not traceable and untraceable(x):
                return x
            return super().forward(x) if self.training else self.last(self.first(x))

    net = Sometimes().train(training or not traceable)
    with sg.attach(net, RULE):
        soft = slopes(net.train())
        linear = slopes(net.eval())
    assert all(torch.equal(one, other) for one, other in zip(linear, slopes(net), strict=True))
    assert not torch.equal(soft[0], slopes(net.train())[0])
