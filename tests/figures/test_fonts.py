"""Letters of any script: which font draws them, and what stands for those that none has."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from softgate import SoftgateWarning
from softgate.figures import fonts
from softgate.grids.sheet import Sheet, width_of, wrap

ODD = "\U00013000"
"""An Egyptian hieroglyph, which few fonts have."""


@pytest.fixture
def font(tmp_path):
    """A font with one letter, a black square, among those that matplotlib knows for the time of a test."""
    pen = TTGlyphPen(None)
    for place, point in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    built = FontBuilder(1000, isTTF=True)
    built.setupGlyphOrder([".notdef", "square"])
    built.setupCharacterMap({ord(ODD): "square"})
    built.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    built.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    built.setupHorizontalHeader(ascent=1000, descent=0)
    built.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    built.setupOS2()
    built.setupPost()
    path = tmp_path / "squares.ttf"
    built.save(path)
    every, font_manager.fontManager.ttflist = font_manager.fontManager.ttflist, []
    font_manager.fontManager.addfont(path)
    fonts.forget()
    yield str(path)
    font_manager.fontManager.ttflist = every
    fonts.forget()


def test_a_letter_that_matplotlibs_own_typeface_lacks_is_drawn_in_a_font_that_has_it(font):
    assert fonts.runs(f"a {ODD} b") == [("a ", fonts.own()), (f"{ODD} ", font), ("b", fonts.own())]
    assert fonts.replaced(f"a{ODD}") == f"a{ODD}"
    assert fonts.readable(["a", ODD]) == (["a", ODD], [fonts.OWN, "Squares"])
    sheet = Sheet(60, 40)
    sheet.words(ODD, 10, 10, size=20)
    dark = np.asarray(sheet.image)[..., 0] < 50
    assert 300 <= dark.sum() <= 500  # a square of twenty pixels, and no box of lines
    assert width_of(ODD, 20) == pytest.approx(20, abs=1)


def test_a_letter_that_no_font_has_is_written_as_its_number_with_one_warning(monkeypatch):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    fonts.forget()
    with pytest.warns(SoftgateWarning, match=r"no installed font has .*U\+13000; install a font that has it"):
        shown = fonts.replaced(f"cat {ODD}{ODD}")
    assert shown == "cat U+13000 U+13000"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fonts.replaced(ODD) == "U+13000"
        assert wrap(ODD, 500, 1) == ["U+13000"]
        assert fonts.readable([ODD])[1] == [fonts.OWN]
    fonts.forget()


def test_the_package_to_install_is_that_of_the_script(monkeypatch):
    fonts.forget()
    monkeypatch.setattr(fonts, "file_of", lambda letter, bold=False: fonts.own() if letter.isascii() else None)
    for letter, package in (("猫", "noto-cjk"), ("ね", "noto-cjk"), ("고", "noto-cjk"), ("ክ", "noto-core")):
        fonts._said.clear()
        with pytest.warns(SoftgateWarning, match=package):
            fonts.replaced(letter)
    fonts._said.clear()


def test_words_of_matplotlibs_own_typeface_need_no_other():
    for words in ("Chesapeake Bay retriever", "кот", "γάτα", "±0.3 → ↑"):
        assert fonts.runs(words) == [(words, fonts.own())]
        assert fonts.replaced(words) == words
