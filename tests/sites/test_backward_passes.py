"""Which gradients are asked for, how often, in which order and by how many processes: each is gated."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
from torch.autograd import grad
from torch.nn import functional as F

import reference
import softgate as sg
from mode_networks import RULE, assert_close, gradients, images, soft_gradients

# -- several processes --------------------------------------------------------------------------------


def test_two_processes_find_the_gradient_that_one_finds_on_the_joined_batch(tmp_path):
    script, environment = Path(__file__).parents[1] / "gradients_process.py", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()  # does nothing to one that has ended
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == 8
        assert {name: apart for name, apart in found.items() if not apart <= 1e-12} == {}


# -- which gradients, how often, in which order -------------------------------------------------------


def test_the_input_gradient_of_a_frozen_network(residual):
    expected = soft_gradients(residual, images())[:2]
    residual.requires_grad_(False)
    with sg.attach(residual, RULE):
        assert_close(gradients(residual, images()), expected)


def test_a_frozen_stem_and_an_input_without_gradient(residual):
    with reference.patched(reference.sigmoid, 0.3):
        residual(images()).square().sum().backward()
    expected = [p.grad.clone() for name, p in residual.named_parameters() if not name.startswith("stem")]
    residual.zero_grad()
    residual.stem.requires_grad_(False)
    with sg.attach(residual, RULE):
        residual(images()).square().sum().backward()
    assert_close([p.grad for p in residual.parameters() if p.requires_grad], expected)


def test_a_graph_that_is_retained_gives_the_same_gradient_twice(residual):
    expected = soft_gradients(residual, images())[1:]
    with sg.attach(residual, RULE):
        x = images().requires_grad_()
        loss = residual(x).square().sum()
        first = grad(loss, [x, *residual.parameters()], retain_graph=True)
        residual(images(seed=5))  # another forward pass in between
        second = grad(loss, [x, *residual.parameters()])
        assert_close(first, expected)
        assert_close(second, first, within=0)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_gradients_add_up_over_micro_batches(residual):
    whole = soft_gradients(residual, images())[2:]
    residual.zero_grad()
    with sg.attach(residual, RULE):
        for part in images().split(1):
            residual(part).square().sum().backward()
    assert_close([p.grad for p in residual.parameters()], whole)


def test_two_forward_passes_before_the_backward_of_the_first(residual):
    x, y = images(seed=2), images(seed=3)
    expected = [a + b for a, b in zip(soft_gradients(residual, x)[2:], soft_gradients(residual, y)[2:], strict=True)]
    residual.zero_grad()
    with sg.attach(residual, RULE):
        first, second = residual(x).square().sum(), residual(y).square().sum()
        first.backward()
        second.backward()
    assert_close([p.grad for p in residual.parameters()], expected)


def test_the_rule_of_the_forward_pass_is_the_rule_of_its_backward_pass(residual):
    expected = soft_gradients(residual, images())[1]
    x = images().requires_grad_()
    with sg.attach(residual, RULE) as sites:
        loss = residual(x).square().sum()
        sites.use(None)
        assert_close(grad(loss, x, retain_graph=True), [expected])
    assert_close(grad(loss, x), [expected])


def test_a_backward_pass_in_another_thread_is_gated(residual):
    expected = soft_gradients(residual, images())[1]
    x = images().requires_grad_()
    with sg.attach(residual, RULE):
        loss = residual(x).square().sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert_close([x.grad], [expected])


# -- second order -------------------------------------------------------------------------------------


def constant_weights(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Max pooling whose log-sum-exp weights are constants, also for second derivatives."""
    spread = reference.windows(x, kernel_size, stride, padding, dilation, ceil_mode)
    weights = (spread.detach() / 0.3).flatten(-2).softmax(-1).view_as(spread)
    smooth = (weights * spread.masked_fill(spread.isneginf(), 0.0)).sum((-2, -1))
    return smooth - smooth.detach() + spread.amax((-2, -1)).detach()


def penalty_gradients(model, x):
    """The gradient of a gradient penalty: the input gradient's squared norm, differentiated by everything."""
    x = x.clone().requires_grad_()
    (first,) = grad(model(x).square().sum(), x, create_graph=True)
    return grad(first.square().sum(), [x, *model.parameters()], materialize_grads=True)


def test_a_gradient_penalty_holds_gates_and_weights_constant(residual):
    with reference.patched(reference.sigmoid, 0.3), mock.patch.object(F, "max_pool2d", constant_weights):
        expected = penalty_gradients(residual, images())
    bare = penalty_gradients(residual, images())
    with sg.attach(residual, RULE):
        found = penalty_gradients(residual, images())
    assert float(expected[0].norm()) > 0
    assert_close(found, expected)
    assert reference.distance(found[0], bare[0]) > 1e-2
