"""Random networks of all building blocks: exact under every rule, or refused with the site named."""

import warnings

import pytest
import torch

import random_paths
import reference
import softgate as sg
from random_checks import examine
from random_combinators import COMBINATORS
from random_layers import ON_IMAGES, OWN_GRADIENT
from random_networks import EVERYWHERE, Network, blocks, draw, images, smallest
from random_refusals import REFUSED

FAST, ALL = 100, 500
KERNELS = 20


def failure(plan):
    """What does not hold of a plan's network; None where all does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            examine(plan)
        except Exception as error:  # whatever it is, the smallest network with it is wanted
            return error
    return None


def check(seed):
    """Fails with the blocks that a network is made of, and the smallest part of it that fails in the same way."""
    plan = draw(seed)
    error = failure(plan)
    if error is None:
        return

    def fails(fewer):
        found = failure(fewer)
        return type(found) is type(error) and str(found)[:25] == str(error)[:25]

    least = smallest(plan, fails)
    raise AssertionError(
        f"{plan}\n{type(error).__name__}: {error}\nthe least that fails is {least}\n{Network(least)}"
    ) from error


@pytest.mark.parametrize("seed", range(FAST))
def test_a_random_network_is_exact_or_refused(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FAST, ALL))
def test_another_random_network_is_exact_or_refused(seed):
    check(seed)


def test_the_networks_are_made_of_every_block():
    kinds = {kind for table in (EVERYWHERE, ON_IMAGES, OWN_GRADIENT, COMBINATORS, REFUSED) for kind in table}
    assert len(kinds) >= 40
    drawn = {type(block) for seed in range(FAST) for block in blocks(Network(draw(seed)))}
    assert kinds - drawn == set()


def test_a_seed_makes_the_same_network_again():
    for seed in range(10):
        one, other = Network(draw(seed)), Network(draw(seed))
        assert draw(seed) == draw(seed)
        assert str(one) == str(other)
        for name, value in one.state_dict().items():
            assert torch.equal(value.to_dense(), other.state_dict()[name].to_dense())


def test_a_network_that_fails_is_reduced_to_the_blocks_that_fail():
    plan = next(plan for plan in map(draw, range(100)) if len(plan.vectors) == 3 and plan.images)
    kind = plan.vectors[1].kind
    least = smallest(plan, lambda fewer: any(recipe.kind is kind for recipe in fewer.vectors))
    assert [recipe.kind for recipe in (*least.images, *least.vectors)] == [kind]


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("seed", range(KERNELS))
def test_the_path_kernel_is_the_sum_over_a_list_of_all_paths(seed, signs):
    plan = random_paths.small(seed, signs)
    net, x = Network(plan).eval(), images(plan)
    for rule, gate in ((None, reference.hard), (sg.Surrogate(sg.gates.Sigmoid(0.3)), reference.sigmoid)):
        expected = random_paths.kernel(net, x, x[:2], gate)
        assert reference.distance(sg.paths.kernel(net, x, x[:2], rule), expected) <= 1e-10, str(plan)
