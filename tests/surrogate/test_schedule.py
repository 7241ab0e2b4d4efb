"""Schedules against the formulas written out, and how their mistakes are phrased."""

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softgate import Ramp, Schedule, SoftgateError, Surrogate, Window

values = st.floats(-10, 10)
spans = st.tuples(st.floats(0, 50), st.floats(0, 50)).map(sorted)
moments = st.floats(0, 100)
units = st.sampled_from(["epoch", "step"])
shares, factors = st.floats(0, 1), st.floats(0.01, 10)


def ramps(ends):
    return st.builds(
        lambda start, end, span, shape, unit: Ramp(start, end, span[1], span[0], shape, unit),
        *(ends, ends, spans, st.sampled_from(["constant", "linear", "cosine"]), units),
    )


windows = st.builds(
    lambda span, never, unit: Window(span[0], None if never else span[1], unit), spans, st.booleans(), units
)
schedules = st.builds(Schedule, st.none() | ramps(factors), st.none() | ramps(shares), st.none() | windows)


def slow(ramp, now):
    """The value, by the progress of each shape; what the docstring of Ramp says."""
    if now >= ramp.until:
        return ramp.end
    if now <= ramp.begin:
        return ramp.start
    p = (now - ramp.begin) / (ramp.until - ramp.begin)
    rise = {"constant": 0.0, "linear": p, "cosine": math.sin(math.pi * p / 2) ** 2}[ramp.shape]
    return ramp.start * (1 - rise) + ramp.end * rise


@given(ramps(values), moments)
def test_a_ramp_is_its_formula_and_rests_before_and_after(ramp, now):
    epoch, step = (now, 10**6) if ramp.unit == "epoch" else (1e6, now)
    assert ramp.at(epoch, step) == pytest.approx(slow(ramp, now), rel=1e-12, abs=1e-12)
    low, high = sorted((ramp.start, ramp.end))
    assert low - 1e-12 <= ramp.at(epoch, step) <= high + 1e-12


@given(ramps(values), moments)
def test_a_ramp_moves_only_where_it_says_so(ramp, now):
    if not ramp.moving(now, now):
        later = [now + d for d in (1e-3, 1e-2)]
        same = all((t < ramp.begin or t >= ramp.until) == (now < ramp.begin or now >= ramp.until) for t in later)
        if same and ramp.shape != "constant" and (now < ramp.begin) == (later[1] < ramp.begin):
            assert ramp.at(now, now) == ramp.at(later[0], later[0]) == ramp.at(later[1], later[1])
    elif ramp.until - now > 1e-3 and abs(ramp.end - ramp.start) > 1e-3 and now > ramp.begin + 1e-2:
        assert ramp.at(now, now) != ramp.end


@given(windows, moments)
def test_a_window_is_closed_on_the_left_and_open_on_the_right(window, now):
    epoch, step = (now, -1) if window.unit == "epoch" else (-1, now)
    end = math.inf if window.until is None else window.until
    assert window.at(epoch, step) == (window.begin <= now < end)


@given(schedules, factors, shares, moments, st.integers(0, 100))
def test_the_rule_of_a_moment_has_that_moments_temperature_and_mix(schedule, warm, mix, epoch, step):
    rule = Surrogate.from_dict(
        {"gate": {"name": "sigmoid", "temperature": warm}, "mix": mix, "schedule": schedule.to_dict()}
    )
    now = rule.at(epoch, step)
    assert now.schedule == Schedule()
    assert now.at(3.0, 4) == now
    factor = 1.0 if schedule.temperature is None else schedule.temperature.at(epoch, step)
    assert now.gate.temperature == warm * factor
    assert now.pool.temperature == 0.3 * factor
    share = mix if schedule.mix is None else schedule.mix.at(epoch, step)
    assert now.mix == (share if schedule.on is None or schedule.on.at(epoch, step) else 0.0)


@given(schedules)
def test_a_schedule_comes_back_from_its_dict_from_json_and_from_pickle(schedule):
    rule = Surrogate(schedule=schedule)
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    assert Surrogate.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule


MIX = {"start": 0, "end": 1, "until": 5}


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        (3, ["surrogate.schedule=3", "a dict"]),
        ({"mixes": MIX}, ["surrogate.schedule=mixes", "mix, on, temperature"]),
        ({True: MIX}, ["YAML", "quotes"]),
        ({"mix": 3}, ["surrogate.schedule.mix=3", "{start: 0, end: 1, until: 5}"]),
        ({"on": "always"}, ["surrogate.schedule.on=always", "{begin: 0, until: 5}"]),
        ({"mix": {"start": 0, "end": 1}}, ["surrogate.schedule.mix=", "lacks until"]),
        ({"mix": MIX | {"stop": 2}}, ["surrogate.schedule.mix=stop", "allowed: begin, end"]),
        ({"mix": MIX | {"start": math.nan}}, ["surrogate.schedule.mix", "start=nan", "finite"]),
        ({"mix": MIX | {"until": None}}, ["surrogate.schedule.mix", "until=None", "finite"]),
        ({"mix": MIX | {"begin": None}}, ["surrogate.schedule.mix", "begin=None", "finite"]),
        ({"mix": MIX | {"until": "5"}}, ["surrogate.schedule.mix", "until=5", "finite"]),
        ({"mix": MIX | {"begin": 6}}, ["surrogate.schedule.mix", "begin=6, until=5", "0 <= begin <= until"]),
        ({"mix": MIX | {"begin": -1}}, ["surrogate.schedule.mix", "begin=-1", "0 <= begin"]),
        ({"mix": MIX | {"shape": "cosin"}}, ["shape=cosin", "constant, cosine, linear", "Did you mean 'cosine'"]),
        ({"mix": MIX | {"unit": "batch"}}, ["unit=batch", "epoch, step"]),
        ({"mix": MIX | {"end": 2}}, ["surrogate.schedule.mix", "2", "from 0 to 1"]),
        ({"temperature": MIX}, ["surrogate.schedule.temperature", "> 0"]),
        ({"on": {"begin": 3, "until": 2}}, ["surrogate.schedule.on", "begin=3, until=2"]),
        ({"on": {"until": math.inf}}, ["surrogate.schedule.on", "until=inf"]),
    ],
)
def test_a_mistake_in_plain_data_names_the_option_the_value_and_what_is_allowed(plain, said):
    with pytest.raises(SoftgateError) as error:
        Surrogate.from_dict({"schedule": plain})
    for words in said:
        assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"mix": 0.5}, {"temperature": Window()}, {"on": Ramp(0, 1, 5)}, {"on": True}])
def test_a_part_of_the_wrong_kind_is_refused_when_the_schedule_is_made(settings):
    with pytest.raises(SoftgateError, match=rf"surrogate\.schedule\.{next(iter(settings))}="):
        Schedule(**settings)


def test_a_temperature_schedule_needs_a_temperature():
    with pytest.raises(SoftgateError, match=r"surrogate\.schedule\.temperature: neither"):
        Surrogate.from_dict(
            {
                "gate": {"name": "hard"},
                "pool": {"name": "hard"},
                "schedule": {"temperature": {"start": 2, "end": 1, "until": 1}},
            }
        )
