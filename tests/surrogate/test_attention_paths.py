"""Attention along the value path and by a second pass, against the formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import reference
import reference_blocks
import softgate as sg
from softgate.surrogate.attention_paths import Attention, attend, damped

RULES = {
    "value_path": (sg.attentions.ValuePath, reference_blocks.value_path),
    "two_pass": (sg.attentions.TwoPass, reference_blocks.two_pass),
}


def drawn(batch=2, heads=2, length=3, size=4, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, length, width), (batch, heads, size, width), (batch, heads, size, width)]
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def mask_of(name, length, size):
    if name == "bool":
        mask = torch.rand(length, size, generator=torch.Generator().manual_seed(3)) > 0.4
        mask[:, 0] = True  # something is attended to
        return mask
    return torch.linspace(-2, 2, length * size, dtype=torch.float64).view(length, size) if name == "added" else None


@given(
    rule=st.sampled_from(sorted(RULES)),
    temperature=st.sampled_from([1.0, 0.5, 2.0]),
    mask=st.sampled_from(["none", "bool", "added", "causal"]),
    scale=st.sampled_from([None, 0.3]),
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
)
def test_the_gradients_are_those_of_the_formula(rule, temperature, mask, scale, sizes):
    batch, heads, length, size, width = sizes
    query, key, value = drawn(batch, heads, length, size, width)
    kind, expected = RULES[rule]
    masked, causal = mask_of(mask, length, size), mask == "causal"
    call = Attention(query, key, value, masked, 0.0, causal, scale)
    out = attend(call, kind(temperature))
    true = F.scaled_dot_product_attention(query, key, value, masked, 0.0, causal, scale=scale)
    assert torch.equal(out, true)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(out, (query, key, value), upstream)
    slow = expected(query, key, value, masked, 0.0, causal, scale, temperature)
    slow = torch.autograd.grad(slow, (query, key, value), upstream, allow_unused=True)
    for one, other in zip(found, slow, strict=True):
        assert reference.distance(one, torch.zeros_like(one) if other is None else other) < 1e-10
    if rule == "value_path":
        assert not found[0].any()
        assert not found[1].any()


@given(mix=st.floats(0, 1), temperature=st.sampled_from([1.0, 0.6]), rule=st.sampled_from(sorted(RULES)))
def test_a_mix_is_a_mix_of_both_gradients(mix, temperature, rule):
    leaves = drawn()
    soft, true, mixed = (
        torch.autograd.grad(attend(Attention(*leaves), RULES[rule][0](temperature), share).square().sum(), leaves)
        for share in (1.0, 0.0, mix)
    )
    for place in range(3):
        assert torch.allclose(mixed[place], mix * soft[place] + (1 - mix) * true[place], rtol=1e-9, atol=1e-12)


def test_grouped_heads_share_keys_and_values():
    query, _, _ = drawn(heads=4)
    _, key, value = drawn(heads=2, seed=1)
    call = Attention(query, key, value, grouped=True)
    weights = call.weights()
    assert torch.allclose(call.weighed(weights), call.run(), rtol=1e-12)
    found = torch.autograd.grad(attend(call, sg.attentions.ValuePath()).sum(), value)[0]
    expected = torch.autograd.grad(call.weighed(weights.detach()).sum(), value)[0]
    assert reference.distance(found, expected) < 1e-12


def test_dropped_weights_are_the_same_in_both_passes_or_refused():
    query, key, value = drawn()
    call = Attention(query, key, value, dropout=0.5)
    torch.manual_seed(0)
    out = attend(call, sg.attentions.ValuePath())
    found = torch.autograd.grad(out.sum(), value)[0]
    torch.manual_seed(0)
    true = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    assert torch.equal(out, true)
    assert torch.equal(found, torch.autograd.grad(true.sum(), value)[0])  # the value's own gradient has the weights
    for rule in (sg.attentions.ValuePath(0.5), sg.attentions.TwoPass(0.5)):
        with pytest.raises(sg.SoftgateError, match=r"dropped with probability 0\.5"):
            attend(call, rule)


def test_a_damped_tensor_has_a_gradient_of_zeros_not_none():
    x = torch.ones(3, requires_grad=True)
    out = damped(x)
    assert torch.equal(out, x)
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [0, 0, 0]
    assert torch.autograd.grad(damped(x, 0.25).sum(), x)[0].tolist() == [0.25] * 3


@pytest.mark.parametrize("kind", [sg.attentions.ValuePath, sg.attentions.TwoPass])
@pytest.mark.parametrize("value", [0.0, -2.0, float("inf")])
def test_a_temperature_that_is_not_above_zero_is_refused_by_name(kind, value):
    with pytest.raises(sg.SoftgateError, match=r"attention\.temperature"):
        kind(value)


def test_the_true_gradient_is_no_rule_to_attend_by():
    with pytest.raises(sg.SoftgateError, match="ValuePath and TwoPass"):
        attend(Attention(*drawn()), sg.attentions.Own())
