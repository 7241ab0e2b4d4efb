r"""Training weights while the gates are those of a frozen network, image by image.

The gated network :math:`M_{G(x)}(x)` (paper, arXiv 2507.22832, equation 4) with the gates G of a network that does not
change is linear along each path: only the weights of the paths are learnt, and which paths are open at an image is
given. If the paths of epoch s are all that later training uses, as Hypothesis 1 has it, then training the weights from
s on in this way loses nothing. Gated networks of this kind: Lakshminarayanan and Singh (arXiv 2006.10529).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import SoftgateError, require
from softgate.explainers.gated import run
from softgate.explainers.gates import Gates
from softgate.explainers.handlers import Gated, Recorder
from softgate.sites.active_rule import ActiveRule
from softgate.sites.attaching import attach, detach
from softgate.sites.calls import SiteCall, SiteId
from softgate.sites.forward import State, in_checkpoint
from softgate.sites.inference import inner
from softgate.sites.sites import Sites, attached_sites


class FrozenGates:
    """Runs a network with the hard gates that a frozen network of the same architecture has at each image.

    The frozen network is a copy, in eval mode: its gates at an image do not depend on the other images of the batch.
    The network itself runs in the mode that it is in. Gradients reach its weights and the images along the open paths;
    the gates are constants, and the rule in force plays no part.

    Args:
        sites: The call sites of the network whose weights are trained, of `softgate.attach`.
        frozen: The network whose gates are taken; it is copied.

    Attributes:
        sites: The call sites of the network that is trained.
        frozen: The copy.
    """

    def __init__(self, sites: Sites, frozen: nn.Module) -> None:
        self.sites = sites
        self.frozen = copy.deepcopy(inner(frozen)).eval().requires_grad_(requires_grad=False)
        if attached_sites(self.frozen) is not None:
            detach(self.frozen)
        self._frozen_sites = attach(self.frozen, None)

    def __call__(self, x: Tensor) -> Tensor:
        """What the network makes of images [B, ...], its logits [B, classes], with the frozen network's gates.

        With the gates of the same weights, and no BatchNorm in train mode, this is the network itself, bit for bit.

        Raises:
            SoftgateError: If the call sites of the two networks differ, or a part of the network runs again in the
                backward pass, where its gates would be its own.
        """
        gates = self.gates(x)
        handler = _Given(self.sites, gates)
        with self.sites.handled_by(handler):
            out: Any = self.sites.model(x)
        missing = sorted(gates.sites.keys() - handler.used)
        require(not missing, f"paths: the frozen network has gates for {', '.join(missing)}, and the network has not.")
        logits: Tensor = getattr(out, "logits", out)
        return logits

    def gates(self, x: Tensor) -> Gates:
        """The hard gates of the frozen network at images [B, ...]."""
        like = next(self.sites.model.parameters())
        first = next(self.frozen.parameters())
        if (first.device, first.dtype) != (like.device, like.dtype):
            self.frozen.to(like.device, like.dtype)
        recorder = Recorder(self._frozen_sites, ActiveRule(None), len(x))
        with torch.no_grad(), self._frozen_sites.handled_by(recorder):
            self.frozen(x.detach().clone())
        return Gates(recorder.found)

    def check(self, x: Tensor) -> None:
        """Runs some images [B, ...], in eval mode.

        Raises:
            SoftgateError: If the gates do not fit the network, or the network has operations that are not linear with
                its gates given.
        """
        run(self.sites.model, x, self.gates(x))

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of the frozen network."""
        return self.frozen.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts other weights into the frozen network."""
        self.frozen.load_state_dict(state)


class _Given(Gated):
    """Gates of a training step: what would run again without them is refused."""

    def handle(self, call: SiteCall, site: SiteId, state: State) -> Any:
        """What the call returns with the given gates."""
        if state.checkpointed or (state.looks_checkpointed() and in_checkpoint()):
            state.refusal = SoftgateError(
                f"{site.name} is under activation checkpointing, which would run it again with gates of its own; "
                f"switch checkpointing off to train with given gates."
            )
            raise state.refusal
        return super().handle(call, site, state)
