"""What the page shows: the values and pixels of `softgate.pullback`, `ascend` and the drawing functions."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import softgate as sg
from softgate import SoftgateError
from softgate.app import wiping
from softgate.app.look import HARD, SOFT, look
from softgate.app.request import Request
from softgate.app.visit import Superseded, Turns
from softgate.explainers import pullback as pullbacks
from softgate.grids import Sheet
from softgate.grids.scaling import colours, peak
from softgate.training.checkpoints import restore

RULE = sg.Surrogate(gate=sg.gates.Sigmoid(temperature=0.7), pool=sg.pools.LSE(temperature=0.2), mix=0.8)
TARGETS = (3, 8)
BOTH = (("excitation", "last"), ("none", "last"))


def asked(**changes):
    return Request(**{"runs": BOTH[:1], "targets": TARGETS, "rule": RULE, "label": 4, "number": 2} | changes)


def net_of(runs, name):
    module, data = restore(runs / name / "checkpoints" / "last.ckpt")
    images = sg_data(data)
    return module.net, images


def sg_data(options):
    from softgate.data import ImageData

    return ImageData(options, splits=("val",), measured=True)


def at(picture: Image.Image, values: torch.Tensor) -> list[tuple[int, int]]:
    """Where a cell stands in a picture, exactly, enlarged as cells are."""
    zoom = -(-112 // values.shape[-1])
    sheet = Sheet(values.shape[-1] * zoom, values.shape[-2] * zoom)
    sheet.cell(values, 0, 0, zoom)
    cell, whole = np.asarray(sheet.image), np.asarray(picture)
    h, w = cell.shape[:2]
    # The frame of a cell's own class is drawn around it, not over it.
    corners = np.argwhere((whole[: -h + 1, : -w + 1] == cell[0, 0]).all(-1))
    return [(int(y), int(x)) for y, x in corners if (whole[y : y + h, x : x + w] == cell).all()]


@pytest.mark.parametrize("scale", ["cell", "shared", "seismic"])
@pytest.mark.parametrize("name", ["excitation", "none"])
def test_pullbacks_are_those_of_the_library_in_numbers_and_in_pixels(library, runs, name, scale):
    shown = look(library, asked(runs=((name, "last"),), scale=scale))
    net, data = net_of(runs, name)
    x = data.nth(4, 2)
    for readout, rule in ((HARD, None), (SOFT, RULE)):
        expected = sg.pullback(net, x, list(TARGETS), rule)
        assert torch.equal(shown.grid.readings[readout].values, expected)
        assert expected.abs().max() > 0
        drawn = colours(expected, scale, peak(expected))
        places = [at(shown.picture, drawn[0, k]) for k in range(len(TARGETS))]
        assert all(len(place) == 1 for place in places), places
        assert places[0][0][1] < places[1][0][1], "targets stand in their order"
    assert at(shown.picture, data.denormalize(x)[0])


def test_channel_scales_are_measured_where_there_are_none(library, runs):
    rule = sg.Surrogate(scale="channel")
    shown = look(library, asked(rule=rule))
    net, data = net_of(runs, "excitation")
    from softgate.training.probe import spread

    sg.calibrate(net, [spread(data, 64)[0]], rule)
    expected = sg.pullback(net, data.nth(4, 2), list(TARGETS), rule)
    assert torch.equal(shown.grid.readings[SOFT].values, expected)


def test_an_ascent_is_that_of_the_library_and_has_its_curve(library, runs):
    shown = look(library, asked(kind="ascent", steps=3, step_size=30.0, radius=50.0))
    net, data = net_of(runs, "excitation")
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    x = data.nth(4, 2)
    factor = (x[0].numel() / (3 * 224 * 224)) ** 0.5
    way = {"steps": 3, "step_size": 30 * factor, "radius": 50 * factor}
    pixels = ((x * std + mean) * 2 - 1).clamp(-1, 1)
    for readout, rule in ((HARD, None), (SOFT, RULE)):
        normalize = lambda image: ((image + 1) / 2 - mean) / std  # noqa: E731  # one line
        risen = sg.ascend(net, pixels, list(TARGETS), rule, normalize=normalize, **way)
        reading = shown.grid.readings[readout]
        assert torch.equal(reading.values, risen.difference)
        assert torch.equal(reading.predicted, risen.predicted[..., 1])
        for k, target in enumerate(TARGETS):
            line = shown.curves[readout][str(target)]
            assert line == list(enumerate(risen.logits[0, k].tolist()))
            assert len(line) == 4


def test_a_look_that_nobody_waits_for_any_more_stops_between_two_steps_of_its_ascent(library, runs, monkeypatch):
    passes = []
    through = pullbacks._logits
    monkeypatch.setattr(pullbacks, "_logits", lambda model, x: passes.append(1) or through(model, x))
    wishes = Turns()
    turn = wishes.ask()

    def check():
        if len(passes) == 5:  # the visitor moves a slider
            wishes.ask()
        wishes.check(turn)()

    with pytest.raises(Superseded):
        look(library, asked(kind="ascent", steps=50), check)
    assert len(passes) == 5, "of more than a hundred"
    assert look(library, asked(kind="ascent", steps=2), wishes.check(wishes.ask())).curves


def test_a_probe_image_is_one_that_the_runs_grids_show(library, runs):
    shown = look(library, asked(probe=3))
    net, data = net_of(runs, "excitation")
    images, labels = data.probe(5, 314)
    assert torch.equal(shown.grid.readings[HARD].values, sg.pullback(net, images[3:4], list(TARGETS)))
    assert shown.grid.labels == [int(labels[3])]
    with pytest.raises(SoftgateError, match="probe image=5: there are 5, counted from 0"):
        look(library, asked(probe=5))


@pytest.mark.parametrize("changes", [{"scale": "shared"}, {"kind": "ascent", "steps": 2}, {"runs": BOTH}])
def test_pictures_to_wipe_are_the_cells_of_the_grid(library, changes):
    shown = look(library, asked(**changes))
    found = wiping.pictures(shown)
    count = len(shown.rows) * (1 + len(shown.grid.readings) * len(TARGETS) * (2 if shown.grid.kind == "ascent" else 1))
    assert len(found) == count
    whole, zoom, mine = np.asarray(shown.picture), -(-112 // 16), wiping.SIDE // 16
    for name, image in found.items():
        cell = np.asarray(image)[::mine, ::mine].repeat(zoom, 0).repeat(zoom, 1)
        corners = np.argwhere((whole[: -len(cell) + 1, : -len(cell) + 1] == cell[0, 0]).all(-1))
        assert any((whole[y : y + len(cell), x : x + len(cell)] == cell).all() for y, x in corners), name
    names = list(found)
    assert wiping.pair(names, (names[0], names[-1])) == (names[0], names[-1])
    hard, soft = wiping.pair(names, (names[0], "gone"))
    assert (hard.partition(":")[0], soft.partition(":")[0]) == ("hard", "soft")


def test_two_runs_stand_in_two_rows(library, runs):
    shown = look(library, asked(runs=BOTH, targets=(3,)))
    assert [row.split(":")[0] for row in shown.rows] == ["trained soft", "trained hard"]
    for row, (name, _) in enumerate(BOTH):
        net, data = net_of(runs, name)
        x = data.nth(4, 2)
        for readout, rule in ((HARD, None), (SOFT, RULE)):
            expected = sg.pullback(net, x, [3], rule)
            assert torch.equal(shown.grid.readings[readout].values[row], expected[0])
        assert shown.grid.predicted[row] == int(net.eval()(x).argmax())
    assert all(name in " ".join(shown.words) for name, _ in BOTH)


@pytest.mark.parametrize("changes", [{}, {"runs": BOTH, "probe": 2}, {"kind": "ascent", "steps": 2}])
def test_the_snippet_computes_what_is_shown(library, changes, tmp_path, monkeypatch):
    shown = look(library, asked(**changes))
    root = next(iter(library.runs.values())).place.parent
    monkeypatch.chdir(root)
    code = look(library, asked(**changes)).snippet
    monkeypatch.setattr(Image.Image, "save", lambda self, path: None)
    found = {}
    exec(compile(code, "snippet", "exec"), found)
    for key, readout in (("hard", HARD), ("soft", SOFT)):
        assert torch.equal(found["blocks"][key], shown.grid.readings[readout].values)
    assert str(root) not in code


def test_a_saved_grid_is_shown_where_no_weights_are(library):
    keys = [moment.key for moment in library.moments("none")]
    assert keys == ["best", "last"], "epochs that have weights need no saved grid"
    run = library.run("none")
    (run.place / "checkpoints" / "best.ckpt").rename(run.place / "best.away")
    try:
        keys = [moment.key for moment in library.moments("none")]
        assert keys == ["epoch=000", "last"]
        assert library.moments("none")[0].words == "saved grid, after 1 epoch"
        shown = look(library, asked(runs=(("none", "epoch=000"),)))
        kept = torch.load(run.place / "grids" / "epoch=000.pt", weights_only=True)
        assert torch.equal(shown.grid.readings[SOFT].values, kept["soft"])
        assert at(shown.picture, colours(kept["soft"], "cell")[0, 0])
        with pytest.raises(SoftgateError, match="by itself"):
            look(library, asked(runs=(("none", "epoch=000"), ("excitation", "last"))))
    finally:
        (run.place / "best.away").rename(run.place / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": (10,)}, "target=10: the model has the classes 0 to 9"),
        ({"targets": ()}, "targets: 0 are chosen"),
        ({"runs": ()}, "runs: 0 are chosen"),
        ({"runs": (("nobody", "last"),)}, "run=nobody"),
        ({"runs": (("none", "lost"),)}, "checkpoint=lost"),
        ({"label": 10}, "class=10"),
        ({"number": 999}, "image=999"),
        ({"kind": "rwa"}, "kind=rwa"),
        ({"scale": "cel"}, "scale=cel"),
        ({"steps": 51}, "steps=51"),
        ({"radius": float("nan")}, "radius=nan"),
    ],
)
def test_what_is_not_there_is_one_sentence(library, changes, said):
    with pytest.raises(SoftgateError) as error:
        look(library, asked(**changes))
    assert said in str(error.value)
    assert str(error.value).count("\n") == 0


def test_looks_in_threads_do_not_mix(library):
    requests = [asked(targets=(k,), number=k, kind="raw" if k % 2 else "ascent", steps=2) for k in range(6)]
    alone = [look(library, request) for request in requests]
    found = [None] * len(requests)

    def run(k):
        found[k] = look(library, requests[k])

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, found, strict=True):
        assert np.array_equal(np.asarray(one.picture), np.asarray(other.picture))
        assert one.words == other.words


def test_sentences_have_no_paths_of_the_machine(library, runs):
    words = library.scrubbed(f"checkpoint={runs}/none/checkpoints/last.ckpt: damaged, see /home/me/data/x.png.")
    assert words == "checkpoint=none/checkpoints/last.ckpt: damaged, see x.png."
    assert str(Path.home()) not in words
