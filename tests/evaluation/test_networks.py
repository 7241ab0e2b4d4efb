"""Networks that no run here trained: where their weights come from, and what is said of them."""

import pytest
from PIL import Image

import softgate as sg
from configs import composed
from softgate import models
from softgate.evaluation import evaluate, networks


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for number, name in enumerate(("a", "b")):
            (root / split / name).mkdir(parents=True)
            for count in range(2):
                Image.new("RGB", (32, 32), (60 * number, 90 * count, 120)).save(root / split / name / f"{count}.png")
    return root


def test_a_network_without_weights_is_called_untrained_and_is_the_same_each_time(grey, tmp_path, capsys):
    words = ("data=folder", f"data.root={grey}", "data.size=32", "model=squeezenet1_1", "grid.calibrate=2")

    def evaluated(place: str, *more: str) -> dict:
        return evaluate.evaluate(composed(*words, *more, name="evaluate", directory=tmp_path / place))

    first, again = evaluated("a"), evaluated("b")
    assert first["runs"] == again["runs"]
    assert first["runs"][0]["model"]["origin"] == "untrained, random weights, seed 0"
    shown = " ".join(capsys.readouterr().out.split())
    assert "untrained, random weights, seed 0" in shown
    assert "hint: squeezenet1_1 has no normalising layers" in shown
    assert "hints" not in evaluated("c", "readout.scale=channel")


SOFT = sg.Surrogate(gate=sg.gates.Sigmoid(0.3))


@pytest.mark.parametrize(
    ("name", "rule", "hinted"),
    [
        ("squeezenet1_1", SOFT, True),
        ("squeezenet1_1", sg.Surrogate(gate=sg.gates.Sigmoid(0.3), scale="channel"), False),
        ("squeezenet1_1", sg.Surrogate(gate=sg.gates.Hard(), pool=sg.pools.Hard()), False),
        ("resnet20", SOFT, False),
    ],
)
def test_channel_scales_are_suggested_where_one_temperature_serves_badly(name, rule, hinted):
    net = models.build(name, 10, "imagenet")
    assert (networks.scale_hint(name, net, rule) is not None) == hinted
