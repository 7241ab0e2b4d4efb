"""Whose class is it: by name, WNID, English name or number, for any subset in any order, and never in part."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softgate import SoftgateError
from softgate.classes import Classes, imagenet, match

NETWORK = Classes.imagenet()
SCHEMES = {
    "WNID": imagenet.wnids(),
    "WNID and name": [f"{wnid}-{name}" for wnid, name in zip(imagenet.wnids(), imagenet.names(), strict=True)],
    "name": imagenet.names(),
    "snake": [name.replace(" ", "_").replace("-", "_") for name in imagenet.names()],
    "number": [str(i) for i in range(1000)],
    "padded": [f"{i:04d}" for i in range(1000)],
}
"""How people call the folders of ImageNet's classes, in the order of the network's."""


def folders(names) -> Classes:
    """As a folder data set has them: sorted."""
    names = sorted(names)
    return Classes.of(names, names)


def test_the_table_of_wordnet_ids_is_in_the_networks_order():
    assert list(imagenet.wnids()) == sorted(set(imagenet.wnids()))
    assert len(imagenet.wnids()) == len(set(imagenet.names())) == 1000
    for wnid, name, number in (
        ("n01440764", "tench", 0),
        ("n01518878", "ostrich", 9),
        ("n02012849", "crane bird", 134),
        ("n02113186", "Cardigan", 264),
        ("n02963159", "cardigan", 474),
        ("n03126707", "crane", 517),
        ("n03888257", "parachute", 701),
        ("n15075141", "toilet tissue", 999),
    ):
        assert (imagenet.wnids()[number], imagenet.names()[number]) == (wnid, name)
        assert imagenet.index_of(wnid) == imagenet.index_of(name) == number


def test_imagenettes_classes_are_found_among_imagenets():
    from softgate.data.sources import IMAGENETTE, IMAGEWOOF

    expected = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    for names in (IMAGENETTE.keys(), IMAGENETTE.values()):
        assert match(Classes.of(list(names)), NETWORK, "x").indexes == expected
    names, wnids = (match(Classes.of(list(each)), NETWORK, "x") for each in (IMAGEWOOF.values(), IMAGEWOOF))
    assert names.indexes == wnids.indexes


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=12)
@given(chosen=st.sets(st.integers(0, 999), min_size=1, max_size=1000))
def test_any_part_of_imagenet_is_found_however_its_folders_are_called(scheme, chosen):
    called = {SCHEMES[scheme][i]: i for i in chosen}
    found = match(folders(called), NETWORK, "x")
    assert found.indexes == [called[name] for name in sorted(called)]
    assert str(found).startswith(f"{len(called)} of {len(called)} classes by ")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_thousand_are_found_and_not_by_their_order(scheme):
    called = {name: i for i, name in enumerate(SCHEMES[scheme])}
    found = match(folders(called), NETWORK, "x")
    assert found.whole
    assert found.indexes == [called[name] for name in sorted(called)]
    assert found.in_order == (scheme in ("WNID", "WNID and name", "padded"))


@given(st.permutations(["ant", "bee", "cat", "dog", "eel"]), st.integers(2, 5))
def test_the_same_names_are_found_in_any_order(names, count):
    found = match(Classes.of(names[:count]), Classes.of(["eel", "dog", "cat", "bee", "ant"]), "x")
    assert [["eel", "dog", "cat", "bee", "ant"][i] for i in found.indexes] == names[:count]
    assert found.by == "name"
    assert found.whole == (count == 5)


@pytest.mark.parametrize(
    ("scheme", "by"),
    [
        ("WNID", "WNID, such as n01440764 = tench"),
        ("WNID and name", "WNID, such as n01440764-tench = tench"),
        ("name", "name"),
        ("snake", "English name, such as great_white_shark = great white shark"),
        ("number", "integer index, such as 0 = tench"),
    ],
)
def test_the_match_is_one_line(scheme, by):
    some = folders([SCHEMES[scheme][i] for i in (0, 2, 3)])
    assert str(match(some, NETWORK, "x")) == f"3 of 3 classes by {by}"


def test_a_runs_english_names_and_a_folders_wordnet_ids_are_the_same_classes():
    wnids = folders(["n01440764", "n02102040", "n03888257"])
    run = Classes.of(["parachute", "tench", "English springer"])
    assert match(wnids, run, "x").indexes == [1, 2, 0]
    assert sorted(wnids.canonical()) == sorted(run.canonical())
    back = match(run, wnids, "x")
    assert (back.indexes, back.by) == ([2, 0, 1], "English name")


@pytest.mark.parametrize(
    ("wanted", "known", "said"),
    [
        (folders(["n01440764", "n01443537", "n99999999"]), NETWORK, "2 of 3 .* by name, and n99999999 are not"),
        (folders(["tench", "unicorn"]), NETWORK, "1 of 2 .* by name, and unicorn are not"),
        (folders(["0", "1000"]), NETWORK, "1 of 2 .* by integer index, and 1000 are not"),
        (
            folders(["ant x", "bee x"]),
            NETWORK,
            "none of the 2 classes, such as 'ant x', is found in the network, with 1000",
        ),
        (Classes.of(["0", "1"]), NETWORK, "none of the 2 classes, such as '0'"),  # digits are no indexes
        (folders(["cardigan", "TENCH"]), NETWORK, "'cardigan' may be Cardigan .264. and cardigan .474."),
        (folders(["Tench", "tench"]), Classes.of(["tench", "x"]), "Tench and tench are the same one there, tench"),
        (folders(["0", "00"]), NETWORK, "0 and 00 are the same one there, tench"),
        (folders(["0", "1"]), Classes.of(["goldfish", "tench"]), "'0' may be goldfish .0. and tench .1."),
        (folders(["a", "b"]), Classes.of(["c", "d"]), "none of the 2 classes"),
    ],
)
def test_a_match_in_part_or_of_two_meanings_is_refused(wanted, known, said):
    with pytest.raises(SoftgateError, match=rf"model\.weights=F: .*{said}") as caught:
        match(wanted, known, "model.weights=F")
    assert re.match(r"[^\n]+\.$", str(caught.value))


def test_numbers_mean_the_folders_of_that_number_or_else_the_place():
    assert match(folders(["07", "3"]), folders(["12", "3", "7"]), "x").indexes == [2, 1]
    assert match(folders(["2", "0"]), Classes.of(["ant", "bee", "cat"]), "x").indexes == [0, 2]
    assert match(folders(["217", "701"]), Classes.of(["tench", "English springer", "parachute"]), "x").indexes == [1, 2]
