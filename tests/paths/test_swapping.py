"""Agreement, swap and what is read off them, on a small network trained on real digits, against slow references."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch import nn
from torch.nn import functional as F

import softgate as sg
from path_networks import RULE
from softgate import SoftgateError
from softgate.paths.agreement import ALL
from softgate.paths.packing import Layout
from softgate.paths.patterns import halves
from softgate.paths.recording import Header, Point, Recorder, network_hash, probe_hash
from softgate.paths.swapping import CONTROLS


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.head = nn.Conv2d(12, 16, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 3, 2, padding=1)
        return self.head(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


def store(directory, net, images, labels, moments, train):
    """Records a network at some steps of a training, as the callback does."""
    gates = sg.paths.record(net, images)
    header = Header(
        "Small", network_hash(net), probe_hash(images, labels), len(images), Layout.of(gates, False), None, None, True
    )
    recorder = Recorder(directory, header)
    recorder.begin(images, labels)
    for step in range(max(moments) + 1):
        if step in moments:
            kept = {"net": {k: v.clone() for k, v in net.state_dict().items()}, "scales": {}}
            recorder.add(Point(step, step / 10), lambda kind: iter([sg.paths.record(net, images)]), kept)
        train(step)
    return sg.paths.Recording(directory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    net = Small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def train(step):
        net.train()
        at = torch.randint(200, len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[at]), y[at]).backward()
        optimizer.step()

    recording = store(tmp_path_factory.mktemp("small"), net, x[:200], y[:200], (0, 3, 20, 60, 120, 160), train)
    swaps = sg.paths.swap(net, recording, {"hard": None, "soft": RULE}, chunk=64)
    return net, recording, swaps


def fellows(labels, seed):
    """Another image of the class of each, the classes' images in a cycle each."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    found = {}
    for label in set(labels.tolist()):
        members = [i for i in order if labels[i] == label]
        found |= {member: members[place - 1] for place, member in enumerate(members)}
    return torch.tensor([found[i] for i in range(len(labels))])


def at(net, recording, moment):
    net.load_state_dict(recording.weights(recording.points[moment])["net"])
    return net.eval()


def test_hamming_and_kappa_are_those_of_the_books():
    torch.manual_seed(0)
    a, b = torch.rand(20, 3, 4) > 0.5, torch.rand(20, 3, 4) > 0.3
    a[:, 0, 0] = b[:, 0, 0] = False  # constant in both: no kappa
    a[:, 0, 1] = True  # constant in one: kappa 0
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.MaxPool2d(2, 2))
    x, x2 = torch.randn(2, 20, 3, 4, 4)
    pools = [sg.paths.record(net, images).sites["2"] for images in (x, x2)]
    first, second = (
        sg.paths.Gates({"r": sg.paths.SiteGates("r", "relu", v), "2": pool})
        for v, pool in zip((a, b), pools, strict=True)
    )
    found = sg.paths.gate_agreement(first, second)
    assert found["r"].hamming == pytest.approx(float((a != b).double().mean()))
    units = list(zip(a.flatten(1).T.tolist(), b.flatten(1).T.tolist(), strict=True))[1:]
    kappas = [cohen_kappa_score(p, q) for p, q in units]
    assert found["r"].kappa == pytest.approx(sum(kappas) / len(kappas))
    chosen = [pool.values.flatten(1).T.tolist() for pool in pools]
    more = [cohen_kappa_score(p, q) for p, q in zip(*chosen, strict=True)]
    assert found["2"].kappa == pytest.approx(sum(more) / len(more))
    assert found["2"].hamming == pytest.approx(float((pools[0].values != pools[1].values).double().mean()))
    assert found[ALL].kappa == pytest.approx((sum(kappas) + sum(more)) / (len(kappas) + len(more)), abs=1e-6)
    same = sg.paths.gate_agreement(first, first)
    assert (same["r"].hamming, same[ALL].kappa) == (0, pytest.approx(1 - 1 / 21, abs=0.05))


def test_path_cosine_is_the_cosine_of_the_tensor_products():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x, x2 = torch.randn(2, 6, 3)
    for rule in (None, RULE):
        a, b = sg.paths.record(net, x, rule), sg.paths.record(net, x2, rule)
        tensors = [torch.einsum("bi,bj->bij", *(s.weights() for s in g.sites.values())).flatten(1) for g in (a, b)]
        expected = F.cosine_similarity(*tensors)
        assert torch.allclose(sg.paths.path_cosine(a, b).exp().float(), expected, atol=1e-6)
    with pytest.raises(SoftgateError, match="different call sites"):
        sg.paths.path_cosine(a, b[:2])
    with pytest.raises(SoftgateError, match="soft gates"):
        sg.paths.gate_agreement(a, b)


def test_comparing_a_recording_is_comparing_each_pair(trained, monkeypatch):
    _, recording, _ = trained
    monkeypatch.setattr("softgate.paths.agreement.BLOCK", 7)  # not a divisor of anything
    found = sg.paths.compare(recording)
    assert found.sites == ["(model).relu", "(model).max_pool2d", "(model).relu#2", "(model).max_pool2d#2"]
    for s, t in ((0, 5), (2, 3), (4, 4)):
        a, b = (recording.gates(recording.points[m]) for m in (s, t))
        pair = sg.paths.gate_agreement(a, b)
        for place, name in enumerate(found.sites):
            assert float(found.hamming[place, s, t]) == pytest.approx(pair[name].hamming)
            assert float(found.kappa[place, s, t]) == pytest.approx(pair[name].kappa, abs=1e-6)
        assert float(found.overall[0][s, t]) == pytest.approx(pair[ALL].hamming)
        assert float(found.overall[1][s, t]) == pytest.approx(pair[ALL].kappa, abs=1e-6)
        assert torch.allclose(found.log_cosine[:, s, t], sg.paths.path_cosine(a, b), atol=1e-5)


def test_swap_is_what_a_plain_loop_over_the_definition_gives(trained):
    net, recording, swaps = trained
    s, t = 1, 4
    x, labels = recording.images, recording.labels
    rows = torch.arange(len(x))
    for kind, rule in (("hard", None), ("soft", RULE)):
        gates = sg.paths.record(at(net, recording, s), x, rule)
        final = sg.paths.record(at(net, recording, 5), x)
        assert torch.allclose(swaps.log_cosine[kind][s], sg.paths.path_cosine(gates, final))
        outputs = sg.paths.run(at(net, recording, t), x, gates).double()
        own = net(x).detach().double()
        f, g = ((o - o.mean(1, keepdim=True))[rows, labels] for o in (own, outputs))
        expected = float(torch.corrcoef(torch.stack([f, g]))[0, 1])
        assert swaps.correlation(kind, s, t, within=False) == pytest.approx(expected, abs=1e-6)
        df, dg = (v - torch.stack([v[labels == c].mean() for c in range(10)])[labels] for v in (f, g))
        expected = float(torch.corrcoef(torch.stack([df, dg]))[0, 1])
        assert swaps.correlation(kind, s, t, within=True) == pytest.approx(expected, abs=1e-6)
        last = at(net, recording, 5)
        own = last(x).detach().double()
        f = (own - own.mean(1, keepdim=True))[rows, labels]
        fellow = fellows(labels, seed=0)
        assert bool((labels[fellow] == labels).all())
        assert bool((fellow != rows).all())
        made = {"mean": gates.mean(), "ones": gates.ones(), "same class": gates[fellow]}
        found = {name: sg.paths.run(last, x, control) for name, control in made.items()}
        found["class mean"] = torch.empty_like(found["mean"])
        for label in range(10):
            members = (labels == label).nonzero()[:, 0]
            found["class mean"][members] = sg.paths.run(last, x[members], gates[members].mean())
        for name, outputs in found.items():
            g = outputs.double()
            g = (g - g.mean(1, keepdim=True))[rows, labels]
            expected = float(torch.corrcoef(torch.stack([f, g]))[0, 1])
            assert swaps.control(kind, name, within=False)[s] == pytest.approx(expected, abs=1e-4), name
        early = at(net, recording, s)(x).detach().double()
        g = (early - early.mean(1, keepdim=True))[rows, labels]
        expected = float(torch.corrcoef(torch.stack([f, g]))[0, 1])
        assert swaps.control(kind, "f(s)", within=False)[s] == pytest.approx(expected, abs=1e-4)


def test_swap_rises_over_training_and_the_controls_do_not(trained):
    _, _, swaps = trained
    hard = swaps.matrix("hard", within=False)
    assert torch.allclose(hard.diagonal(), torch.ones(6, dtype=torch.float64))
    into_last = swaps.curve("hard", within=True)[0]
    assert into_last[0] < 0.5 < 0.8 < into_last[4]
    assert into_last[0] < into_last[2] < into_last[4]
    for name in ("shuffled", "same class", "mean", "class mean", "ones", "epoch 0"):
        assert max(swaps.control("hard", name, within=True)) < into_last[4] - 0.1, name
    assert all(low <= value <= high for value, low, high in zip(*swaps.curve("hard", True), strict=True))
    assert swaps.correct[-1] > 0.8 > swaps.correct[0]


def test_the_margin_is_over_the_greatest_control_and_an_only_image_of_its_class_has_no_fellow(trained):
    net, recording, swaps = trained
    swap, low, high = swaps.margin("hard", within=True)
    curve = swaps.curve("hard", within=True)[0]
    for s in range(6):
        names = [name for name in CONTROLS if (name, s) != ("epoch 0", 0)]
        greatest = max(v for name in names if math.isfinite(v := swaps.control("hard", name, within=True)[s]))
        assert swap[s] == pytest.approx(curve[s] - greatest)
        assert low[s] <= high[s]
    assert swap[5] == pytest.approx(0)  # f(s) is the last network itself
    labels = recording.labels[:12].tolist()
    alone = [labels.count(label) == 1 for label in labels]
    assert 0 < sum(alone) < 12
    few = sg.paths.swap(net, recording, {"hard": None}, points=recording.points[3:5], images=12, chunk=5)
    assert few.controls["hard", "same class"].isnan().tolist() == [alone] * 2
    assert math.isfinite(few.control("hard", "same class", within=False)[0])


def test_the_settled_epoch_is_the_first_after_which_it_stays(trained):
    swaps = trained[2]
    curve = swaps.curve("hard", within=True)[0]
    epoch, low, high = swaps.settled("hard", threshold=0.7)
    at_epoch = [point.epoch for point in swaps.points].index(epoch)
    assert all(value > 0.7 for value in curve[at_epoch:])
    assert curve[at_epoch - 1] <= 0.7
    assert low <= epoch <= high
    assert swaps.settled("hard", threshold=-1)[0] == 0
    assert swaps.settled("soft", threshold=0.999999)[0] == math.inf


def test_gate_auc_is_that_of_the_books(trained):
    net, recording, swaps = trained
    x = recording.images
    final = sg.paths.record(at(net, recording, 5), x)
    for kind, rule, exact in (("hard", None, 1e-9), ("soft", RULE, 2e-3)):
        gates = sg.paths.record(at(net, recording, 1), x, rule)
        names = [name for name, site in gates.sites.items() if site.window is None]
        expected = [
            roc_auc_score(final.sites[name].values.flatten(), gates.sites[name].weights().flatten()) for name in names
        ]
        assert swaps.gate_auc(kind)[1] == pytest.approx(sum(expected) / len(expected), abs=exact)
    assert swaps.gate_auc("hard")[5] == 1


def test_only_later_pairs_and_some_moments_can_be_asked_for_and_weights_come_back(trained):
    net, recording, swaps = trained
    at(net, recording, 2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    some = [recording.points[i] for i in (0, 3, 5)]
    found = sg.paths.swap(net, recording, {"hard": None}, points=some, images=50, later=True, chunk=20)
    assert found.own.shape == (3, 50)
    assert found.matrix("hard", False).isnan().tolist() == [[False] * 3, [True, False, False], [True, True, False]]
    assert torch.allclose(found.swapped["hard"][0, 1], swaps.swapped["hard"][0, 3, :50], atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    with pytest.raises(SoftgateError, match="another architecture"):
        sg.paths.swap(nn.Linear(2, 2), recording, {"hard": None})
    with pytest.raises(SoftgateError, match="at least 2"):
        sg.paths.swap(net, recording, {"hard": None}, points=some[:1])


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_combined_patterns_are_of_moments_up_to_s_and_beat_none_by_less_than_themselves(trained, kind):
    swaps = trained[2]
    one = sg.paths.combined_patterns(swaps, kind, 3, 1)
    assert set(one) == {"recorded", "shuffled", "same class", "mean"}
    assert all(found.weights.tolist() == [1] for found in one.values())
    _, test = halves(swaps.labels)
    f, g = (v[test] for v in (swaps.own[5], swaps.swapped[kind][3, 5]))
    means = [[v[swaps.labels[test] == c].mean() for c in range(10)] for v in (f, g)]
    deviations = [v - torch.stack(m)[swaps.labels[test]] for v, m in zip((f, g), means, strict=True)]
    assert one["recorded"].within == pytest.approx(float(torch.corrcoef(torch.stack(deviations))[0, 1]))
    many = sg.paths.combined_patterns(swaps, kind, 3, 8)["recorded"]
    assert len(many.weights) == 4  # moments 0 to 3
    assert float(many.weights.min()) >= 0
    assert float(many.weights.sum()) == pytest.approx(1)
    assert many.within > one["recorded"].within - 0.1
