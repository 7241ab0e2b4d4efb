"""`evaluate.py` on one run or network: what it measures and draws, which checkpoints it refuses."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from configs import TINY, composed, container
from softgate import SoftgateError
from softgate.evaluation import evaluate
from softgate.evaluation.checkpoints import find_checkpoint
from softgate.training import build
from softgate.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    train(composed(*TINY, "trainer.max_epochs=1", directory=directory))
    return directory


def evaluated(directory: Path, *words: str) -> dict:
    return evaluate.evaluate(composed(*words, name="evaluate", directory=directory))


def test_a_run_and_its_checkpoint_evaluate_alike(run, tmp_path):
    by_run = evaluated(tmp_path / "a", f"runs={run}")
    by_file = evaluated(tmp_path / "b", f"runs='{run}/checkpoints/best.ckpt'")
    assert by_run == by_file
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == by_run
    assert (tmp_path / "a" / "grid.png").stat().st_size > 1000
    scores = by_run["runs"][0]
    assert scores["images"] == 359
    assert 0 <= scores["ece"] <= 1


def test_evaluation_agrees_with_a_plain_loop(run, tmp_path):
    scores = evaluated(tmp_path, f"runs={run}")["runs"][0]
    module, options = evaluate.restore(run / "checkpoints" / "best.ckpt")
    data = build.ImageData(options)
    data.setup("validate")
    module.eval()
    with torch.no_grad():
        pairs = [(module.net(x), y) for x, y in data.val_dataloader()]
    logits, labels = (torch.cat(t) for t in zip(*pairs, strict=True))
    assert scores["acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert scores["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    assert scores["acc5"] == pytest.approx(top5, abs=1e-6)
    confidence, predicted = logits.softmax(1).max(1)
    bins = (confidence * 15).ceil().clamp(1, 15)
    ece = sum(
        (bins == b).float().mean()
        * ((predicted == labels)[bins == b].float().mean() - confidence[bins == b].mean()).abs()
        for b in bins.unique()
    )
    assert scores["ece"] == pytest.approx(float(ece), abs=1e-5)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("runs=null", "runs is not set"),
        ("runs=nowhere", "runs=nowhere: there is no such file or directory"),
        ("checkpoint=first", "checkpoint=first.*allowed: best, last"),
        ("accelerator=tpu", "accelerator=tpu"),
        ("readout.mix=3", r"readout: surrogate\.mix=3"),
        ("grid.targets=11", r"grid\.targets=11: a whole number from 5 to 10"),
        ("grid.rows=11", r"grid\.rows=11: the data has 10 classes"),
        ("grid.kinds=[row]", r"grid\.kinds=row.*Did you mean 'raw'"),
        ("grid.scale=big", r"grid\.scale=big"),
        ("grid.explainers=[smothgrad]", r"grid\.explainers=smothgrad.*Did you mean 'smoothgrad'"),
        ("grid.chunk=0", r"grid\.chunk=0"),
        ("grid.steps=0", r"grid\.steps=0"),
        ("grid.radius=-1", r"grid\.radius=-1"),
        ("model=resnet18", r"runs and model: only one of them"),
    ],
)
def test_a_wrong_evaluation_is_one_sentence(run, tmp_path, word, message):
    with pytest.raises(SoftgateError, match=message):
        evaluated(tmp_path, f"runs={run}", word)


NETTE = ["tench", "church", "golf ball"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:

    root = tmp_path_factory.mktemp("images")
    for k, name in enumerate(NETTE):
        for i in range(2):
            path = root / "val" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 60 + 20 * k).convert("RGB").save(path)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return path


def test_a_network_of_a_thousand_classes_is_read_out_on_data_of_three(photographs, weights, tmp_path):
    words = (
        "data=folder",
        f"data.root={photographs}",
        "data.size=32",
        "model=squeezenet1_1",
        f"model.weights={weights}",
    )
    quick = ("grid.accentuation.steps=1", "grid.accentuation.crops=1", "grid.accentuation.layer=features.4")
    more = ("grid.kinds=[raw,ascent,accentuation]", "grid.explainers=[guided_backprop]", "grid.steps=1", *quick)
    (found,) = evaluated(tmp_path, *words, *more)["runs"]
    raw = torch.load(tmp_path / "grid.pt", weights_only=True)
    assert sorted(raw["labels"]) == [0, 497, 574]  # tench, church, golf ball
    assert raw["targets"][:4] == [*raw["labels"], 9]  # and ostrich
    assert len(raw["targets"]) == 6
    assert raw["guided_backprop"].shape == raw["soft"].shape == (3, 6, 3, 32, 32)
    assert torch.load(tmp_path / "ascent.pt", weights_only=True)["kind"] == "ascent"
    accentuated = torch.load(tmp_path / "accentuation.pt", weights_only=True)
    assert accentuated["settings"]["passes"] == 4
    assert accentuated["soft"].abs().max() > 0
    for name in ("grid.png", "ascent.png", "accentuation.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert 0 <= found["acc"] <= found["acc_among_data_classes"] <= 1


def test_weights_of_another_network_are_refused_before_anything_is_drawn(photographs, weights, tmp_path):
    words = ("data=folder", f"data.root={photographs}", "data.size=32", "model=squeezenet1_1")
    for given, said in ((weights, "not the weights of resnet18"), ("nowhere.pth", "no such file")):
        with pytest.raises(SoftgateError, match=said):
            evaluated(tmp_path, *words, f"model.weights={given}", "models=[squeezenet1_1,resnet18]")
    assert not list(tmp_path.rglob("*.png"))


def test_the_paper_figures_in_one_go(photographs, weights, tmp_path):
    words = ("experiment=paper_figures", "data=folder", f"data.root={photographs}", "data.size=32")
    evaluated(tmp_path, *words, "models=[squeezenet1_1]", f"model.weights={weights}", "grid.steps=2", "grid.targets=4")
    blocks = {1: (True, False), 2: (True, True), 3: (True, False), 4: (False, True)}
    for k in blocks:
        assert (tmp_path / f"figure{k}.png").stat().st_size > 1000
        raw = torch.load(tmp_path / f"figure{k}-squeezenet1_1.pt", weights_only=True)
        assert ("soft" in raw, "hard" in raw) == {
            1: (True, False),
            2: (True, True),
            3: (True, False),
            4: (False, True),
        }[k]
        assert raw["settings"]["steps"] == (5 if k == 1 else 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=squeezenet1_1",), "data is not chosen"),
        (("data=folder", "model=inception_v3"), r"data\.size=32: model=inception_v3 does not take images of that size"),
        (("data=folder", "model=squeezenet1_1", "grid.targets=4"), r"grid\.targets=4: a whole number from 3 to 3"),
        (("data=folder", "models=[resnet81]", "model=resnet18"), "model.name=resnet81.*Did you mean 'resnet18'"),
        (
            ("data=digits", "model=squeezenet1_1", "model.weights=FILE"),
            "none of the 10 classes, such as '0', is found in the weights, with 1000",
        ),
    ],
)
def test_a_network_that_does_not_fit_its_images_is_one_sentence(photographs, weights, tmp_path, words, message):
    words = [word.replace("FILE", str(weights)) for word in words]
    if "data=folder" in words:
        words += [f"data.root={photographs}"]
    if any(word.startswith("data=") for word in words):
        words += ["data.size=32"]
    with pytest.raises(SoftgateError, match=message):
        evaluated(tmp_path, *words)


def test_published_weights_are_looked_at_in_their_own_size_unless_another_is_typed(tmp_path):
    from softgate.evaluation import config, networks

    words = ("model=resnet50", "model.weights=IMAGENET1K_V1", "data=imagenette")
    for more, expected in (((), 224), (("data.size=160",), 160)):
        asked = config.options(composed(*words, *more, name="evaluate", directory=tmp_path))
        assert networks.image_size(asked.networks[0], asked.data) == expected
    asked = config.options(composed(*words, "models=[inception_v3]", name="evaluate", directory=tmp_path))
    assert networks.image_size(asked.networks[0], asked.data) == 299


def test_three_classes_evaluate_without_further_options(tmp_path):

    for split in ("train", "val"):
        for k, name in enumerate("abc"):
            for i in range(8):
                path = tmp_path / "images" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (80 * k, 10 * i, 0)).save(path)
    words = ("data=folder", f"data.root={tmp_path}/images", "data.size=16", "trainer.max_epochs=1")
    train(composed(*TINY, *words, directory=tmp_path / "run"))
    results = evaluated(tmp_path / "out", f"runs={tmp_path}/run")
    assert "acc5" not in results["runs"][0]
    assert (tmp_path / "out" / "grid.png").is_file()


def test_a_run_is_named_after_its_network_also_where_it_is_chosen_by_name():
    assert container("model.name=vgg16", directory=Path("x"))["name"] == "digits-vgg16-excitation"


def test_a_damaged_a_foreign_and_an_executable_checkpoint_are_refused(run, tmp_path):
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({"hyper_parameters": Path("x")}, tmp_path / "code.ckpt")
    said = {
        "cut": "not a checkpoint",
        "text": "not a checkpoint",
        "foreign": "not a checkpoint",
        "code": "it names code",
    }
    for name, words in said.items():
        with pytest.raises(SoftgateError, match=rf"runs=.*{name}\.ckpt: {words}") as caught:
            evaluate.restore(tmp_path / f"{name}.ckpt")
        assert "weights_only" not in str(caught.value)


def test_a_directory_that_is_no_run_is_named(tmp_path):
    with pytest.raises(SoftgateError, match=r"has no checkpoints/best\.ckpt; is it a run's directory"):
        find_checkpoint(str(tmp_path), "best")


def test_a_layer_that_the_network_lacks_is_named_as_it_was_typed(photographs, weights, tmp_path):
    images = ("data=folder", f"data.root={photographs}", "data.size=32")
    words = (*images, "model=squeezenet1_1", f"model.weights={weights}", "measure=false", "grid.kinds=[accentuation]")
    with pytest.raises(SoftgateError, match=r"^grid\.accentuation\.layer=fetures\.4: the model has no such layer"):
        evaluated(tmp_path, *words, "grid.accentuation.layer=fetures.4")
