"""Chunks bound what a pullback holds in memory, and change nothing."""

import pytest
import torch

import softgate as sg
from classifier import RULE, assert_same, everything


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
