"""The tab Paths: the numbers of `softgate.paths` for the same run, and one sentence where there are none."""

import pytest
import torch

import softgate as sg
from softgate import SoftgateError
from softgate.app import stability
from softgate.app.visit import Superseded
from softgate.training.checkpoints import restore


def asked(library, **changes):
    return stability.within(library.config.paths, **{"probe": "val", "images": 20, "moments": 3} | changes)


def test_the_numbers_are_those_of_the_library(recorded):
    told = []
    rule = recorded.config.readout
    found = stability.measure(recorded, "recorded", asked(recorded), rule, lambda *at: told.append(at))
    run = recorded.run("recorded")
    net = restore(run.checkpoint())[0].net
    recording = sg.paths.Recording(run.place / "paths")
    points = [recording.points[place] for place in (0, round((len(recording.points) - 1) / 2), -1)]
    expected = sg.paths.swap(net, recording, {"hard": None, "soft": rule}, points=points, images=20)
    for kind in ("hard", "soft"):
        assert torch.equal(found.swaps.swapped[kind].nan_to_num(), expected.swapped[kind].nan_to_num())
    assert told[-1][0] == told[-1][1] == len(told)
    pair, last = stability.numbers(found, 0, 1)
    values = dict(row for row in pair.texts)
    assert values["swap hard, pooled"] == sg.rounding.rounded(expected.correlation("hard", 0, 1, within=False))
    assert "control, hard, within: mean" in dict(last.texts)
    assert len(stability.epochs(found)) == 3
    again = stability.measure(recorded, "recorded", asked(recorded), rule, lambda *at: pytest.fail("measured again"))
    assert again is found


def test_a_measurement_that_nobody_waits_for_any_more_stops(recorded):
    told = []

    def progress(done, total):
        told.append((done, total))
        if done == 2:
            raise Superseded

    with pytest.raises(Superseded):
        stability.measure(recorded, "recorded", asked(recorded, images=30), recorded.config.readout, progress)
    assert told[-1][0] == 2 < told[-1][1]


def test_runs_without_a_recording_are_not_offered_and_refused(recorded):
    assert stability.recorded(recorded) == ["recorded"]
    rule = recorded.config.readout
    for label, probe in (("bare", "val"), ("recorded", "train")):
        with pytest.raises(SoftgateError, match="holds no recording") as error:
            stability.measure(recorded, label, asked(recorded, probe=probe), rule, lambda *at: None)
        assert str(recorded.run(label).place.parent) not in recorded.said(error.value)
    with pytest.raises(SoftgateError, match="choose a soft rule"):
        stability.measure(recorded, "recorded", asked(recorded), sg.Surrogate.none(), lambda *at: None)
