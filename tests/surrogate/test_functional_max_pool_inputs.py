"""`functional.max_pool2d`: the sizes and inputs that it takes and refuses, and what may be overwritten."""

import pytest
import torch
from torch.autograd import grad
from torch.nn import functional as F

from functional_inputs import LSE, draw
from softgate import SoftgateError
from softgate.surrogate import functional, gates, pools


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (2, 0, 6, 6)])
@pytest.mark.parametrize("mix", [1.0, 0.5])
def test_pool_takes_what_torch_takes_when_nothing_is_in_it(shape, mix):
    x = torch.zeros(shape, requires_grad=True)
    try:
        expected = F.max_pool2d(x, 3, 2, 1)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            functional.max_pool2d(x, 3, 2, 1, pool=LSE, mix=mix)
        return
    out = functional.max_pool2d(x, 3, 2, 1, pool=LSE, mix=mix)
    assert out.shape == expected.shape
    assert grad(out.sum(), x)[0].shape == shape


def test_pool_gradient_of_a_strided_input_is_that_of_its_copy():
    wide = draw(2, 3, 9, 16)
    strided = wide[..., ::2].transpose(-1, -2).requires_grad_()
    plain = strided.detach().contiguous().requires_grad_()
    for mix in (1.0, 0.5):
        found, expected = (
            grad(functional.max_pool2d(x, 3, 2, 1, pool=LSE, mix=mix).sum(), x) for x in (strided, plain)
        )
        assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("stride", [None, [], (), 2, [2], (2,), (2, 1)])
@pytest.mark.parametrize("kernel", [3, [3], (3, 2)])
def test_pool_takes_sizes_in_every_form_that_torch_takes(kernel, stride):
    x = draw(1, 2, 7, 7).requires_grad_()
    expected = F.max_pool2d(x, kernel, stride)
    assert torch.equal(functional.max_pool2d(x, kernel, stride, pool=LSE), expected)


@pytest.mark.parametrize("pool", [LSE, pools.Hard()])
@pytest.mark.parametrize("sizes", [(3, 2, 2), (0,), (2, 0), (2, 1, 0, 0), (9,), (2, 2, -1)])
def test_pool_refuses_every_geometry_that_torch_refuses(pool, sizes):
    x = draw(1, 1, 5, 5)
    with pytest.raises((RuntimeError, ValueError)):
        F.max_pool2d(x, *sizes)
    with pytest.raises((RuntimeError, ValueError)):
        functional.max_pool2d(x, *sizes, pool=pool)


def test_hard_pool_and_no_mix_are_torchs_own_gradient_with_its_choice_among_ties():
    x = draw(2, 3, 8, 8).round().requires_grad_()
    (expected,) = grad(F.max_pool2d(x, 3, 2, 1).sum(), x)
    for settings_ in ({"pool": pools.Hard()}, {"pool": LSE, "mix": 0.0}, {"pool": LSE, "mix": 0}):
        (found,) = grad(functional.max_pool2d(x, 3, 2, 1, **settings_).sum(), x)
        assert torch.equal(found, expected)


def test_a_pool_without_a_backward_pass_is_refused_by_name():
    class Mine(pools.Pool):
        pass

    with pytest.raises(SoftgateError, match=r"LSE"):
        functional.max_pool2d(draw(1, 1, 4, 4), 2, pool=Mine())


def test_kernel_of_three_sizes_is_refused_with_option_and_value():
    with pytest.raises((SoftgateError, RuntimeError)) as error:
        functional.max_pool2d(draw(1, 1, 4, 4), (2, 2, 2), pool=LSE)
    assert "kernel_size" in str(error.value)


def test_input_can_be_overwritten_after_pooling_only_with_an_error():
    z = draw(1, 1, 4, 4).requires_grad_()
    x = z * 1
    out = functional.max_pool2d(x, 2, pool=LSE)
    x.zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        out.sum().backward()


def test_output_can_be_overwritten_after_pooling_as_with_torch():
    z = draw(1, 2, 6, 6).requires_grad_()
    (expected,) = grad(F.max_pool2d(z, 2).mul(3).sum(), z)
    assert expected.any()
    (hard,) = grad(F.max_pool2d(z, 2).mul_(3).sum(), z)
    assert torch.equal(hard, expected)
    (clean,) = grad(functional.max_pool2d(z, 2, pool=LSE).mul(3).sum(), z)
    (found,) = grad(functional.max_pool2d(z, 2, pool=LSE).mul_(3).sum(), z)
    assert torch.equal(found, clean)


def test_nothing_is_kept_for_backward_without_grad():
    x = draw(1, 2, 6, 6).requires_grad_()
    with torch.no_grad():
        assert not functional.max_pool2d(x, 2, pool=LSE).requires_grad
        assert not functional.relu(x, gates.Sigmoid()).requires_grad
