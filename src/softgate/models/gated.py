r"""Deep gated networks: the gates of one network, the values of another (arXiv 2006.10529, 2110.03403).

A ReLU network is both in one: its pre-activations decide which gates are open, and they are what goes through. A deep
gated network (DGN) gives the two to two networks of one shape. The *feature network*, with weights
:math:`\Theta^f`, computes pre-activations :math:`u_\ell(x)`, and these the gates; the *value network*, with weights
:math:`\Theta^v`, has no activation of its own,

.. math:: h_\ell = g(u_\ell(x)) \odot (W^v_\ell h_{\ell-1} + b^v_\ell), \quad g(u) = 1[u > 0]
   \ \text{or}\ (1 + \epsilon)\,\sigma(\beta u).

For given gates it is affine in its input, and linear in the weights of each layer. In a deep linearly gated network
(DLGN) the feature network has no activation either, so that every gate is a half-space of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from softgate.errors import SoftgateError, require
from softgate.models.gated_options import Gating
from softgate.sites.calls import ActivationCall, PoolCall, UnsupportedCall
from softgate.sites.classification import classify
from softgate.surrogate.functional import gated_by
from softgate.surrogate.inputs import checked
from softgate.surrogate.selection import Kind

EPSILON = 0.1
"""By how much an open soft gate is above 1 (`eps` of the published code of arXiv 2006.10529)."""

LINEAR = 1e-3
"""How far, relative to its values, a network in float32 may be from affine and count as such."""


class GatedNetwork(nn.Module):
    r"""A value network that runs with the gates of a feature network.

    Each call of a ReLU in the value network is a product with the gate that the same call has in the feature network,
    each max pooling an average over the same window. A feature network with `gating="relu"` runs as it is; with
    "linear" its ReLUs pass everything on and its max poolings are averages too.

    The state dict is that of the two under `feature.` and `value.`. What `options.regime` freezes has no gradient, and
    a frozen feature network stays in eval mode. Layers of the feature network behind its last gate, such as its
    last one, play no part and are frozen always.

    Under `softgate.attach` a hard gate is a call site in the value network, `value.layer1.0.relu`: the gradient to the
    value network's pre-activation is times the rule's gate of the feature network's. With the same weights in both
    that is the ReLU network and its pullback. Soft gates are products with a gate, which `product` rules hold constant.

    Args:
        feature: A network of ReLUs; not copied.
        value: Another one of the same architecture.
        shape: Channels, height and width of the images it is tried on.
        options: Gating, gates, regime and input of the value network.

    Attributes:
        gates_given: Whether a handler of its call sites puts gates in (`softgate.paths.kernel`), so that the feature
            network need not run.

    Raises:
        SoftgateError: If there is no ReLU, or an activation or pooling that is not a ReLU or max pooling; if the value
            network is not affine with its gates given, or the feature network of linear gating not affine.
    """

    @checked
    def __init__(
        self, feature: nn.Module, value: nn.Module, shape: tuple[int, int, int], options: Gating | None = None
    ) -> None:
        super().__init__()
        self.feature, self.value = feature, value
        self.options = options or Gating()
        self.gates_given = False
        for module in self.modules():
            if isinstance(getattr(module, "inplace", None), bool):
                module.inplace = False  # type: ignore[assignment]  # gates and values read what it would overwrite
        if self.options.frozen:
            feature.requires_grad_(requires_grad=False).eval()
        self.training = value.training
        self._try(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        values = _Values(None if self.gates_given else self.gates(x))
        with values:
            out: Any = self.value(torch.ones_like(x) if self.options.value_input == "ones" else x)
        values.check_all_taken()
        logits: Tensor = getattr(out, "logits", out)
        return logits

    def gates(self, x: Tensor) -> list[Gate]:
        """The gates of images [B, C, H, W], one for each ReLU call in the order of the forward pass."""
        hard = self.options.hard
        reading = _Features(self.options, hidden=hard and not isinstance(x, fx.Proxy))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not hard), reading:
            self.feature(x)
        return reading.found

    def train(self, mode: bool = True) -> GatedNetwork:
        """Puts both networks in train or eval mode, a frozen feature network always in eval mode."""
        super().train(mode)
        if self.options.frozen:
            self.feature.eval()
        return self

    def _try(self, shape: tuple[int, int, int]) -> None:
        """Runs both networks on noise: what they have that no gated network can have, and which layers play no part."""
        like = next(self.value.parameters())
        generator = torch.Generator().manual_seed(0)
        a, b = (3 * torch.randn(1, *shape, generator=generator).to(like) for _ in range(2))
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            gates = self.gates(a)
            require(bool(gates), f"{self._name}: it has no ReLU, so there is no gate to take from it.")
            self._freeze_what_plays_no_part(a)
            with torch.no_grad():
                self._check_affine(a, b)
        finally:
            for module, training in modes:
                module.training = training

    @property
    def _name(self) -> str:
        return f"GatedNetwork of {type(self.value).__name__}"

    def _freeze_what_plays_no_part(self, x: Tensor) -> None:
        parameters = [p for p in self.feature.parameters() if p.requires_grad]
        if not parameters:
            return
        with torch.enable_grad():
            total = torch.stack([gate.of.sum() for gate in self.gates(x)]).sum()
            found = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _check_affine(self, a: Tensor, b: Tensor) -> None:
        gates = self.gates(a)

        def logits(x: Tensor) -> list[Tensor]:
            with _Values(gates):
                out: Any = self.value(x)
            return [getattr(out, "logits", out)]

        require(
            _affine(logits, a, b),
            f"{self._name}: with its gates given the value network is not affine: beside ReLU and max pooling it has "
            f"operations that are not, such as squeeze-and-excitation, attention or a normalisation of each image.",
        )
        if self.options.gating == "linear":
            linear = _affine(lambda x: [gate.of for gate in self.gates(x)], a, b)
            require(linear, f"{self._name}: gating=linear: without its ReLUs the feature network is not affine.")


class Gate:
    """The gate of one ReLU call.

    Args:
        of: [B, ...] pre-activations of the feature network, u.
        options: Hard gates, 1[u > 0], or soft ones, 1.1 sigmoid(beta u).
    """

    def __init__(self, of: Tensor, options: Gating) -> None:
        self.of = of
        self.soft = None if options.hard else (1 + EPSILON) * torch.sigmoid(options.beta * of)

    def times(self, z: Tensor) -> Tensor:
        """The gate times values of the same shape."""
        if isinstance(z, Tensor) and isinstance(self.of, Tensor):
            fits = z.shape == self.of.shape
            said = f"gated network: a gate of shape {tuple(self.of.shape)} and values of shape {tuple(z.shape)}: the "
            require(fits, f"{said}feature and value network must be of one architecture.")
        return gated_by(z, self.of) if self.soft is None else z * self.soft


class _Features(TorchFunctionMode):
    """Keeps the gates of a feature network's forward pass.

    Args:
        options: Of the gated network.
        hidden: Whether other modes see nothing of the pass: constants have no call sites.
    """

    def __init__(self, options: Gating, hidden: bool) -> None:
        super().__init__()
        self.options, self.hidden = options, hidden
        self.found: list[Gate] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.hidden:
            return self._run(func, args, kwargs)
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        call = _sorted(func, args, kwargs)
        linear = self.options.gating == "linear"
        if isinstance(call, PoolCall) and linear:
            return _averaged(call)
        if not isinstance(call, ActivationCall):
            return func(*args, **kwargs)
        self.found.append(Gate(call.z.clone() if call.inplace else call.z, self.options))
        return call.z if linear else call.original()


class _Values(TorchFunctionMode):
    """Puts products with given gates in the place of a value network's ReLUs, averages in that of its max poolings."""

    def __init__(self, gates: list[Gate] | None) -> None:
        super().__init__()
        self.gates, self.taken = gates, 0  # None: a handler of the call sites has them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = _sorted(func, args, kwargs)
        if isinstance(call, PoolCall):
            return _averaged(call)
        if not isinstance(call, ActivationCall):
            return func(*args, **kwargs)
        if self.gates is None:
            return gated_by(call.z, call.z)
        self.taken += 1
        require(self.taken <= len(self.gates), f"gated network: {len(self.gates)} gates, and the value network {MORE}.")
        out = self.gates[self.taken - 1].times(call.z.clone() if call.inplace else call.z)
        return call.z.copy_(out) if call.inplace else out

    def check_all_taken(self) -> None:
        """Raises `SoftgateError` if some gate was not used."""
        count = self.taken if self.gates is None else len(self.gates)
        require(count == self.taken, f"gated network: {count} gates, and the value network calls {self.taken} ReLUs.")


MORE = "calls more ReLUs than that"


def _sorted(func: Any, args: Any, kwargs: Any) -> ActivationCall | PoolCall | None:
    """The call of a ReLU or a max pooling that a function call is; None for all that is no activation."""
    call = classify(func, args, kwargs)
    if isinstance(call, UnsupportedCall) or (isinstance(call, ActivationCall) and call.kind is not Kind.RELU):
        raise SoftgateError(
            f"gated network: the network has {call.kind}, and a gated network is made of one with ReLU and 2D max "
            f"pooling alone."
        )
    return call if isinstance(call, (ActivationCall, PoolCall)) else None


def _averaged(call: PoolCall) -> Tensor:
    """The average of what a max pooling takes the maximum of; elements in the padding do not count."""
    fits = call.covered and not call.indices
    require(
        fits, "gated network: a max pooling that returns indices, or has windows of different sizes, has no average."
    )
    window = call.window()
    require(window.dilation == (1, 1), "gated network: a dilated max pooling has no average pooling in its place.")
    settings = window.kernel, window.stride, window.padding, window.ceil_mode
    return call.shaped(F.avg_pool2d(call.x, *settings, count_include_pad=False))


def _affine(function: Any, a: Tensor, b: Tensor) -> bool:
    """Whether a function of images, which returns tensors, has at the midpoint the mean of its values."""
    for first, second, middle in zip(function(a), function(b), function((a + b) / 2), strict=True):
        size = torch.maximum(first.abs().max(), second.abs().max())
        if not (middle - (first + second) / 2).abs().max() <= LINEAR * size:
            return False
    return True
