"""What results say of themselves: a line without numbers of tensors, and a picture or a table in a notebook."""

import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import softgate as sg
from classifier import Classifier
from softgate import grids
from softgate.display import brief
from softgate.figures.ascent import ascent


@pytest.fixture
def looked_at():
    torch.manual_seed(0)
    model, x = Classifier(), torch.randn(2, 3, 12, 12).clamp(-1, 1)
    return {
        "Ascent": sg.ascend(model, x, [0, 1], sg.Surrogate(), steps=2),
        "Accentuation": sg.accentuate(model, x, [0, 1], None, sg.AccentuationSettings(steps=1, crops=1)),
        "Grid": grids.read(model, x, [0, 1], [1, 2, 3], {"gradient": None, "soft": sg.Surrogate()}),
        "Gates": sg.paths.record(model, x),
    }


def test_a_result_is_one_short_line_with_shapes(looked_at):
    for name, found in looked_at.items():
        words = repr(found)
        assert words.startswith(f"{name}(")
        assert len(words) < 500
        assert "\n" not in words
        assert "tensor(" not in words
    assert "image=[2, 2, 3, 12, 12] float32" in repr(looked_at["Ascent"])
    assert "targets=[1, 2, 3]" in repr(looked_at["Grid"])
    assert "readings={gradient, soft}" in repr(looked_at["Grid"])
    assert brief(list(range(1000))) == "[0, 1, 2, 3, 4, 5, 6, 7, and 992 more]"


def test_a_notebook_shows_grids_and_ascents_as_pictures(looked_at):
    for name in ("Grid", "Accentuation", "Ascent"):
        picture = Image.open(io.BytesIO(looked_at[name]._repr_png_()))
        assert picture.format == "PNG"
        assert min(picture.size) > 100
    assert np.array_equal(np.asarray(picture), np.asarray(drawn(looked_at["Ascent"])))


def drawn(found):
    parts = (found.image, found.difference, found.logits, found.predicted)
    return ascent(*(part.numpy() for part in parts), found.bounds)


def test_an_ascent_of_one_target_of_many_grey_images_is_shown_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    found = sg.ascend(model, torch.rand(6, 1, 8, 8), 0, sg.Surrogate(), steps=1, bounds=(0, 1))
    assert found.bounds == (0.0, 1.0)
    few = sg.ascend(model, torch.rand(4, 1, 8, 8), 0, sg.Surrogate(), steps=1, bounds=(0, 1))
    heights = [Image.open(io.BytesIO(each._repr_png_())).height for each in (found, few)]
    assert 0 < heights[0] - heights[1] < 50  # no more rows, and a line that says so


class Words(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.cells.append(data)


def test_sites_are_a_collection_by_place_and_by_name():
    with sg.attach(Classifier(), sg.Surrogate()) as sites:
        assert [site.name for site in sites] == [site.name for site in sites.table()]
        assert len(sites) == 3
        assert sites[0] is sites["body.2"] is next(iter(sites))
        assert sites[-1].kind == "relu"
        assert "body.2" in sites
        assert sites[1] in sites
        assert "body.9" not in sites
        with pytest.raises(sg.SoftgateError, match=r"sites\['body\.9'\].* nearest of 3 .*body\.2"):
            sites["body.9"]
        with pytest.raises(IndexError):
            sites[3]
        words = repr(sites)
        assert words.startswith("Sites(Classifier, attached, 3 of 3 covered: 2 relu, 1 max_pool2d, rule=Surrogate(")
    assert "detached" in repr(sites)


def test_sites_without_any_known_are_there_nevertheless():
    class Odd(nn.Module):
        def forward(self, x):
            return x.relu() if x.sum() > 0 else x

    with sg.attach(Odd(), sg.Surrogate()) as sites:
        assert sites
        assert len(sites) == 0
        assert sg.pullback  # a look at it goes through the same sites
        assert "0 of 0 covered" in sites._repr_html_()


def test_a_notebook_shows_the_coverage_table_and_nothing_of_a_model_is_markup():
    evil = "<img src=x onerror=alert(1)>&"
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module(evil, nn.ReLU())
    with sg.attach(model, sg.Surrogate()) as sites:
        page = Words(sites._repr_html_())
    assert page.cells.count(evil) == 1
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td", "p", "br"}
    assert [cell for cell in page.cells if cell.strip()][:8] == [
        "call site",
        "kind",
        "calls",
        "covered",
        evil,
        "relu",
        "0",
        "yes",
    ]
