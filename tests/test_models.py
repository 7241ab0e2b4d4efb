"""Backbones by name, stems, weights from files."""

import re

import pytest
import torch
import torchvision
from torch import nn

import softgate as sg
from softgate import SoftgateError, models
from softgate.models import small_images
from softgate.models.scalable import Scale


def test_small_stem_keeps_resolution_and_the_max_pool():
    net = models.build("resnet18", 10, "small")
    assert net.conv1.stride == (1, 1)
    assert net.conv1.kernel_size == (3, 3)
    assert isinstance(net.maxpool, nn.MaxPool2d)
    assert isinstance(models.build("resnet18", 10, "cifar").maxpool, nn.Identity)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "densenet121", "squeezenet1_1", "googlenet"])
def test_small_stem_of_every_model_group_takes_32_pixels(name):
    net = models.build(name, 7, "small")
    models.check_size(net, name, 32)
    assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_auxiliary_heads_are_off():
    assert models.build("googlenet", 10).train()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize(
    ("stem", "size", "weights", "expected"),
    [
        ("auto", 95, None, "small"),
        ("auto", 96, None, "imagenet"),
        ("auto", 64, "IMAGENET1K_V1", "imagenet"),
        ("cifar", 224, None, "cifar"),
    ],
)
def test_auto_stem_is_small_only_for_small_images_without_published_weights(stem, size, weights, expected):
    assert models.resolve_stem(stem, size, weights) == expected


def test_weights_from_a_file_arrive_unchanged(tmp_path):
    source = torchvision.models.squeezenet1_1(num_classes=4)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = models.build("squeezenet1_1", 4)
    models.load_weights(net, "squeezenet1_1", str(tmp_path / "w.pth"), 4)
    for key, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[key], value)


def test_old_files_without_the_batch_counter_load(tmp_path):
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches_tracked" not in k}, tmp_path / "w.pth")
    models.load_weights(models.build("resnet18", 3), "resnet18", str(tmp_path / "w.pth"), 3)


def test_another_number_of_classes_needs_new_head_and_keeps_the_rest(tmp_path):
    source = torchvision.models.resnet18(num_classes=4)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = models.build("resnet18", 10)
    with pytest.raises(SoftgateError, match=r"4 classes and the data has 10; set model\.new_head=true"):
        models.load_weights(net, "resnet18", str(tmp_path / "w.pth"), 10)
    head = net.fc.weight.clone()
    models.load_weights(net, "resnet18", str(tmp_path / "w.pth"), 10, new_head=True)
    assert torch.equal(net.fc.weight, head)
    assert torch.equal(net.conv1.weight, source.conv1.weight)


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), tmp_path / "w.pth")
    with pytest.raises(SoftgateError, match="not the weights of squeezenet1_1"):
        models.load_weights(models.build("squeezenet1_1", 4), "squeezenet1_1", str(tmp_path / "w.pth"), 4)


def test_weights_for_another_stem_say_which_stem_they_need(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), tmp_path / "w.pth")
    with pytest.raises(SoftgateError, match=r"conv1\.weight.*model\.stem must be"):
        models.load_weights(models.build("resnet18", 4, "small"), "resnet18", str(tmp_path / "w.pth"), 4)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"# softgate\n\nnot a checkpoint")
    torch.save({"a": 1}, tmp_path / "b.pth")
    good = tmp_path / "c.pth"
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), good)
    good.write_bytes(good.read_bytes()[:1000])
    for file in ("a.pth", "b.pth", "c.pth"):
        with pytest.raises(SoftgateError, match=r"model\.weights=.*" + file):
            models.load_weights(models.build("resnet18", 4), "resnet18", str(tmp_path / file), 4)


def test_unknown_weights_name_lists_the_known_ones():
    with pytest.raises(SoftgateError, match="no such file, and resnet50 has only IMAGENET1K_V1, IMAGENET1K_V2"):
        models.load_weights(models.build("resnet50", 4), "resnet50", "IMAGENET", 4)


def test_published_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(SoftgateError, match=r"model\.weights=DEFAULT: https://.*no route to host"):
        models.load_weights(models.build("resnet18", 1000), "resnet18", "DEFAULT", 1000)


def test_the_old_names_in_densenets_published_files_are_understood(tmp_path):
    state = torchvision.models.densenet121(num_classes=4).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key): value for key, value in state.items()}
    assert any("norm.1.weight" in key for key in old)
    torch.save(old, tmp_path / "w.pth")
    net = models.build("densenet121", 4)
    models.load_weights(net, "densenet121", str(tmp_path / "w.pth"), 4)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())


def test_published_weights_of_googlenet_get_the_input_they_were_trained_on():
    assert models.needs_transformed_input("googlenet", "IMAGENET1K_V1")
    assert not models.needs_transformed_input("googlenet", __file__)
    assert not models.needs_transformed_input("googlenet", None)
    assert not models.needs_transformed_input("resnet18", "IMAGENET1K_V1")
    assert models.build("googlenet", 10, transform_input=True).transform_input


def test_unknown_model_gives_the_nearest_name():
    with pytest.raises(SoftgateError, match="Did you mean 'resnet18'"):
        models.build("resnet81", 10)


def test_an_image_too_small_for_the_network_is_named_before_training():
    with pytest.raises(SoftgateError, match=r"data\.size=32: model=inception_v3 does not take"):
        models.check_size(models.build("inception_v3", 10), "inception_v3", 32)


# -- networks that torchvision lacks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "relus"), [("resnet20", 0.27, 19), ("resnet32", 0.46, 31), ("resnet56", 0.85, 55)]
)
def test_cifar_resnets_have_their_published_size(name, parameters, relus):
    net = models.build(name, 10)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == parameters
    with sg.attach(net, sg.Surrogate()) as sites:
        assert sites.count("relu") == relus
    assert models.resolve_stem("auto", 32, None, name) == "imagenet"


@pytest.mark.parametrize("name", ["plain8", "plain20"])
def test_plain_networks_have_neither_norms_nor_shortcuts(name):
    torch.manual_seed(0)
    net = models.build(name, 4, channels=1)
    assert not any("Norm" in type(m).__name__ for m in net.modules())
    out = net(torch.randn(2, 1, 32, 32))
    assert out.shape == (2, 4)
    # He's initialisation keeps the size of what goes through.
    assert 0.05 < float(net.features(torch.randn(8, 1, 32, 32)).std()) < 5


def test_a_shortcut_without_parameters_is_every_second_pixel_and_zeros():
    block = small_images.Block(16, 32)
    for module in (block.conv1, block.conv2):
        torch.nn.init.zeros_(module.weight)
    x = torch.rand(1, 16, 8, 8)
    out = block.eval()(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert float(out[:, :8].abs().sum() + out[:, 24:].abs().sum()) == 0


def test_timms_networks_are_built_by_name_and_refused_by_name():
    pytest.importorskip("timm", reason="the extra timm is not installed")
    config = models.NetworkConfig.read({"name": "resnet18d", "library": "timm"})
    assert config.full_name == "timm/resnet18d"
    net = models.build(config.full_name, 7, channels=1)
    assert net(torch.randn(1, 1, 64, 64)).shape == (1, 7)
    assert models.head(config.full_name) == ("fc.weight", "fc.bias")
    with pytest.raises(
        SoftgateError, match=r"model\.name=resnet26x: timm .* has no network of that name\. Did you mean resnet26"
    ):
        models.NetworkConfig.read({"name": "resnet26x", "library": "timm"})
    with pytest.raises(
        SoftgateError, match=r"model\.weights=DEFAULT: no such file; of timm's networks there is 'pretrained'"
    ):
        models.NetworkConfig.read({"name": "resnet26", "library": "timm", "weights": "DEFAULT"})
    with pytest.raises(SoftgateError, match="nobody publishes weights of resnet20"):
        models.NetworkConfig.read({"name": "resnet20", "weights": "DEFAULT"})


PUBLISHED = ("vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0")


@pytest.mark.parametrize("name", PUBLISHED)
def test_scalable_networks_are_torchvisions_own_where_nothing_is_scaled(name):
    """Published weights load, and module for module it is the same network."""
    torch.manual_seed(0)
    mine = models.build(name, 10)
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10)
    assert str(mine) == str(theirs)
    assert {k: v.shape for k, v in mine.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_pvt_is_timms_own_where_nothing_is_scaled():
    timm = pytest.importorskip("timm", reason="an extra")
    mine, theirs = models.build("timm/pvt_v2_b1", 10), timm.create_model("pvt_v2_b1", num_classes=10)
    assert str(mine) == str(theirs)


@pytest.mark.parametrize("size", [8, 28, 32, 64, 96])
@pytest.mark.parametrize("name", [*PUBLISHED, "timm/pvt_v2_b1"])
def test_scalable_networks_take_small_images_and_tell_them_apart(name, size):
    """Of each there is more than one place left where places are compared, so that an image is more than its mean."""
    stem = models.resolve_stem("auto", size, None, name)
    scale = Scale(size=models.sized(name, stem, size), width=0.1, depth=0.1)
    torch.manual_seed(0)
    net = models.build(name, 3, stem, scale=scale).eval()
    for parameter in net.parameters():  # the last layer of a ViT begins at zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, 3, size, size, requires_grad=True)
    logits = net(x)
    assert logits.shape == (2, 3)
    (logits.square().sum() + net(x.flip(0)).prod()).backward()
    assert (x.grad != 0).double().mean() > 0.9  # no pixel is skipped by a stride
    assert models.build(name, 3, stem, channels=1, scale=scale).eval()(torch.zeros(1, 1, size, size)).shape == (1, 3)


def test_width_and_depth_make_a_network_smaller():
    def parameters(**options):
        return sum(p.numel() for p in models.build("convnext_tiny", 3, scale=Scale(**options)).parameters())

    assert parameters(width=0.5) < parameters() / 3
    assert parameters(depth=0.5) < parameters()


@pytest.mark.parametrize("option", ["width", "depth"])
def test_width_and_depth_are_refused_where_a_network_has_none(option):
    with pytest.raises(SoftgateError, match=rf"model\.{option}=0\.5: resnet18 has none; these have: vit_b_16"):
        models.NetworkConfig.read({"name": "resnet18", option: 0.5})


def test_patches_smaller_than_a_stem_of_cifar_are_asked_for_by_name():
    with pytest.raises(SoftgateError, match=r"stem=cifar: swin_t has no max pool.*stem=small"):
        models.build("swin_t", 3, "cifar")


def test_weights_of_another_size_of_images_are_refused_by_the_size(tmp_path):
    scale = Scale(size=32, width=0.1, depth=0.1)
    torch.save(models.build("vit_b_16", 4, scale=scale).state_dict(), tmp_path / "w.pth")
    other = models.build("vit_b_16", 4, scale=Scale(size=64, width=0.1, depth=0.1))
    with pytest.raises(SoftgateError, match=r"data\.size must be that of the weights"):
        models.load_weights(other, "vit_b_16", str(tmp_path / "w.pth"), 4)


@pytest.mark.parametrize("stem", ["small", "cifar"])
@pytest.mark.parametrize("name", ["resnet20", "plain8", "mlp"])
def test_a_stem_that_would_change_nothing_is_refused(name, stem):
    with pytest.raises(SoftgateError, match=rf"model\.stem={stem}: {name} is for small images as it is; auto is"):
        models.NetworkConfig.read({"name": name, "stem": stem})
