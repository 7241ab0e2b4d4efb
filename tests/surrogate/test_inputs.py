"""What public functions are given: an array, a list, a picture or a rule's name is refused in one sentence."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import softgate as sg
from configs import CONF, container
from softgate import Surrogate, explainers, grids, metrics, paths
from softgate.explainers.captum import ExcitationPullback
from softgate.surrogate import inputs
from softgate.surrogate.rule import NAMED

IMAGE = np.zeros((1, 3, 8, 8), np.float32)
NOT_LOOKED_AT = {
    "animation": "of pictures that grids have made",
    "film_strip": "of pictures that grids have made",
    "peak": "of maps that grids have read",
    "scale_each": "of maps that grids have read",
    "scale_shared": "of maps that grids have read",
    "seismic": "of maps that grids have read",
    "pullback_grid": "of what grids have read",
    "swap": "of recordings",
}
"""Public functions of tensors that softgate itself makes."""


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def public():
    for room in (sg, explainers, paths, metrics, grids):
        for name in room.__all__:
            found = getattr(room, name)
            if inspect.isfunction(found):
                yield f"{room.__name__}.{name}", found
            elif inspect.isclass(found) and issubclass(found, metrics.ProbeMetric):
                yield f"{room.__name__}.{name}.update", found.update


def annotated(kinds):
    """(function, parameter) of all public functions that take one of these kinds."""
    found = []
    for label, function in public():
        for name, each in inspect.signature(function).parameters.items():
            if str(each.annotation) in kinds and function.__name__ not in NOT_LOOKED_AT:
                found.append(pytest.param(function, name, id=f"{label}-{name}"))
    return found


def called(function, name, value):
    """Calls a function with one argument that is wrong, others that fit or are not looked at before it."""
    filling = {"Tensor": torch.zeros(1, 3, 8, 8), "nn.Module": model()}
    given = {}
    for other, each in inspect.signature(function).parameters.items():
        if other != "self" and each.default is inspect.Parameter.empty:
            given[other] = filling.get(str(each.annotation))
    first = [object.__new__(metrics.NoiseCosine)] if "self" in inspect.signature(function).parameters else []
    return function(*first, **given | {name: value})


@pytest.mark.parametrize(("function", "name"), annotated({"Tensor", "Tensor | None"}))
def test_every_public_function_refuses_an_array_where_a_tensor_is_needed(function, name):
    with pytest.raises(sg.SoftgateError, match=rf"{name} .*(a torch.Tensor is needed|images \[B)"):
        called(function, name, IMAGE)


@pytest.mark.parametrize(("function", "name"), annotated({"nn.Module"}))
def test_every_public_function_refuses_what_is_no_model(function, name):
    with pytest.raises(sg.SoftgateError, match=r"str; a torch\.nn\.Module is needed"):
        called(function, name, "resnet18")


@pytest.mark.parametrize(("function", "name"), annotated({"Surrogate", "Surrogate | None"}))
def test_every_public_function_says_which_constructor_a_rules_name_is(function, name):
    with pytest.raises(sg.SoftgateError, match=r"^rule='excitation': .* here Surrogate\.excitation\(\), or None\.$"):
        called(function, name, "excitation")


def test_there_are_such_functions():
    assert len(annotated({"Tensor"})) > 40
    assert len(annotated({"Surrogate | None"})) >= 7


@pytest.mark.parametrize(
    "use",
    [
        lambda rule: sg.attach(model(), None).use(rule),
        explainers.Pullback,
        lambda rule: ExcitationPullback(model(), rule),
        lambda rule: grids.read(model(), torch.zeros(1, 3, 8, 8), [0], [1], {"soft": rule}),
    ],
    ids=["use", "Pullback", "captum", "grids"],
)
def test_a_rules_name_is_refused_wherever_else_a_rule_goes(use):
    with pytest.raises(sg.SoftgateError, match=r"here Surrogate\.sugar\(\), or None\.$"):
        use("sugar")
    with pytest.raises(sg.SoftgateError, match=r"by name there is: Surrogate\.excitation\(\), .*sugar\(\)\.$"):
        use("relu")
    with pytest.raises(sg.SoftgateError, match=r"such as Surrogate\.from_dict"):
        use({"gate": {"name": "sigmoid"}})


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (IMAGE, r"numpy\.ndarray; .* such as torch\.as_tensor\(x\)\.$"),
        (IMAGE.tolist(), r"list; .* such as torch\.as_tensor\(x\)\.$"),
        (Image.new("RGB", (8, 8)), r"PIL\.Image\.Image; .* such as torchvision.*to_tensor\(x\)\[None\]\.$"),
        ("cat.png", r"str; a torch\.Tensor is needed\.$"),
        (None, r"NoneType; a torch\.Tensor is needed\.$"),
    ],
)
def test_the_error_says_what_makes_a_tensor_of_it(value, hint):
    for call in (sg.pullback, sg.ascend, sg.explainers.gradient):
        with pytest.raises(sg.SoftgateError, match=f"^{call.__name__}: x is of type {hint}"):
            call(model(), value, 0)


def test_whole_numbers_are_no_image():
    with pytest.raises(sg.SoftgateError, match=r"x of torch\.uint8: floating-point images"):
        sg.pullback(model(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0)


def test_what_fits_is_passed_on_as_it_was_given():
    @inputs.checked
    def function(self: object, x: "Tensor", rule: "Surrogate | None" = None, *, others: int = 0) -> tuple:
        return x, rule, others

    x, rule = torch.zeros(1), sg.Surrogate.nelu()
    assert function(0, x, rule, others=3) == (x, rule, 3)
    assert function(0, x=x) == (x, None, 0)
    assert function.__name__ == "function"
    with pytest.raises(TypeError, match="positional"):
        function(0, x, rule, 4)


@pytest.mark.parametrize("name", NAMED)
def test_a_constructor_makes_what_the_config_of_its_name_makes(name):
    assert getattr(sg.Surrogate, name)() == sg.Surrogate.from_dict(container(f"surrogate={name}")["surrogate"])


def test_every_choice_of_the_config_has_a_constructor_and_each_takes_what_all_rules_share():
    assert set(NAMED) == {path.stem for path in (CONF / "surrogate").glob("*.yaml")} - {"default"}
    for name in NAMED:
        assert getattr(sg.Surrogate, name)(mix=0.5, strict=True) == sg.Surrogate.from_dict(
            getattr(sg.Surrogate, name)().to_dict() | {"mix": 0.5, "strict": True}
        )


@pytest.mark.parametrize("name", ["excitation", "random_gate", "shuffled_gate"])
def test_one_temperature_is_that_of_gates_and_pools_unless_there_are_two(name):
    rule = getattr(sg.Surrogate, name)(temperature=0.15)
    assert rule.gate.temperature == rule.pool.temperature == 0.15
    assert sg.Surrogate.excitation(0.1, 0.2).pool.temperature == 0.2
    assert sg.Surrogate.normal_cdf(0.5).pool.temperature == 0.3
