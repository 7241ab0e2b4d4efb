import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reference
import softgate as sg

RULE = sg.Surrogate()
CLASSES = 5


class Classifier(nn.Module):
    """Two convolutions with BatchNorm, dropout, a max pooling and an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            nn.Dropout(0.5),
        )
        self.conv = nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.conv(self.body(x))).mean((2, 3)))


class Raising(nn.Module):
    """Fails, after a gated call, where `armed`."""

    def __init__(self, model):
        super().__init__()
        self.model, self.armed = model, True

    def forward(self, x):
        out = self.model(x)
        if self.armed:
            raise KeyError("armed")
        return out


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Classifier().double()
    model(torch.randn(8, 3, 10, 10, dtype=torch.float64))  # running statistics that are not the initial ones
    return model.eval()


@pytest.fixture
def x():
    return torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def plain_gradient(model, x, target):
    x = x.detach().clone().requires_grad_()
    logits = model(x)
    return torch.autograd.grad(logits.gather(1, torch.as_tensor(target).expand(len(x))[:, None]).sum(), x)[0]


def soft_gradient(model, x, target):
    with reference.patched(reference.sigmoid, 0.3):
        return plain_gradient(model, x, target)


def everything(model):
    """All that a look at a model must leave alone: states, grads, modes, attributes, hooks, random state."""
    modules = list(model.modules())
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "grads": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "needs": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in modules],
        "inplace": [getattr(module, "inplace", None) for module in modules],
        "names": [sorted(module.__dict__) for module in modules],
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
    }


def assert_same(now, before):
    for what, value in before.items():
        if what in ("state", "grads", "random"):
            torch.testing.assert_close(now[what], value, rtol=0, atol=0, msg=what)
        else:
            assert now[what] == value, what


# -- pullback -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, 4, torch.tensor(2), torch.tensor([0, 4, 2, 2])])
def test_pullback_without_a_rule_is_the_plain_gradient(model, x, target):
    assert torch.equal(sg.pullback(model, x, target), plain_gradient(model, x, target))


@pytest.mark.parametrize("target", [3, torch.tensor([0, 4, 2, 2])])
@pytest.mark.parametrize("attached", [False, True])
def test_pullback_under_a_rule_is_the_references_input_gradient(model, x, target, attached):
    expected = soft_gradient(model, x, target)
    if attached:
        sg.attach(model, sg.Surrogate(gate=sg.gates.NormalCDF(2.0)))  # plays no part
    assert reference.distance(sg.pullback(model, x, target, RULE), expected) <= 1e-12
    assert reference.distance(sg.pullback(model, x, target), expected) > 1e-2


@pytest.mark.parametrize("rule", [None, RULE])
def test_several_targets_at_once_equal_one_at_a_time(model, x, rule):
    listed = [4, 0, 2]
    found = sg.pullback(model, x, listed, rule)
    assert found.shape == (4, 3, *x.shape[1:])
    for k, target in enumerate(listed):
        torch.testing.assert_close(found[:, k], sg.pullback(model, x, target, rule), rtol=1e-13, atol=1e-15)
    each = torch.tensor([[0, 1], [2, 3], [4, 0], [1, 1]])
    found = sg.pullback(model, x, each, rule)
    assert found.shape == (4, 2, *x.shape[1:])
    for k in range(2):
        torch.testing.assert_close(found[:, k], sg.pullback(model, x, each[:, k], rule), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (1, (4,)),
        (torch.tensor(1), (4,)),
        (torch.tensor([1, 2, 3, 4]), (4,)),
        ([1], (4, 1)),
        ([1, 2, 3, 4], (4, 4)),
        ((1, 2), (4, 2)),
        (torch.tensor([[1], [2], [3], [4]]), (4, 1)),
        ([[1, 2], [2, 3], [3, 4], [4, 0]], (4, 2)),
        (torch.tensor([1, 2, 3, 4], dtype=torch.int32), (4,)),
    ],
)
def test_shape_follows_the_target(model, x, target, shape):
    assert sg.pullback(model, x, target, RULE).shape == (*shape, 3, 10, 10)
    result = sg.ascend(model, x, target, RULE, steps=2, step_size=0.1, radius=1.0)
    assert result.image.shape == result.difference.shape == (*shape, 3, 10, 10)
    assert result.logits.shape == (*shape, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pullback_is_detached_and_in_the_dtype_of_the_images(model, x, dtype):
    found = sg.pullback(model.to(dtype), x.to(dtype).requires_grad_(), [0, 1], RULE)
    assert found.dtype == dtype
    assert not found.requires_grad
    assert found.isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("rule", [None, RULE])
@pytest.mark.parametrize("target", [3, [0, 1], torch.tensor([0, 1, 2, 3])])
def test_pullback_works_where_gradients_are_off(model, x, mode, rule, target):
    expected = sg.pullback(model, x, target, rule)
    with mode():
        found = sg.pullback(model, x.clone(), target, rule)  # under inference_mode the images are inference tensors
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_ascend_works_where_gradients_are_off(model, x, mode):
    expected = sg.ascend(model, x, [1, 2], RULE, steps=2, step_size=0.5)
    with mode():
        found = sg.ascend(model, x.clone(), [1, 2], RULE, steps=2, step_size=0.5)
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.logits, expected.logits)


def test_pullback_uses_running_statistics_so_that_images_do_not_read_each_other(model, x):
    alone = torch.cat([sg.pullback(model, x[i : i + 1], 1, RULE) for i in range(4)])
    model.train()
    torch.testing.assert_close(sg.pullback(model, x, 1, RULE), alone, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("rule", [None, RULE])
@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_a_look_leaves_model_images_rule_and_random_state_as_they_were(model, x, training, attached, rule, look):
    model.train(training)
    model.body[1].eval()  # a mixture of modes, as in fine-tuning
    sites = sg.attach(model, sg.Surrogate(mix=0.5)) if attached else None
    model(x).sum().backward()
    model.conv.weight.requires_grad_(False)
    x.grad = torch.ones_like(x)
    before, image, rule_before = everything(model), x.clone(), sites.rule if sites else None
    look(model, x, [1, 2], rule)
    assert_same(everything(model), before)
    assert torch.equal(x, image)
    assert torch.equal(x.grad, torch.ones_like(x))
    assert not x.requires_grad
    if sites:
        assert sites.rule is rule_before
        assert sites.attached


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_a_look_that_fails_leaves_everything_as_it_was(model, x, attached, look):
    wrapped = Raising(model).train()
    rule = sg.Surrogate(mix=0.5)
    sites = sg.attach(wrapped, rule) if attached else None
    before = everything(wrapped)
    with pytest.raises(KeyError, match="armed"):
        look(wrapped, x, 1, RULE)
    assert_same(everything(wrapped), before)
    with pytest.raises(sg.SoftgateError, match="shape"):
        look(wrapped, x[0], 1, RULE)
    assert_same(everything(wrapped), before)
    wrapped.armed = False
    with pytest.raises(sg.SoftgateError, match=str(CLASSES + 90)):
        look(wrapped, x, CLASSES + 90, RULE)
    assert_same(everything(wrapped), before)
    if sites:
        assert sites.rule is rule


@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_a_look_at_a_model_with_randomness_in_its_forward_leaves_the_random_state(model, x, look):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(F.dropout(x, 0.2, training=True))

    before = torch.get_rng_state()
    look(Noisy(), x, 1, RULE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compiled_model_is_read_out_without_compiling_and_stays_compiled(model, x):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    expected = soft_gradient(model, x, 1)
    sg.attach(model, RULE)
    model.compile(backend=backend)
    model(x)
    count = len(compilations)
    assert count > 0
    assert reference.distance(sg.pullback(model, x, 1, RULE), expected) <= 1e-12
    assert torch.equal(sg.pullback(model, x[:3], 1), sg.pullback(model, x, 1)[:3])
    assert len(compilations) == count
    torch.compile(lambda z: z * 2, backend=backend)(x)
    assert len(compilations) == count + 1


def test_parts_of_an_attached_model_can_be_read_out(model, x):
    whole = nn.Sequential(model, nn.Linear(CLASSES, CLASSES).double()).eval()
    expected = soft_gradient(model, x, 1)
    with sg.attach(whole, None) as sites:
        assert reference.distance(sg.pullback(model, x, 1, RULE), expected) <= 1e-12
        assert sites.rule is None
        assert sites.attached


def test_a_linear_model_has_a_gradient_but_no_pullback_under_a_rule(x):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(300, CLASSES)).double()
    expected = linear[1].weight[2].view(1, 3, 10, 10).expand_as(x)
    torch.testing.assert_close(sg.pullback(linear, x, 2), expected.detach())
    before = everything(linear)
    with pytest.raises(sg.NoCallSites):
        sg.pullback(linear, x, 2, RULE)
    assert_same(everything(linear), before)


def test_a_model_that_returns_its_logits_in_a_named_field_is_understood(model, x):
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return Output(self.model(x))

    assert torch.equal(sg.pullback(Named(), x, 1), sg.pullback(model, x, 1))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (CLASSES, "target=5"),
        (-1, "target=-1"),
        ([0, CLASSES], "target=5"),
        (torch.tensor([0, 1, -3, 2]), "target=-3"),
        (torch.tensor([0, 1, 2]), "3"),
        (torch.tensor([[0, 1, 2]]), "(1, 3)"),
        (torch.zeros(4, 1, 1, dtype=torch.long), "(4, 1, 1)"),
        (torch.zeros(4, 0, dtype=torch.long), "(4, 0)"),
        ([], "target"),
        (1.0, "target=1.0"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), "target"),
        (True, "target"),
        (torch.tensor([True, False, True, True]), "target"),
        ("cat", "target=cat"),
        (None, "target=None"),
        ([[0, 1], [2], [3], [4]], "target"),
    ],
)
@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_a_bad_target_is_an_error_that_names_it(model, x, look, target, said):
    before = everything(model)
    with pytest.raises(sg.SoftgateError) as error:
        look(model, x, target, RULE)
    assert said in str(error.value)
    assert_same(everything(model), before)


@pytest.mark.parametrize("shape", [(3, 10, 10), (10,), (1, 4, 3, 10, 10)])
@pytest.mark.parametrize("look", [sg.pullback, sg.ascend])
def test_images_of_another_shape_are_refused_with_their_shape(model, look, shape):
    with pytest.raises(sg.SoftgateError) as error:
        look(model, torch.zeros(shape, dtype=torch.float64), 1, RULE)
    assert str(shape) in str(error.value)


def test_a_model_that_returns_no_logits_is_refused_with_their_shape(model, x):
    with pytest.raises(sg.SoftgateError, match=r"\(4, 6, 5, 5\)"):
        sg.pullback(model.body, x, 1, RULE)


# -- ascend -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [None, RULE])
def test_one_step_goes_step_size_along_the_pullback(model, x, rule):
    direction = sg.pullback(model, x, 2, rule)
    result = sg.ascend(model, x, 2, rule, steps=1, step_size=0.7, radius=50.0, bounds=(-90, 90))
    norms = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(result.difference, 0.7 * direction / norms, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(result.image, x + result.difference)


def test_logits_begin_at_the_models_end_at_the_images_and_rise(model, x):
    result = sg.ascend(model, x, [0, 3], RULE, steps=5, step_size=0.05, radius=50.0, bounds=(-90, 90))
    with torch.no_grad():
        torch.testing.assert_close(result.logits[..., 0], model(x)[:, [0, 3]])
        for k, target in enumerate([0, 3]):
            torch.testing.assert_close(result.logits[:, k, -1], model(result.image[:, k])[:, target])
    assert (result.logits[..., -1] > result.logits[..., 0]).all()


def test_several_targets_ascend_as_each_does_alone(model, x):
    both = sg.ascend(model, x, [0, 3], RULE, steps=3, step_size=0.5, radius=1.0)
    for k, target in enumerate([0, 3]):
        alone = sg.ascend(model, x, target, RULE, steps=3, step_size=0.5, radius=1.0)
        torch.testing.assert_close(both.image[:, k], alone.image)
        torch.testing.assert_close(both.difference[:, k], alone.difference)
        torch.testing.assert_close(both.logits[:, k], alone.logits)


def test_ascent_stays_in_the_ball_around_the_original_and_reaches_its_edge(model, x):
    result = sg.ascend(model, x, 1, RULE, steps=8, step_size=1.0, radius=2.5, bounds=(-90, 90))
    norms = result.difference.flatten(1).norm(dim=1)
    assert (norms <= 2.5 * (1 + 1e-12)).all()
    assert (norms > 2.4).all()


def test_ascent_stays_in_the_box_and_fills_it(model, x):
    result = sg.ascend(model, x, 1, RULE, steps=5, step_size=20.0, radius=100.0, bounds=(-1, 1))
    assert float(result.image.min()) == -1
    assert float(result.image.max()) == 1
    torch.testing.assert_close(result.difference, result.image - x)


def test_an_image_whose_pullback_is_zero_stays_and_the_others_go_on(x):
    class Dead(nn.Module):  # its second half of the batch has no gradient
        def forward(self, x):
            alive = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=x.dtype)
            return F.relu(x.flatten(1))[:, :CLASSES] * alive[:, None]

    result = sg.ascend(Dead(), x, 1, RULE, steps=3, step_size=0.1, radius=1.0)
    assert torch.equal(result.image[2:], x[2:])
    assert (result.difference[:2].flatten(1).norm(dim=1) > 0.05).all()
    assert result.image.isfinite().all()


def test_normalize_stands_between_the_images_and_the_model(model, x):
    images = (x + 1) / 2

    def normalize(image):
        return image * 2 - 1

    found = sg.ascend(model, images, 1, RULE, steps=3, step_size=0.2, radius=9.0, bounds=(0, 1), normalize=normalize)
    both = sg.ascend(
        nn.Sequential(_Call(normalize), model), images, 1, RULE, steps=3, step_size=0.2, radius=9.0, bounds=(0, 1)
    )
    torch.testing.assert_close(found.image, both.image)
    torch.testing.assert_close(found.logits[:, 0], model(x)[:, 1].detach())
    assert float(found.image.min()) >= 0


class _Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"step_size": -1.0}, "step_size=-1.0"),
        ({"radius": 0.0}, "radius=0.0"),
        ({"bounds": (1, -1)}, "bounds=(1, -1)"),
        ({"bounds": (0.5, 1)}, "bounds=(0.5, 1)"),
    ],
)
def test_a_setting_of_ascend_out_of_range_is_named(model, x, settings, said):
    with pytest.raises(sg.SoftgateError) as error:
        sg.ascend(model, x, 1, RULE, **settings)
    assert said in str(error.value)


def test_ascend_results_are_detached_and_independent_of_the_images(model, x):
    before = x.clone()
    result = sg.ascend(model, x.requires_grad_(), 1, RULE, steps=2, step_size=0.1)
    assert not any(part.requires_grad for part in (result.image, result.difference, result.logits))
    result.image.zero_()
    assert torch.equal(x, before)


def test_pullback_of_a_copy_does_not_touch_the_original(model, x):
    sites = sg.attach(model, RULE)
    twin = copy.deepcopy(model)
    sg.pullback(twin, x, 1, None)
    assert sites.rule is RULE
    assert sites.attached


# -- memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 100])
def test_chunks_bound_what_runs_at_once_and_change_nothing(model, x, chunk):
    sizes = []
    model.body[0].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    whole = sg.pullback(model, x, [0, 3], RULE)
    ascent = sg.ascend(model, x, [0, 3], RULE, steps=2, step_size=0.3)
    sizes.clear()
    torch.testing.assert_close(sg.pullback(model, x, [0, 3], RULE, chunk=chunk), whole)
    climbed = sg.ascend(model, x, [0, 3], RULE, steps=2, step_size=0.3, chunk=chunk)
    assert max(sizes) <= chunk
    for name in ("image", "difference", "logits", "predicted"):
        torch.testing.assert_close(getattr(climbed, name), getattr(ascent, name))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory")])
def test_where_memory_runs_out_the_chunk_is_halved_until_it_fits(model, x, error):
    sizes = []

    def small_machine(module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 1:
            raise error

    whole = sg.pullback(model, x, 2, RULE)
    before = everything(model)
    handle = model.body[0].register_forward_pre_hook(small_machine)
    torch.testing.assert_close(sg.pullback(model, x, 2, RULE), whole)
    assert sizes == [4, 2, 1, 1, 1, 1]
    handle.remove()
    assert_same(everything(model), before)


def test_an_image_too_large_for_the_machine_and_other_errors_are_raised_as_they_are(model, x):
    for message in ("not enough memory", "a bug"):

        def fail(module, inputs, message=message):
            raise RuntimeError(message)

        handle = model.body[0].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match=message):
            sg.pullback(model, x, 2, RULE)
        handle.remove()


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True])
def test_a_chunk_that_is_no_size_is_named(model, x, chunk):
    with pytest.raises(sg.SoftgateError, match=f"chunk={chunk}"):
        sg.pullback(model, x, 1, RULE, chunk=chunk)


def test_ascent_says_what_is_predicted_before_and_after(model, x):
    result = sg.ascend(model, x, [0, 3], RULE, steps=4, step_size=5.0, radius=50.0, bounds=(-90, 90))
    with torch.no_grad():
        assert torch.equal(result.predicted[..., 0], model(x).argmax(1)[:, None].expand(-1, 2))
        for k in range(2):
            assert torch.equal(result.predicted[:, k, 1], model(result.image[:, k]).argmax(1))
    assert (result.predicted[..., 0] != result.predicted[..., 1]).any()
