"""Grey images in one channel, end to end: trained, drawn, filmed, measured, attacked, resumed into an evaluation."""

import pytest
import torch
from PIL import Image

from compared import FEW
from configs import TINY, composed
from softgate import SoftgateError, SoftgateWarning, models
from softgate.evaluation import evaluate
from softgate.metrics.corruptions import FAMILIES, corrupt
from softgate.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep") / "run"
    more = ("callbacks=[default,alignment,paths]", "callbacks.alignment.images=20", "callbacks.alignment.few=2")
    train(composed(*TINY, "data.channels=1", *more, "callbacks.paths.images=20", directory=directory))
    return directory


def test_a_network_of_one_channel_trains_and_its_grids_and_film_are_grey(run):
    raw = torch.load(run / "grids" / "epoch=001.pt", weights_only=True)
    assert raw["images"].shape[1] == 1
    assert raw["soft"].shape[2] == raw["hard"].shape[2] == 1
    assert bool(raw["soft"].abs().sum() > 0)
    picture = Image.open(run / "grids" / "epoch=001.png").convert("RGB")
    assert picture.width > 100
    assert (run / "grids" / "film.png").is_file()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["hyper_parameters"]["model"]["channels"] == 1
    assert state["state_dict"]["net.conv1.weight"].shape[1] == 1


def test_it_is_evaluated_and_compared_with_every_measure(run, tmp_path):
    words = ("accelerator=cpu", "grid.kinds=[raw,ascent]", "grid.scale=seismic", "grid.rows=2", "grid.steps=1")
    (found,) = evaluate.evaluate(composed(f"runs={run}", *words, name="evaluate", directory=tmp_path / "one"))["runs"]
    assert found["acc"] > 0
    assert torch.load(tmp_path / "one" / "ascent.pt", weights_only=True)["images"].shape[1] == 1
    words = (f"runs={run.parent}/*", *FEW, "compare.corruptions.families=all", "compare.train_images=8")
    (found,) = evaluate.evaluate(composed(*words, name="evaluate", directory=tmp_path / "several"))["comparison"][
        "runs"
    ]
    for key in ("corrupted", "pgd_linf", "pgd_l2", "sharpness"):
        assert key in found["measures"]


def test_a_new_network_of_one_channel_does_what_that_of_three_does_with_a_grey_image():
    for name in ("resnet18", "squeezenet1_1", "vit_b_32"):
        torch.manual_seed(0)
        colour = models.build(name, 4).eval()
        torch.manual_seed(0)
        grey = models.build(name, 4, channels=1).eval()
        x = torch.rand(2, 1, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_weights_for_colours_are_added_up_and_said(tmp_path):
    colour = models.build("resnet18", 4)
    torch.save(colour.state_dict(), tmp_path / "w.pth")
    grey = models.build("resnet18", 4, channels=1)
    with pytest.warns(
        SoftgateWarning, match=r"model\.weights=.*: the weights take colours; the first layer's are added"
    ):
        models.load_weights(grey, "resnet18", str(tmp_path / "w.pth"), 4)
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey.eval()(x), colour.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)
    with pytest.raises(SoftgateError, match=r"data\.channels=1: the published weights of googlenet take three"):
        models.build("googlenet", 4, transform_input=True, channels=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_corruption_takes_grey_images(family):
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = corrupt(x, family, 3)
    assert found.shape == x.shape
    assert not torch.equal(found, x)
