"""Which classes are taken for which."""

import csv

import torch
from hypothesis import given
from hypothesis import strategies as st

from softgate.evaluation.confusion import OTHER, Confusion, Tally, tallied


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_counts_are_those_of_a_loop_over_the_images(seed, images):
    made = torch.Generator().manual_seed(seed)
    indexes = [5, 0, 3]  # of a network of seven classes
    logits = torch.randn(images, 7, generator=made)
    labels = torch.randint(0, 3, (images,), generator=made)
    expected = torch.zeros(3, 4, dtype=torch.long)
    for row, label in zip(logits, labels, strict=True):
        said = int(row.argmax())
        expected[label, indexes.index(said) if said in indexes else 3] += 1
    tally = Tally(indexes, 7)
    for part in (slice(0, 7), slice(7, None)):
        if len(logits[part]):
            tally.update(logits[part], labels[part])
    assert torch.equal(tally.counts(), expected)


def test_a_network_of_the_datas_own_classes_says_no_other():
    counts = tallied(torch.eye(3), torch.tensor([0, 1, 1]))
    assert counts.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    found = Confusion(["a", "b", "c"], counts)
    assert found.accuracies == [1.0, 0.5, None]
    assert found.columns == ["a", "b", "c"]
    assert found.sentences() == ["b for c: 1 of 2, 50.0 %"]
    assert found.classes().texts == [
        ["a", "1", "100 %", "–"],
        ["b", "2", "50.0 %", "c, 1"],
        ["c", "0", "–", "–"],
    ]
    assert [row[0] for row in found.lowest().rows] == ["b", "a"]


def test_files_and_results_hold_the_counts(tmp_path):
    counts = torch.tensor([[3, 1, 2], [0, 4, 0]])
    found = Confusion(["crane", "crane"], counts)  # two of ImageNet's classes share this name
    found.write(tmp_path / "new", "title")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        *("classes.csv", "confusion.csv", "confusion.png")
    ]
    with (tmp_path / "new" / "confusion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [[int(value) for value in list(row.values())[1:]] for row in rows] == counts.tolist()
    plain = found.plain()
    assert plain["matrix"] == counts.tolist()
    assert plain["predicted"] == ["crane", "crane", OTHER]
    assert [each["acc"] for each in plain["classes"]] == [0.5, 1.0]
    assert plain["worst_pairs"][0] == {"true": "crane", "predicted": OTHER, "images": 2, "share": 2 / 6}


def test_of_a_thousand_classes_only_the_csv_file_has_the_matrix():
    counts = torch.cat([torch.eye(1000, dtype=torch.long), torch.zeros(1000, 1, dtype=torch.long)], 1)
    assert "matrix" not in Confusion(list(map(str, range(1000))), counts).plain()
