"""Looks at a network in several threads, beside each other and beside a training: nobody sees anybody."""

import copy
import functools
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate.explainers.pullback import predict
from softgate.sites.randomness import own_random_numbers
from softgate.sites.sharing_copy import sharing_copy

RULES = (None, sg.Surrogate(), sg.Surrogate(gate=sg.gates.Sigmoid(1.0)), sg.Surrogate(gate=sg.gates.Random()))


class Net(nn.Module):
    """Convolutions, BatchNorm, dropout, a pooling and a functional ReLU."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.relu, self.pool, self.drop = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.3)
        self.hidden, self.head = nn.Linear(72, 16), nn.Linear(16, 5)

    def forward(self, x):
        out = self.pool(self.relu(self.norm(self.conv(x))))
        return self.head(F.relu(self.hidden(self.drop(out.flatten(1)))))


def images(seed=1):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def train(net, steps):
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    for step in range(steps):
        assert all(module.training for module in net.modules())
        optimizer.zero_grad()
        F.cross_entropy(net(images(step)), torch.arange(4)).backward()
        optimizer.step()


def concurrently(*works):
    """Runs functions in threads of their own, all begun at once; raises what one of them raises."""
    start, errors = threading.Barrier(len(works)), []

    def run(work):
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


LOOKS = {
    "pullback": lambda net, rule: sg.pullback(net, images(), [1, 2], rule),
    "ascend": lambda net, rule: sg.ascend(net, images().clamp(-1, 1), 1, rule, steps=2, step_size=0.3, radius=1).image,
    "predict": lambda net, rule: predict(net, images()),
    "record": lambda net, rule: torch.cat(
        [s.weights().flatten() for s in sg.paths.record(net, images(), rule).sites.values()]
    ),
}


def look_and_train(attached, threads, looks):
    """Looks at one network from several threads while they and one more train another; what differed."""
    seen, trained = Net().eval(), Net()
    if attached:
        sg.attach(seen, RULES[1])
        sg.attach(trained, RULES[1])
    alone = copy.deepcopy(trained)
    torch.manual_seed(7)
    train(alone, 30)
    after = torch.get_rng_state()
    want = {(name, rule): look(seen, rule) for name, look in LOOKS.items() for rule in RULES}
    wrong = []

    def work(mine):
        for turn in range(looks):
            name, rule = list(want)[(mine * 7 + turn) % len(want)]
            if not torch.equal(LOOKS[name](seen, rule), want[name, rule]):
                wrong.append((name, rule))
            sg.pullback(trained, images(), 1, rule)  # what it is depends on the step; it disturbs nobody

    torch.manual_seed(7)
    concurrently(lambda: train(trained, 30), *(functools.partial(work, mine) for mine in range(threads)))
    assert torch.equal(torch.get_rng_state(), after)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    return wrong


@pytest.mark.parametrize("attached", [False, True])
def test_looks_in_threads_equal_those_one_by_one_and_leave_a_training_as_it_is(attached):
    assert look_and_train(attached, threads=4, looks=8) == []


@pytest.mark.slow
def test_a_thousand_looks_on_eight_threads_beside_a_training():
    assert look_and_train(attached=True, threads=8, looks=125) == []


def test_an_optimizer_may_step_between_the_forward_and_backward_pass_of_a_look():
    net = Net().eval()

    class Stepping(Net):
        def forward(self, x):
            out = super().forward(x)
            with torch.no_grad():
                for parameter in stepping.parameters():  # as a training in another thread does
                    parameter.mul_(1.0)
            return out

    stepping = Stepping().eval()
    assert torch.equal(sg.pullback(stepping, images(), 1, RULES[1]), sg.pullback(net, images(), 1, RULES[1]))


def test_what_a_network_holds_of_itself_leads_to_the_copy():
    class Holder:
        def __init__(self, part):
            self.part = part

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def run(self, x):
            return self.linear(x) * (2 if self.training else 1)

        forward = run

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()
            inner = self.inner
            self.ways = [
                lambda x: inner(x),
                self.inner.run,
                functools.partial(inner, x=torch.ones(2, 3)),
                {"deep": (inner, [inner])},
                Holder(inner),
                weakref.ref(inner),
            ]
            self.log = []

        def forward(self, x):
            self.log.append(1)
            held = [self.ways[3]["deep"][1][0], self.ways[4].part, self.ways[5]()]
            outs = [self.ways[0](x), self.ways[1](x), self.ways[2](), *(part(x) for part in held)]
            assert all(part is self.inner for part in held)
            return torch.stack(outs)

    net = Outer().train()
    made = sharing_copy(net)
    x = torch.ones(2, 3)
    assert torch.equal(made(x), net.eval()(x))
    assert len(net.log) == 1
    assert len(made.log) == 1
    assert made.inner is not net.inner
    assert made.inner.linear.weight.data_ptr() == net.inner.linear.weight.data_ptr()


def test_a_copy_has_buffers_of_its_own_and_is_tied_where_the_network_is():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    made = sharing_copy(net, training=True, differentiable=True)
    assert made[2].weight is made[0].weight
    assert made.training
    made(torch.randn(4, 3)).sum().backward()
    assert net[0].weight.grad is None
    assert made[0].weight.grad is not None
    assert torch.equal(net[1].running_mean, torch.zeros(3))
    assert not torch.equal(made[1].running_mean, torch.zeros(3))


def test_random_numbers_of_a_block_begin_where_the_generator_stands_and_leave_it_there():
    def draw():
        return torch.randn(3), F.dropout(torch.ones(50), 0.5), torch.randperm(9)

    torch.manual_seed(3)
    want, then = draw(), torch.randn(2)
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    for alone in (True, False):
        if not alone:
            other.start()
        torch.manual_seed(3)
        with own_random_numbers():
            found = draw()
        assert all(map(torch.equal, found, want))
        assert all(map(torch.equal, draw(), want))
        assert torch.equal(torch.randn(2), then)
    stop.set()


def test_a_scripted_part_is_looked_at_in_place_and_put_back():
    net = nn.Sequential(nn.Flatten(), torch.jit.script(nn.Dropout(0.5)), nn.Linear(3, 2)).train()
    assert sharing_copy(net) is None
    found = sg.pullback(net, torch.ones(2, 3, 1, 1), 1)
    assert torch.equal(found.flatten(1), net[2].weight.detach()[1].expand(2, 3))
    assert net.training
    assert net[1].training


def test_a_replica_for_another_device_runs_its_own_weights_under_the_rule():
    net = Net().double().eval()
    with sg.attach(net, RULES[1]):
        replica = net._replicate_for_data_parallel()
        parts = {id(module): module._replicate_for_data_parallel() for module in net.modules()}
        for module in net.modules():
            for name, child in module._modules.items():
                parts[id(module)]._modules[name] = parts[id(child)]
            for name, parameter in module._parameters.items():
                setattr(parts[id(module)], name, None if parameter is None else parameter * 2)
        replica = parts[id(net)]
        x = images().double().requires_grad_()
        twin = Net().double().eval()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2)
        (found,) = torch.autograd.grad(replica(x)[:, 1].sum(), x)
        assert torch.equal(found, sg.pullback(twin, x, 1, RULES[1]))
        assert not torch.equal(found, sg.pullback(twin, x, 1))


def test_a_look_fills_lists_of_its_own_through_hooks_that_hold_them():
    class Keeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)).double()
            self.closed, self.held = [], []
            closed = self.closed
            self.net[1].register_forward_hook(lambda module, given, returned: closed.append(returned))
            self.net[2].register_forward_hook(Held(self.held))

        def forward(self, x):
            return self.net(x)

    net = Keeper()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    sg.pullback(net, x, 1, sg.Surrogate())
    assert net.closed == net.held == []
    net(x)
    assert len(net.closed) == len(net.held) == 1


class Held:
    """A hook that keeps what a module returns."""

    def __init__(self, kept):
        self.kept = kept

    def __call__(self, module, given, returned):
        self.kept.append(returned)
