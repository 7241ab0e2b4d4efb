"""Random networks: a seed makes a network of blocks, always the same one.

A network is drawn as a tree of recipes and then built, each block from a random state of its own. So parts can be
left out of one that fails without a change to the others: `smaller` gives the networks with one part less.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from random_blocks import ACTIVATIONS, Block, layer
from random_combinators import COMBINATORS, Checkpointed, Functional, Outputs, Pair
from random_habits import HABITS, Counting
from random_layers import LAYERS, ON_IMAGES, OWN_GRADIENT, Parametrized
from random_refusals import REFUSED

EVERYWHERE = [*ACTIVATIONS, *HABITS, *LAYERS]
"""Blocks that keep the shape, of images and of vectors."""

OUTPUTS = ("tensor", "tensor", "tensor", "tuple", "dict", "dataclass", "namedtuple", "list")
CLASSES = 3


@dataclass(frozen=True)
class Recipe:
    """A block: its class, the seed it is made from, and what its bodies are made of."""

    kind: Any
    seed: int
    bodies: tuple[tuple[Recipe, ...], ...] = ()

    def __str__(self) -> str:
        inside = ", ".join("[" + ", ".join(map(str, body)) + "]" for body in self.bodies)
        return f"{self.kind.__name__}({inside})" if inside else self.kind.__name__


@dataclass(frozen=True)
class Plan:
    """A network: blocks on images, blocks on vectors of a width, and how its outputs are returned."""

    seed: int
    images: tuple[Recipe, ...]
    vectors: tuple[Recipe, ...]
    output: str = "tensor"
    width: int = 6

    def __str__(self) -> str:
        shown = " ".join(map(str, (*self.images, "flatten", *self.vectors)))
        return f"seed {self.seed}: {shown} -> {self.output}"


def draw(seed: int) -> Plan:
    """The plan of a seed: two to seven blocks; one in six has one that no rule covers, one a gradient of its own."""
    chance = random.Random(f"network {seed}")
    images = _chain(chance, (EVERYWHERE, EVERYWHERE, ON_IMAGES), chance.choice((0, 1, 2, 3, 4)))
    vectors = _chain(chance, (EVERYWHERE,), chance.choice((1, 2, 3)))
    for turn, kinds in ((0, REFUSED), (3, OWN_GRADIENT)):
        if seed % 6 == turn:
            recipe = Recipe(kinds[seed // 6 % len(kinds)], chance.getrandbits(32))
            vectors.insert(chance.randrange(len(vectors) + 1), recipe)
    return Plan(seed, tuple(images), tuple(vectors), chance.choice(OUTPUTS))


def _recipe(chance: random.Random, kinds: list[Any]) -> Recipe:
    return Recipe(chance.choice(kinds), chance.getrandbits(32))


def _chain(
    chance: random.Random,
    kinds: tuple[list[Any], ...],
    length: int,
    depth: int = 2,
    holding: list[Any] = COMBINATORS,
    inside: list[Any] = EVERYWHERE,
) -> list[Recipe]:
    """Blocks one after another; a third of them hold others, of the kinds `inside`."""
    return [
        _holding(chance, depth, holding, inside)
        if depth and chance.random() < 1 / 3
        else _recipe(chance, chance.choice(kinds))
        for _ in range(length)
    ]


def _holding(chance: random.Random, depth: int, holding: list[Any], kinds: list[Any]) -> Recipe:
    kind = chance.choice(holding)
    # What is run again must be the same again, and must not count its runs, which the slow reference makes once only.
    # In PyTorch the weights are others in the second run in two cases.
    if kind is Functional:
        holding = [other for other in holding if not issubclass(other, Checkpointed)]
    if issubclass(kind, Checkpointed):
        kinds = [other for other in kinds if other not in (Parametrized, Counting)]
    count = getattr(kind, "count", 1)
    bodies = [_chain(chance, (kinds,), chance.choice((1, 1, 2)), depth - 1, holding, kinds) for _ in range(count)]
    return Recipe(kind, chance.getrandbits(32), tuple(map(tuple, bodies)))


class Flat(nn.Module):
    """Images to vectors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


class Network(nn.Module):
    """The blocks of a plan, a linear layer at each end, and the outputs in a container."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.default_generator.manual_seed(plan.seed)
        self.output = plan.output
        shape: tuple[int, ...] = (4, 8, 8) if plan.images else (2, 2, 2)
        stem = layer((3, *shape[1:]), shape[0]) if plan.images else nn.Identity()
        self.images, shape = build(plan.images, shape)
        width = plan.width
        self.between = nn.Sequential(Flat(), nn.Linear(torch.Size(shape).numel(), width)).double()
        self.stem = stem
        self.vectors, _ = build(plan.vectors, (width,))
        self.head = nn.Linear(width, CLASSES).double()

    def forward(self, x: torch.Tensor) -> Any:
        features = self.between(self.images(self.stem(x)))
        logits = self.head(self.vectors(features))
        containers = {
            "tensor": lambda: logits,
            "tuple": lambda: (logits, features),
            "dict": lambda: {"logits": logits, "features": [features]},
            "dataclass": lambda: Outputs(logits, [features]),
            "namedtuple": lambda: Pair(logits, features),
            "list": lambda: [logits, (features,)],
        }
        return containers[self.output]()


def build(recipes: tuple[Recipe, ...], shape: tuple[int, ...]) -> tuple[nn.Sequential, tuple[int, ...]]:
    """The blocks of recipes one after another, for inputs of a shape; and the shape of what they return."""
    blocks = []
    for recipe in recipes:
        bodies = [build(body, shape)[0] for body in recipe.bodies]
        torch.default_generator.manual_seed(recipe.seed)
        block = recipe.kind(random.Random(recipe.seed), shape, *bodies)
        shape = block.shape
        blocks.append(block)
    return nn.Sequential(*blocks), shape


def images(plan: Plan) -> torch.Tensor:
    """What a network takes: [3, channels, H, W]."""
    shape = (3, 3, 8, 8) if plan.images else (3, 2, 2, 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(plan.seed + 1), dtype=torch.float64)


def active(module: nn.Module, training: bool) -> Iterator[Block]:
    """The blocks through which gradients flow in a mode."""
    if isinstance(module, Block):
        yield module
        mode = getattr(module, "mode", "both")
        if mode not in ("both", "train" if training else "eval"):
            return
    for child in module.children():
        yield from active(child, training)


def blocks(module: nn.Module) -> list[Block]:
    """All blocks of a network."""
    return [part for part in module.modules() if isinstance(part, Block)]


def smaller(plan: Plan) -> Iterator[Plan]:
    """The plans with one block less, or with a block's bodies in its place."""
    for part in ("images", "vectors"):
        for fewer in _fewer(getattr(plan, part)):
            yield replace(plan, **{part: fewer})
    if plan.output != "tensor":
        yield replace(plan, output="tensor")


def _fewer(recipes: tuple[Recipe, ...]) -> Iterator[tuple[Recipe, ...]]:
    for i, recipe in enumerate(recipes):
        before, after = recipes[:i], recipes[i + 1 :]
        yield before + after
        for j, body in enumerate(recipe.bodies):
            yield before + body + after
            for fewer in _fewer(body):
                bodies = (*recipe.bodies[:j], fewer, *recipe.bodies[j + 1 :])
                yield (*before, replace(recipe, bodies=bodies), *after)


def smallest(plan: Plan, fails: Any) -> Plan:
    """A plan that fails as `plan` does and none of whose smaller ones do."""
    for fewer in smaller(plan):
        if fails(fewer):
            return smallest(fewer, fails)
    return plan
