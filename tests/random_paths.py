"""Path kernels of small random networks, by a list of all their paths.

A network of blocks is read a second time: every unit is the list of the products that the paths up to
it make of a pair of images. Every weight counts as one, minus signs too.
"""

import random

import numpy as np
import torch

from random_blocks import PLAIN, Block, CReLU, Halves, Spelled
from random_combinators import Concatenated, Minus, Packed, Residual, Shared
from random_networks import Network, Plan, Recipe
from reference_mode import Activation, Law, Reference


class Plain(Spelled):
    """A layer and a plain ReLU in one of its spellings."""

    table = PLAIN


def small(seed: int, signs: bool) -> Plan:
    """A fully connected network of two to four blocks, with or without differences."""
    chance = random.Random(f"paths {seed}")
    holding = [Residual, Concatenated, Shared, Packed] + ([Minus, Minus] if signs else [])
    leaves = [Plain, Plain, Halves] + ([CReLU] if signs else [])

    def leaf():
        return Recipe(chance.choice(leaves), chance.getrandbits(32))

    def block():
        if chance.random() < 0.5:
            return leaf()
        kind = chance.choice(holding)
        return Recipe(kind, chance.getrandbits(32), tuple((leaf(),) for _ in range(getattr(kind, "count", 1))))

    drawn = [block() for _ in range(chance.choice((1, 2)))]
    drawn.append(Recipe(Minus, chance.getrandbits(32), ((leaf(),),)) if signs else leaf())
    return Plan(seed, (), tuple(drawn), width=4)


class _Watching(Reference):
    """Keeps the pre-activations of a pass, in order."""

    def _activated(self, call: Activation, func, args, kwargs):
        self.seen.append(call.data.detach().clone())
        return func(*args, **kwargs)


def pre_activations(net, x):
    with _Watching(net, Law(None)) as watching:
        watching.seen = []
        net(x.clone().requires_grad_())
    return watching.seen


def kernel(net: Network, x, x2, gate):
    """[N, M]: for each pair the sum over the paths to an output unit, averaged over the output units."""
    first, second = ([gate(z).numpy() for z in pre_activations(net, each)] for each in (x, x2))
    out = np.empty((len(x), len(x2)))
    for i, j in np.ndindex(*out.shape):
        gates = iter([a[i] * b[j] for a, b in zip(first, second, strict=True)])
        units = [np.array([p]) for p in (x[i].flatten() * x2[j].flatten()).numpy()]
        units = _dense(units, net.between[1].out_features)
        units = _dense(_through(net.vectors, units, gates), net.head.out_features)
        assert next(gates, None) is None
        out[i, j] = np.mean([unit.sum() for unit in units])
    return torch.from_numpy(out)


def _dense(units, count):
    """Every unit of a linear layer has all paths of the units before it."""
    return [np.concatenate(units)] * count


def _gated(units, gate):
    return [unit * value for unit, value in zip(units, gate, strict=True)]


def _joined(units, others):
    """A sum, or a difference: the paths of both."""
    return [np.concatenate(pair) for pair in zip(units, others, strict=True)]


def _through(part, units, gates):
    """The units behind a block, or behind blocks one after another."""
    if not isinstance(part, Block):
        for block in part.children():
            units = _through(block, units, gates)
        return units
    size = len(units)
    if isinstance(part, Plain):
        return _gated(_dense(units, size), next(gates))
    if isinstance(part, Halves):
        z = _dense(units, size)
        half = size // 2
        return _gated(z[:half], next(gates)) + z[half:]
    if isinstance(part, CReLU):
        z = _dense(units, size)
        return _dense(_gated(z + z, next(gates)), size)
    if isinstance(part, (Residual, Minus)):
        return _joined(units, _through(part.body, units, gates))
    if isinstance(part, Concatenated):
        branches = [_through(body, units, gates) for body in (part.body, part.bodies[0])]
        return _dense([unit for branch in branches for unit in branch], size)
    if isinstance(part, Shared):
        return _through(part.body, _through(part.body, units, gates), gates)
    assert isinstance(part, Packed)
    return _through(part.body.body, units, gates)
