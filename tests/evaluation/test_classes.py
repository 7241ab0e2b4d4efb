"""Classes are who they are called, in whatever number and order they come: in networks, runs and other test sets."""

import json
import shutil

import pytest
import torch
import torchvision
from PIL import Image

import finished_sweep as finished
from compared import CHEAP, FEW, evaluated
from softgate import SoftgateError, models
from softgate.classes import Classes, imagenet
from softgate.data import ImageData
from softgate.data.config import DataConfig
from softgate.evaluation import evaluate, networks
from softgate.evaluation.generalization import measures
from softgate.models import NetworkConfig

DATA = {"name": "folder", "size": 32, "batch_size": 64, "num_workers": 0, "mean": [0.5] * 3, "std": [0.5] * 3}
NAMINGS = {"WNID": imagenet.wnids(), "integer index": [str(i) for i in range(1000)], "name": imagenet.names()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return path


def folders(root, naming, numbers):
    """One image for each of ImageNet's classes of these numbers, of colours of its own."""
    for number in numbers:
        place = root / "val" / NAMINGS[naming][number]
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number % 251, number % 83, number % 37)).save(place / "0.png")
    return root


@pytest.mark.parametrize("name", ["folder", "imagenet"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_a_published_networks_thousand_classes_are_found_in_folders_of_any_naming(tmp_path, weights, naming, name):
    root = folders(tmp_path, naming, range(1000))
    data = ImageData({**DATA, "name": name, "root": str(root)}, splits=("val",))
    subject = networks.build(NetworkConfig(name="squeezenet1_1", weights=str(weights)), data)
    assert sorted(subject.classes) == list(range(1000))
    for path, label in zip(data.val_listing.items, data.val_listing.labels.tolist(), strict=True):
        assert path.parent.name == NAMINGS[naming][subject.classes[label]]
    by = "name" if (naming, name) == ("name", "folder") else naming
    assert str(subject.found).startswith(f"1000 of 1000 classes by {by}")


def test_the_same_images_give_the_same_numbers_however_their_folders_are_called(tmp_path, weights, capsys):
    found = {}
    some = [0, 9, 134, 264, 474, 517, 701, 999]
    for naming in NAMINGS:
        root = folders(tmp_path / naming, naming, some)
        words = (
            "data=folder",
            f"data.root='{root}'",
            "data.size=32",
            "model=squeezenet1_1",
            f"model.weights={weights}",
        )
        (found[naming],) = evaluated(tmp_path / f"{naming} out", *words, *FEW)["runs"]
        assert f"classes: {found[naming]['classes']}\n" in capsys.readouterr().out
        raw = torch.load(tmp_path / f"{naming} out" / "grid.pt", weights_only=True)
        assert set(raw["labels"]) <= set(some)
    assert {each["classes"].partition(",")[0] for each in found.values()} == {
        f"8 of 8 classes by {by}" for by in NAMINGS
    }
    assert len({(each["acc"], each["acc_among_data_classes"]) for each in found.values()}) == 1
    assert found["WNID"]["acc_among_data_classes"] > 0


def test_a_file_that_does_not_say_its_classes_is_not_taken_for_the_datas(tmp_path):
    root = finished.images(tmp_path / "images")
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=4).state_dict(), path)
    data = ImageData({**DATA, "root": str(root)}, splits=("val",))
    asked = {"name": "squeezenet1_1", "weights": str(path)}
    with pytest.raises(SoftgateError, match=r"model\.weights=.*w\.pth: the file does not say which its 4 classes are"):
        networks.build(NetworkConfig(**asked), data)
    assert networks.build(NetworkConfig(**asked, classes="data"), data).classes == [0, 1, 2, 3]
    assert networks.build(NetworkConfig(**asked, classes=("d", "c", "a", "b")), data).classes == [2, 3, 1, 0]
    for classes, said in (
        (("a", "b"), "2 classes, and the weights have 4"),
        ("imagenet", "1000 classes, and the weig"),
    ):
        with pytest.raises(SoftgateError, match=rf"model\.classes=.*: {said}"):
            networks.build(NetworkConfig(**asked, classes=classes), data)
    with pytest.raises(SoftgateError, match="3 of 4 classes are found in the weights by name, and d are not"):
        networks.build(NetworkConfig(**asked, classes=("a", "b", "c", "x")), data)


def test_a_checkpoint_that_names_more_classes_than_it_has_names_none(tmp_path):
    state = {f"net.{k}": v for k, v in torchvision.models.resnet18(num_classes=2).state_dict().items()}
    content = {"state_dict": state, "hyper_parameters": {"classes": ["a", "b", "c"]}}
    torch.save(content, tmp_path / "run.ckpt")
    network = NetworkConfig(name="resnet18", weights=str(tmp_path / "run.ckpt"))
    net = models.build("resnet18", 2)
    with pytest.raises(SoftgateError, match="does not say which its 2 classes are"):
        models.begin_with(net, network, Classes.of(["c", "a"]))


def test_training_begins_with_each_class_at_its_own_row_of_the_last_layer(tmp_path):
    given = torchvision.models.resnet18(num_classes=4)
    names = ["d", "a", "c", "b"]
    content = {
        "state_dict": {f"net.{k}": v for k, v in given.state_dict().items()},
        "hyper_parameters": {"classes": names},
    }
    torch.save(content, tmp_path / "run.ckpt")
    asked = {"name": "resnet18", "weights": str(tmp_path / "run.ckpt")}

    def begun(classes, **more):
        net = models.build("resnet18", len(classes))
        fresh = net.fc.weight.clone()
        found = models.begin_with(net, NetworkConfig(**asked, **more), Classes.of(classes))
        assert torch.equal(net.conv1.weight, given.conv1.weight)
        return net.fc, found, torch.equal(net.fc.weight, fresh)

    head, found, _ = begun(["a", "b", "c", "d"])
    assert torch.equal(head.weight, given.fc.weight[[1, 3, 2, 0]])
    assert torch.equal(head.bias, given.fc.bias[[1, 3, 2, 0]])
    assert str(found) == "4 of 4 classes by name"
    head, _, _ = begun(["a", "b", "c", "d"], new_head=True)
    assert torch.equal(head.weight, given.fc.weight[[1, 3, 2, 0]])
    head, _, _ = begun(["c", "d"])
    assert torch.equal(head.weight, given.fc.weight[[2, 0]])
    for classes in (["a", "b", "c", "x"], ["x", "y"], ["c", "d"]):
        _, found, fresh = begun(classes, new_head=True)
        assert fresh
        assert found is None
    for classes, said in ((["a", "b", "c", "x"], "and x are not"), (["x", "y"], "none of the 2 classes")):
        with pytest.raises(SoftgateError, match=rf"{said}.*; model\.new_head=true trains a new last layer"):
            begun(classes)


def test_the_last_layer_is_found_in_every_kind_of_network():
    for name, keys in (
        ("resnet18", ("fc.weight", "fc.bias")),
        ("squeezenet1_1", ("classifier.1.weight", "classifier.1.bias")),
        ("googlenet", ("fc.weight", "fc.bias")),
        ("densenet121", ("classifier.weight", "classifier.bias")),
        ("swin_t", ("head.weight", "head.bias")),
    ):
        state = torch.get_rng_state()
        assert models.head(name) == keys
        assert torch.equal(state, torch.get_rng_state())


# -- runs ---------------------------------------------------------------------------------------------------


def reordered(run, classes):
    """Gives a run's network other numbers, or names, for its classes; what it says of an image stays."""
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        content = torch.load(path, weights_only=True)
        order = [finished.CLASSES.index(c) for c in classes]
        for key in ("net.classifier.1.weight", "net.classifier.1.bias"):
            content["state_dict"][key] = content["state_dict"][key][order]
        content["hyper_parameters"]["classes"] = list(classes)
        torch.save(content, path)


def test_a_run_is_measured_by_its_classes_names_and_not_by_their_numbers(images, tmp_path):
    data = finished.options(images)
    numbers = {}
    for order in ("abcd", "dbac"):
        run = finished.run(tmp_path / order, data, "none", 0)
        reordered(run, order)
        (numbers[order],) = evaluated(tmp_path / f"{order} out", f"runs={run}", *FEW, "grid.targets=3")["runs"]
    measured = [{key: each[key] for key in ("acc", "loss", "ece", "classes")} for each in numbers.values()]
    assert measured[0] == pytest.approx(measured[1])
    assert measured[0]["classes"] == "4 of 4 classes by name"


def test_a_run_is_measured_on_some_of_its_classes(images, tmp_path):
    run = finished.run(tmp_path / "run", finished.options(images), "none", 0)
    shutil.copytree(images, tmp_path / "some")
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "some" / split / "b")
    (found,) = evaluated(tmp_path / "out", f"runs={run}", f"data.root={tmp_path}/some", *FEW, "grid.targets=2")["runs"]
    assert found["classes"] == "3 of 3 classes by name"
    module, options = evaluate.restore(run / "checkpoints" / "best.ckpt")
    whole = ImageData(options, splits=("val",))
    whole.setup("validate")
    x, labels = whole.sample(99, 0)
    keep = labels != 1
    right = module.eval()(x[keep]).argmax(1) == labels[keep]
    assert found["acc"] == pytest.approx(float(right.float().mean()))
    for split in ("train", "val"):
        (tmp_path / "some" / split / "d").rename(tmp_path / "some" / split / "z")
    with pytest.raises(
        SoftgateError, match=r"data\.root=.*: 2 of 3 classes are found in .*best\.ckpt by name, and z are not"
    ):
        evaluated(tmp_path / "out", f"runs={run}", f"data.root={tmp_path}/some", *FEW)


def test_runs_whose_classes_have_other_numbers_are_compared_by_their_names(images, tmp_path):
    data = finished.options(images)
    for arm in ("none", "excitation"):
        finished.run(tmp_path / "same" / arm, data, arm, 0)
        reordered(finished.run(tmp_path / "other" / arm, data, arm, 0), "abcd" if arm == "none" else "cadb")
    found = {}
    for name in ("same", "other"):
        words = (*FEW, *CHEAP, "compare.grids=true", "compare.train_images=null")
        found[name] = evaluated(tmp_path / f"{name} out", f"runs={tmp_path}/{name}/*", *words)["comparison"]
    numbers = [[run["measures"] for run in each["runs"]] for each in found.values()]
    for mine, other in zip(*numbers, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert any("excitation: 4 of 4 classes by name, put in the order" in note for note in found["other"]["notes"])
    assert not any("put in the order" in note for note in found["same"]["notes"])
    json.dumps(found["other"])


def test_another_test_set_may_call_classes_by_wordnet_ids(tmp_path):
    classes = ["n01440764", "n02102040", "n03888257"]
    names = ["English springer", "parachute", "tench"]
    finished.images(tmp_path / "data", splits=("val",), classes=names)
    finished.images(tmp_path / "other", splits=("shift",), classes=classes, count=2)
    data = ImageData(DataConfig.read({**DATA, "root": str(tmp_path / "data")}), splits=("val",))
    from softgate.data.sources import class_folders

    listing, found = measures.of_classes(class_folders(tmp_path / "other" / "shift", "x"), data, "x")
    assert listing.labels.tolist() == [2, 2, 0, 0, 1, 1]
    assert found.by == "English name"
