"""Charts as files."""

import zlib
from xml.etree import ElementTree

import pytest
from PIL import Image

from softgate.figures import FORMATS
from softgate.figures.panels import Line, draw


@pytest.fixture(scope="module")
def chart():
    return draw({"accuracy": {"val": Line([(1, 0.5), (2, 0.7)])}}, "a title")


def test_every_format_is_written_the_same_each_time(chart):
    for kind in FORMATS:
        assert chart.encoded(kind) == chart.encoded(kind), kind
    with pytest.raises(ValueError, match="format jpg: one of png, pdf, svg"):
        chart.encoded("jpg")


def test_the_words_of_pdf_and_svg_files_are_words(chart, tmp_path):
    pdf, svg = chart.encoded("pdf"), chart.encoded("svg")
    assert pdf.startswith(b"%PDF")
    parts = [pdf]
    for part in pdf.split(b"stream\n")[1::2]:
        try:
            parts.append(zlib.decompress(part))
        except zlib.error:
            continue
    whole = b"".join(parts)
    assert b"/Type42" in whole or b"/FontFile2" in whole  # TrueType, embedded
    assert b"/Type3" not in whole
    assert "a title" in "".join(ElementTree.fromstring(svg).itertext())
    (tmp_path / "a.png").write_bytes(chart.encoded("png"))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (chart.width, chart.height)
