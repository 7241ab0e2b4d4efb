"""Path kernels of networks with minus signs, constants and every spelling of them, against slow sums over paths."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import softgate as sg
from softgate import SoftgateError

RULE = sg.Surrogate(sg.gates.Sigmoid(0.3), sg.pools.LSE(0.3))
C = torch.tensor([0.5, -2.0, 0.0, 1.5], dtype=torch.float64)


class Two(nn.Module):
    """h(join(relu(a(x)), relu(b(x)))), on [B, 3]."""

    def __init__(self, join, hidden=4, wide=4):
        super().__init__()
        torch.manual_seed(0)
        self.join, self.a, self.b = join, nn.Linear(3, hidden, bias=False), nn.Linear(3, hidden, bias=False)
        self.h = nn.Linear(wide, 2)
        self.double()

    def forward(self, x):
        return self.h(self.join(torch.relu(self.a(x)), torch.relu(self.b(x))))


def points(count=5):
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


DIFFERENCES = {
    "a - b": (lambda a, b: a - b, 1, 1),
    "subtract": (lambda a, b: a.subtract(b, alpha=3), 1, 3),
    "torch.sub": (lambda a, b: torch.sub(a, b, alpha=-0.5), 1, 0.5),
    "rsub": (lambda a, b: torch.rsub(a, b, alpha=0.25), 0.25, 1),
    "in place": (lambda a, b: a.clone().sub_(b, alpha=2), 1, 2),
    "add alpha": (lambda a, b: torch.add(a, b, alpha=-2), 1, 2),
    "-a": (lambda a, b: -a + b.neg(), 1, 1),
    "negative": (lambda a, b: torch.negative(a).add(-1 * b), 1, 1),
    "1 - a": (lambda a, b: (1 - a) + b, 1, 1),
    "times": (lambda a, b: a * -3 - b.mul(-0.5), 3, 0.5),
    "by": (lambda a, b: a / -4 + torch.div(b, -2.0), 0.25, 0.5),
    "times a buffer": (lambda a, b: a * torch.tensor(-2.0).double() - b, 2, 1),
    "lerp": (lambda a, b: torch.lerp(a, b, 3.0), 2, 3),
    "lerp tensor": (lambda a, b: torch.lerp(a, b, torch.full((4,), -0.5).double()), 1.5, 0.5),
    "addcmul": (lambda a, b: torch.addcmul(a, b, -torch.ones(4).double(), value=2), 1, 2),
    "addcdiv": (lambda a, b: torch.addcdiv(a, b, torch.full((4,), -4.0).double(), value=2), 1, 0.5),
    "addmm": (lambda a, b: torch.addmm(a, b, -torch.eye(4).double(), beta=-2, alpha=3), 2, 3),
    "matrix": (lambda a, b: a - b @ (-0.5 * torch.eye(4)).double(), 1, 0.5),
    "einsum": (lambda a, b: a - torch.einsum("bi,ij->bj", b, (-0.5 * torch.eye(4)).double()), 1, 0.5),
    "index_add": (lambda a, b: a.index_add(1, torch.arange(4), b, alpha=-3), 1, 3),
    "constants": (lambda a, b: a.subtract(C) - (C - b) + F.pad(a[:, :0], (0, 4), value=9.0), 1, 1),
    "stack": (lambda a, b: torch.stack([a, -b]).sum(0), 1, 1),
    "mean": (lambda a, b: torch.stack([a, -b]).mean(0), 0.5, 0.5),
    "written": (lambda a, b: a.clone().copy_(-b) - a, 1, 1),
    "parts": (lambda a, b: torch.cat([(a - b)[:, :2], (b - a)[:, 2:]], 1), 1, 1),
    "sum": (lambda a, b: sum((a, -b)), 1, 1),
    "turned": (lambda a, b: (a.T - b.T).T, 1, 1),
    "aten": (lambda a, b: torch.ops.aten.sub.Tensor(a, b), 1, 1),
}


@pytest.mark.parametrize("rule", [None, RULE], ids=["hard", "soft"])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_minus_sign_is_no_part_of_a_path_and_a_factor_is_without_its_sign(name, rule):
    join, first, second = DIFFERENCES[name]
    net, x = Two(join), points()
    found = sg.paths.kernel(net, x, None, rule)
    gates = sg.paths.record(net, x, rule)
    a, b = (site.weights().double() for site in gates.sites.values())
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for i, j in np.ndindex(5, 5):
        for pixel, unit in np.ndindex(3, 4):  # each path of each branch by itself
            shared = x[i, pixel] * x[j, pixel]
            expected[i, j] += shared * (first * a[i, unit] * a[j, unit] + second * b[i, unit] * b[j, unit])
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert bool((found.diagonal() > 0).all())
    assert torch.linalg.eigvalsh(found).min() > -1e-10


def test_crelu_and_the_difference_of_two_rectifiers():
    x = points()
    squares = (x * x).sum(1)
    for net in (
        Two(lambda a, b: a - b),
        nn.Sequential(nn.Linear(3, 4), Crelu(), nn.Linear(8, 2)).double(),
    ):
        gates = sg.paths.record(net, x)
        opened = sum(site.weights().double().sum(1) for site in gates.sites.values())
        assert torch.allclose(sg.paths.kernel(net, x).diagonal(), squares * opened)  # was a difference of the two


class Crelu(nn.Module):
    def forward(self, x):
        return torch.cat([torch.relu(x), torch.relu(-x)], 1)


def test_weights_count_as_one_however_they_are_made():
    def trainable():
        return torch.randn(4, requires_grad=True, dtype=torch.float64)

    loose = trainable()  # registered nowhere
    x = points()
    plain = sg.paths.kernel(Two(lambda a, b: a + b), x)
    for join in (
        lambda a, b: a * loose - b / loose,
        lambda a, b: a * loose.exp() + b * (1 - loose),
        lambda a, b: torch.addcmul(a, b, loose),
        lambda a, b: torch.lerp(a, b, loose),
    ):
        assert torch.allclose(sg.paths.kernel(Two(join), x), plain)
    net = Two(lambda a, b: a - b)
    nn.utils.parametrizations.weight_norm(net.a)
    for parameter in net.parameters():
        parameter.requires_grad_(False)  # frozen weights are weights
    nn.init.constant_(net.h.weight, -5)
    assert torch.allclose(sg.paths.kernel(net, x), plain)
    tripled = Two(lambda a, b: torch.cat([a, b], 1) @ loose.expand(8, 4))
    assert torch.allclose(sg.paths.kernel(tripled, x), 4 * plain)  # each unit leads to all four


def absolute(op, y, weights=False):
    """The absolute factors of a linear operation, [outputs, inputs], from its derivative; ones if they are weights."""
    matrix = torch.autograd.functional.jacobian(lambda v: op(v).flatten(1)[0], y).flatten(1)
    return (matrix != 0).double() if weights else matrix.abs()


TORN = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2).double()
BACK = nn.ConvTranspose2d(2, 3, 2, stride=2).double()
NORM = nn.BatchNorm2d(2).double().eval()
nn.init.normal_(NORM.weight)
FILTER = torch.tensor([[[[1.0, -2.0, 1.0]]]] * 2, dtype=torch.float64)


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor([-2.0, 0.5], dtype=torch.float64)[:, None, None])

    def forward(self, x):
        return x * self.factor + 3


IMAGES = {
    "average": lambda y: F.avg_pool2d(y, 2, 1, padding=1),
    "average by": lambda y: F.avg_pool2d(y, 2, divisor_override=-3),
    "adaptive": lambda y: F.adaptive_avg_pool2d(y, (2, 3)),
    "global": lambda y: y.mean((2, 3)),
    "zeros": lambda y: F.pad(y, (1, 0, 0, 2)),
    "reflected": lambda y: F.pad(y, (1, 1, 2, 1), mode="reflect"),
    "repeated": lambda y: F.pad(y, (1, 1, 2, 1), mode="replicate"),
    "nearest": lambda y: F.interpolate(y, scale_factor=2),
    "bilinear": lambda y: F.interpolate(y, (7, 5), mode="bilinear", align_corners=True),
    "small": lambda y: F.interpolate(y, (2, 2), mode="bilinear", antialias=True),
    "edges": lambda y: F.conv2d(y, FILTER, torch.ones(2).double(), groups=2),
    "frozen": Frozen(),
    "difference": lambda y: y[:, :, 1:] - y[:, :, :-1],
    "diff": lambda y: torch.diff(y, dim=2),
    "cumsum": lambda y: y.cumsum(3),
    "reversed cumsum": lambda y: -y.flip(3).cumsum(3),
    "shuffled": lambda y: F.pixel_shuffle(y.repeat(1, 2, 1, 1), 2),
    "unfolded": lambda y: F.unfold(y, 2),
    "turned": lambda y: -y.transpose(0, 1).permute(1, 3, 0, 2).roll(1, 1),
    "chosen": lambda y: y[:, [0, 0, 1], ::2].flatten(2)[..., [3, 1]],
    "written": lambda y: torch.cat([y, y], 1).index_add_(1, torch.tensor([1, 2]), y, alpha=-2),
    "in part": lambda y: in_part(y),
    "centred": lambda y: y - y.mean((2, 3), keepdim=True),
    "matrix": lambda y: torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double() @ y,
    "baddbmm": lambda y: torch.baddbmm(y[:, 0], y[:, 1], -y.new_ones(len(y), 4, 4).tril(), beta=-2, alpha=0.5),
}
LEARNED = {"groups": TORN, "transposed": BACK, "norm": NORM, "linear": nn.Linear(4, 3).double()}


def in_part(y):
    y = y.clone()
    y[:, :, 1] -= 2 * y[:, :, 0]
    y[:, 1:].mul_(-0.5)
    y[:, :, 3] = 7
    return y


class Then(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return self.op(torch.relu(x)).flatten(1)


@pytest.mark.parametrize("name", [*IMAGES, *LEARNED])
def test_operations_on_images_count_with_the_absolute_values_of_their_derivatives(name):
    op = IMAGES.get(name) or LEARNED[name]
    net, x = Then(op), torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = absolute(op, x[:1], name in LEARNED)
    if name == "centred":  # a unit less the mean that it is in itself: two paths
        matrix = matrix + 2 / 16 * torch.eye(len(matrix))
    passed = torch.relu(x).flatten(1)
    joint = passed[:, None] * passed[None, :]
    expected = (joint @ matrix.T).mean(2)
    assert torch.allclose(sg.paths.kernel(net, x), expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(sg.paths.kernel(net, x, x[:2]), expected[:, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (lambda y: F.interpolate(y, scale_factor=2.0, mode="bicubic"), "upsample_bicubic2d is not known"),
        (lambda y: torch.zeros(1).double().expand(len(y), 2, 4, 4).clone().copy_(y), "into a constant"),
        (lambda y: y * y, "product"),
        (lambda y: torch.linalg.norm(y, dim=1), "LinalgVectorNorm"),
        (lambda y: torch.fft.rfft(y).real, "Fft"),
        (lambda y: F.conv2d(y, y[:1, :1, :2, :2].repeat(1, 2, 1, 1)), "product"),
        (lambda y: y.sum(), "no sum of paths for each image"),
        (lambda y: torch.relu(torch.ones_like(y)) * y, "a call on constants"),
    ],
)
def test_what_is_not_known_is_refused(op, words):
    class Net(nn.Module):
        def forward(self, x):
            out = op(torch.relu(x))
            return out.flatten(1) if out.dim() > 1 else out

    with pytest.raises(SoftgateError, match=words):
        sg.paths.kernel(Net(), torch.randn(2, 2, 4, 4, dtype=torch.float64))


def test_times_that_are_as_many_as_the_images_are_no_images():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(torch.relu(self.inside(x.transpose(0, 1))).sum(0))  # time first

    net = Sequence().double()
    for count in (1, 5, 6):
        with pytest.raises(SoftgateError, match="whose rows are not the 1 image"):
            sg.paths.record(net, torch.randn(count, 5, 4, dtype=torch.float64))

    class Turned(Two):  # where no gate is, no dimension need be that of the images
        def forward(self, x):
            return self.h((2 * torch.relu(self.a(x)).T - torch.relu(self.b(x)).T).flip(0).T)

    x = points(4)  # as many as hidden units
    assert torch.allclose(sg.paths.kernel(Turned(None), x, pairs=4), sg.paths.kernel(Two(lambda a, b: 2 * a - b), x))


def test_images_of_very_different_size_do_not_lose_digits_to_each_other():
    net = nn.Sequential(*[part for _ in range(30) for part in (nn.Linear(3, 3), nn.ReLU())], nn.Linear(3, 2)).double()
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 1.0)
            nn.init.zeros_(module.bias)
    x = torch.ones(3, 3, dtype=torch.float64) * torch.tensor([1e-120, 1.0, 1e120], dtype=torch.float64)[:, None]
    sign, log = sg.paths.kernel(net, x, log=True)
    size = x[:, 0].log()
    assert torch.allclose(log, size[:, None] + size[None] + 31 * math.log(3), rtol=1e-13)
    assert bool((sign == 1).all())


# A random network is a list of steps; its forward and its sum over paths are two readings of the same list.

EYE, ALL = np.eye(4), np.ones((4, 4))
CONSTANT = np.abs(C.numpy())
STEPS = {
    "linear": (lambda w, a, b: a @ w, ALL, None),
    "minus": (lambda w, a, b: a - b, EYE, EYE),
    "less": (lambda w, a, b: a.clone().sub_(b, alpha=-2).sub_(C), EYE, 2 * EYE),
    "constant": (lambda w, a, b: (1 - a * C) * -0.5, 0.5 * np.diag(CONSTANT), None),
    "weights": (lambda w, a, b: torch.addcmul(-a, b, w[0], value=-3), EYE, 3 * EYE),
    "lerp": (lambda w, a, b: a.lerp(b, 1.5), 0.5 * EYE, 1.5 * EYE),
    "mixed": (lambda w, a, b: torch.addmm(a, b, w, beta=-1, alpha=-2), EYE, 2 * ALL),
    "summed": (lambda w, a, b: -a.cumsum(1) / 2, np.tril(np.ones((4, 4))) / 2, None),
    "joined": (lambda w, a, b: torch.hstack([a, -b])[:, 2:6], np.eye(4, k=2), np.eye(4, k=-2)),
    "relu": (lambda w, a, b: torch.relu(a), None, None),
}


class Steps(nn.Module):
    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        self.weights = nn.Parameter(torch.randn(len(plan), 4, 4, dtype=torch.float64))

    def forward(self, x):
        made = [x]
        for place, (name, first, second) in enumerate(self.plan):
            a, b = made[first % len(made)], made[second % len(made)]
            made.append(STEPS[name][0](self.weights[place], a, b))
        return torch.relu(made[-1])


def enumerated(net, x, x2, first, second):
    """The kernel of one pair, path by path: for each unit the paths that end there, [paths, 3] of phi, phi', factor."""
    made = [[np.array([[float(a), float(b), 1.0]]) for a, b in zip(x, x2, strict=True)]]
    names = iter(first.sites)

    def gated(units):
        name = next(names)
        gates = (g.sites[name].weights()[0].double().numpy() for g in (first, second))
        return [u * [a, b, 1.0] for u, a, b in zip(units, *gates, strict=True)]

    for name, i, j in net.plan:
        _, left, right = STEPS[name]
        a, b = made[i % len(made)], made[j % len(made)]
        if name == "relu":
            made.append(gated(a))
            continue
        units = []
        for out in range(4):
            found = [np.empty((0, 3))]
            for matrix, source in ((left, a), (right, b)):
                if matrix is not None:
                    found += [u * [1.0, 1.0, f] for u, f in zip(source, matrix[out], strict=True) if f]
            units.append(np.concatenate(found))
        made.append(units)
    ends = gated(made[-1])
    return sum(float(u.prod(1).sum()) for u in ends) / 4, sum(map(len, ends))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    plan=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6
    ),
    soft=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_kernel_is_the_sum_over_the_paths_of_random_networks(plan, soft, seed):
    torch.manual_seed(seed)
    net, x, rule = Steps(plan), torch.randn(2, 4, dtype=torch.float64), RULE if soft else None
    gates = sg.paths.record(net, x, rule)
    found = sg.paths.kernel(net, x, None, rule)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        expected, _ = enumerated(net, x[i].numpy(), x[j].numpy(), gates[i : i + 1], gates[j : j + 1])
        assert math.isclose(found[i, j], expected, rel_tol=1e-10, abs_tol=1e-10)
    assert bool((found.diagonal() >= 0).all())
