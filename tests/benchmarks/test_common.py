"""What the benchmarks share."""

import json

import common


def test_a_report_prints_a_table_and_writes_it(tmp_path, capsys):
    rows = [{"network": "vit_b_16", "softgate": 1.23456, "count": 3}]
    common.report("time / vanilla", rows, tmp_path / "found.json")
    said = capsys.readouterr().out
    assert "vit_b_16" in said
    assert "1.235" in said
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == rows


def test_arms_are_timed_in_turn_and_compared_pair_by_pair():
    order = []
    times = common.alternate({name: (lambda name=name: order.append(name)) for name in "ab"}, 2)
    assert order == list("ababab")
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}
    assert common.ratio({"vanilla": [1.0, 2.0, 4.0], "soft": [2.0, 3.0, 4.0]}, "soft") == 1.5


def test_networks_of_blocks_have_arms_of_their_own():
    assert common.arms_of("vit_b_16") is common.BLOCK_ARMS
    assert common.arms_of("resnet18") is common.ARMS
