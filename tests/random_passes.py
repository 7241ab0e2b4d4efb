"""A pass of a random network: what it leaves, and when two of them are the same."""

import re
from dataclasses import dataclass

import torch

import reference
from random_networks import blocks


@dataclass
class Pass:
    """What a forward and a backward pass leave: tensors in outputs, kept ones, gradients by name, buffers.

    `buffers` are those after the forward pass; `written` after the backward pass, which runs checkpointed parts again.
    """

    outputs: list
    kept: list
    hooked: list
    gradients: dict
    buffers: dict
    written: dict
    random: torch.Tensor
    refused: bool = False


def tensors_in(value):
    """The tensors of an output, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple))
        else vars(value).values()
    )
    return [tensor for part in parts for tensor in tensors_in(part)]


def kept_by(net):
    """What its blocks keep at the moment, copied."""
    found = []
    for block in blocks(net):
        features = getattr(block, "features", None)
        found += [*block.kept, *getattr(block, "by_name", {}).values(), *([] if features is None else [features])]
    return [tensor.detach().clone() for tensor in found]


def forget(net):
    """Empties what blocks keep."""
    for block in blocks(net):
        block.kept.clear()
        block.gradients.clear()
        getattr(block, "by_name", {}).clear()
        if hasattr(block, "features"):
            block.features = None


def weighted(outputs):
    """A fixed mix of all outputs that have a gradient."""
    parts = [t for t in outputs if t.requires_grad]
    return sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in parts)


def run(net, x, state, training, loss=weighted, look=None, fails=False):
    """A pass from a state dict and a random state; where it `fails`, the backward pass must, where None it may."""
    net.load_state_dict(state)
    net.train(training)
    net.zero_grad()
    forget(net)
    torch.default_generator.manual_seed(7)
    leaf = x.clone().requires_grad_()
    outputs = tensors_in(net(leaf))
    found = [t.detach().clone() for t in outputs], kept_by(net)
    buffers = buffers_of(net)
    if look is not None:
        look(outputs)
    refused = False
    try:
        loss(outputs).backward()
    except RuntimeError as error:
        refused = "modified by an inplace operation" in str(error)
        if fails is False or not refused:
            raise
    assert fails is None or refused == fails, "the backward pass works although a ReLU's output is overwritten"
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    gradients["x"] = leaf.grad
    hooked = [t.detach().clone() for block in blocks(net) for t in block.gradients]
    return Pass(*found, hooked, {} if refused else gradients, buffers, buffers_of(net), torch.get_rng_state(), refused)


def buffers_of(net):
    return {name: b.clone() for name, b in net.named_buffers()}


def same_tensors(one, other, what):
    assert len(one) == len(other), f"{what}: {len(one)} tensors, {len(other)} expected"
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        assert torch.equal(a, b), f"{what}: tensor {i} of shape {tuple(a.shape)} differs"


def same_forward(found, bare, what):
    """Bit-equal in all that a forward pass leaves, and in the buffers after the backward pass where both have one."""
    same_tensors(found.outputs, bare.outputs, f"{what}: outputs")
    same_tensors(found.kept, bare.kept, f"{what}: kept tensors")
    same_buffers(found.buffers, bare.buffers, what)
    if found.refused == bare.refused:  # a backward pass that fails does not come to the checkpoints before
        same_buffers(found.written, bare.written, f"{what}, after the backward pass")
    assert torch.equal(found.random, bare.random), f"{what}: random numbers"


def same_buffers(found, bare, what):
    assert found.keys() == bare.keys(), f"{what}: other buffers"
    for name, buffer in bare.items():
        assert torch.equal(found[name].to_dense(), buffer.to_dense()), f"{what}: buffer {name}"


def same_gradients(found, expected, what, within=0.0):
    assert found.gradients.keys() == expected.gradients.keys(), f"{what}: gradients of other parameters"
    whole = sum(float(gradient.norm()) ** 2 for gradient in expected.gradients.values()) ** 0.5
    for name, gradient in expected.gradients.items():
        far = float((found.gradients[name] - gradient).norm()) / max(whole, 1e-300)
        assert far <= within, f"{what}: gradient of {name} is {far:.1e} of the whole gradient off"
    for i, (one, other) in enumerate(zip(found.hooked, expected.hooked, strict=True)):
        assert reference.distance(one, other) <= within, f"{what}: gradient {i} in a hook"


HARD_NODES = re.compile("Relu|Hardtanh|Threshold|MaxPool|Clamp|Maximum|Amax|^MaxBackward")


def hard_nodes(outputs):
    """Nodes of the autograd graph that are activations or max poolings."""
    seen, todo, found = set(), [t.grad_fn for t in outputs], []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += [node.name()] if HARD_NODES.search(node.name()) else []
        todo += [upstream for upstream, _ in node.next_functions]
    return found
