"""The backward rule: which gate at the ReLUs, which weights at the max pools, how scaled and mixed.

A `Surrogate` is frozen plain data. It can be hashed, compared, pickled and written into a config or a
checkpoint as a dict; `Surrogate.from_dict` is the one place where a rule is built from plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from softgate.errors import is_number, require, unknown
from softgate.surrogate import activations, attentions, gates, pools
from softgate.surrogate.parts import build, name_of, rms_gain, warmed
from softgate.surrogate.schedule import Schedule
from softgate.surrogate.selection import NORMS, POOLS, SMOOTH, Kind, Select

SCALES = ("global", "channel")
GAINS = ("raw", "unit_rms", "matched")
HOLDS = ("own", "constant")
"""What may become of the statistics of a normalisation and of the gate of a product."""

PARTS: dict[str, tuple[type, Mapping[str, type]]] = {
    "gate": (gates.Gate, gates.KNOWN),
    "pool": (pools.Pool, pools.KNOWN),
    "activation": (activations.Activation, activations.KNOWN),
    "attention": (attentions.Attention, attentions.KNOWN),
}
"""The parts of a rule that have settings: their base, and each by its name in configs."""

NAMED = (
    "excitation",
    "excitation_matched",
    "excitation_unit_rms",
    "nelu",
    "none",
    "normal_cdf",
    "proxy",
    "random_gate",
    "semantic",
    "shuffled_gate",
    "softsign",
    "sugar",
)
"""The choices of `surrogate=` in configs; each is a constructor of `Surrogate` by the same name."""


class Options(TypedDict, total=False):
    """What every rule shares; see `Surrogate`."""

    scale: str
    gain: str
    mix: float
    sites: Select
    schedule: Schedule
    strict: bool
    activation: activations.Activation
    norm: str
    attention: attentions.Attention
    product: str


@dataclass(frozen=True)
class Surrogate:
    """A backward-only rule; the forward pass is never touched.

    Args:
        gate: The gate of every ReLU call site (paper, equation 21).
        pool: The rule of every max-pool call site (paper 5.3).
        scale: "global": temperatures are in units of the activation, the same everywhere. "channel": in units of the
            running standard deviation of each channel of each call site (paper 4.2 and 5.2), which is estimated in
            training or by `softgate.calibrate`.
        gain: "raw" takes the gate as it is. "unit_rms" divides it by sqrt(E[gate(z)^2] / 0.5), z ~ N(0, 1), so
            that it passes on as much gradient energy as the hard gate does on average. "matched" rescales the
            gradient of each example at each call site, poolings included, to the norm of its true gradient there.
        mix: In [0, 1]. The gradient used is mix * surrogate + (1 - mix) * true gradient, at each call site.
        sites: Which call sites the rule governs; all of them by default.
        schedule: How temperature and mix change over training, and when the rule is on; `at` gives the rule of a
            moment. What is said here about one rule holds at the start of training.
        strict: Refuse a model that selects or bends data where no rule reaches, rather than warn of it; see `attach`.
        activation: The rule of smooth activations (SiLU, GELU, Hardswish, Mish, ELU, SELU, CELU, Softplus). Under `Own`
            a soft rule refuses networks that have them, Softplus excepted.
        norm: Of LayerNorm, GroupNorm, InstanceNorm and RMSNorm, which then are affine: "constant" holds mean and
            standard deviation constant, dy/dx = weight / std; "own" is the true gradient.
        attention: The rule of attention, in every spelling.
        product: Of products with a gate that the network computes (squeeze-and-excitation, GLU, SwiGLU, a hand-written
            SiLU): "constant" holds the gate's branch constant; "own" is the true gradient.

    Raises:
        SoftgateError: If an option is out of range; the message says what is allowed.
    """

    gate: gates.Gate = field(default_factory=gates.Sigmoid)
    pool: pools.Pool = field(default_factory=pools.LSE)
    scale: str = "global"
    gain: str = "raw"
    mix: float = 1.0
    sites: Select = field(default_factory=Select)
    schedule: Schedule = field(default_factory=Schedule)
    strict: bool = False
    activation: activations.Activation = field(default_factory=activations.Own)
    norm: str = "own"
    attention: attentions.Attention = field(default_factory=attentions.Own)
    product: str = "own"
    _gain: float = field(init=False, repr=False, compare=False, default=1.0)

    def __post_init__(self) -> None:
        for part, (base, _) in PARTS.items():
            given, module = getattr(self, part), base.__module__.rpartition(".")[2]
            fits = isinstance(given, base)
            require(fits, f"surrogate.{part}={given!r}: a softgate.{module}.{base.__name__} is needed.")
        for option in ("norm", "product"):
            if getattr(self, option) not in HOLDS:
                raise unknown(f"surrogate.{option}", getattr(self, option), HOLDS)
        if self.scale not in SCALES:
            raise unknown("surrogate.scale", self.scale, SCALES)
        if self.gain not in GAINS:
            raise unknown("surrogate.gain", self.gain, GAINS)
        number = is_number(self.mix)
        require(number and 0 <= self.mix <= 1, f"surrogate.mix={self.mix}: a number from 0 to 1 is needed.")
        require(isinstance(self.sites, Select), f"surrogate.sites={self.sites!r}: a softgate.Select is needed.")
        require(
            isinstance(self.schedule, Schedule),
            f"surrogate.schedule={self.schedule!r}: a softgate.Schedule is needed.",
        )
        require(isinstance(self.strict, bool), f"surrogate.strict={self.strict}: true or false is needed.")
        warms = any(hasattr(getattr(self, part), "temperature") for part in PARTS)
        require(
            self.schedule.temperature is None or warms,
            f"surrogate.schedule.temperature: neither {self.gate} nor {self.pool} has a temperature.",
        )
        require(
            not (self.blocks and self.sites.needs_order),
            f"surrogate.sites.depth={self.sites.depth}: depth counts activations and poolings; with a rule for "
            f"norm, attention or product choose by names or kinds.",
        )
        # Found here and kept: a compiled backward pass cannot integrate.
        if self.gain == "unit_rms":
            object.__setattr__(self, "_gain", rms_gain(self.gate, self.mix))

    # -- the rules that configs call by name: `surrogate=excitation` is `Surrogate.excitation()` --

    @classmethod
    def excitation(
        cls, temperature: float = 0.3, pool_temperature: float | None = None, **options: Unpack[Options]
    ) -> Surrogate:
        """Excitation pullbacks: sigmoid(z / T) at ReLUs, softmax(x / T) at max pools (paper 4.2, Listing 1).

        Args:
            temperature: T > 0, in units of the pre-activation.
            pool_temperature: That of max pools, where it is another.
            options: What every rule shares: scale, gain, mix, sites, schedule, strict.
        """
        pool = pools.LSE(temperature if pool_temperature is None else pool_temperature)
        return cls(gates.Sigmoid(temperature), pool, **options)

    @classmethod
    def excitation_matched(cls, temperature: float = 0.3, **options: Unpack[Options]) -> Surrogate:
        """`excitation` with gain="matched": at each call site the norm of the true gradient, for each example."""
        return replace(cls.excitation(temperature, **options), gain="matched")

    @classmethod
    def excitation_unit_rms(cls, temperature: float = 0.3, **options: Unpack[Options]) -> Surrogate:
        """`excitation` with gain="unit_rms": the gradient's energy kept for z ~ N(0, 1)."""
        return replace(cls.excitation(temperature, **options), gain="unit_rms")

    @classmethod
    def normal_cdf(
        cls, temperature: float = 0.6, pool_temperature: float = 0.3, **options: Unpack[Options]
    ) -> Surrogate:
        """Phi(z / T) at ReLUs, softmax(x / pool_temperature) at max pools."""
        return cls(gates.NormalCDF(temperature), pools.LSE(pool_temperature), **options)

    @classmethod
    def softsign(cls, temperature: float = 0.3, pool_temperature: float = 0.3, **options: Unpack[Options]) -> Surrogate:
        """(1 + z / (T + abs(z))) / 2 at ReLUs, softmax(x / pool_temperature) at max pools."""
        return cls(gates.Softsign(temperature), pools.LSE(pool_temperature), **options)

    @classmethod
    def sugar(cls, alpha: float = 1.67, **options: Unpack[Options]) -> Surrogate:
        """SUGAR's B-SiLU gates (arXiv 2505.22074); max pools keep their true gradient, as published."""
        return cls(gates.BSiLU(alpha), pools.Hard(), **options)

    @classmethod
    def nelu(cls, alpha: float = 0.05, **options: Unpack[Options]) -> Surrogate:
        """SUGAR's NeLU gates (arXiv 2505.22074), negative below zero; max pools keep their true gradient."""
        return cls(gates.NeLU(alpha), pools.Hard(), **options)

    @classmethod
    def proxy(cls, slope: float = 0.3, **options: Unpack[Options]) -> Surrogate:
        """ProxyGrad's leaky gates (arXiv 2410.16958), `slope` below zero; max pools keep their true gradient."""
        return cls(gates.Leaky(slope), pools.Hard(), **options)

    @classmethod
    def random_gate(cls, temperature: float = 0.3, seed: int = 0, **options: Unpack[Options]) -> Surrogate:
        """A control: sigmoid(u / T) with u ~ N(0, 1) drawn once for each unit, whatever the input."""
        return cls(gates.Random(temperature=temperature, seed=seed), pools.LSE(temperature), **options)

    @classmethod
    def shuffled_gate(cls, temperature: float = 0.3, **options: Unpack[Options]) -> Surrogate:
        """A control: every example gets the excitation gates of another one of its batch."""
        return cls(gates.Shuffled(temperature), pools.LSE(temperature), **options)

    @classmethod
    def semantic(cls, temperature: float = 0.6, pool_temperature: float = 0.3, **options: Unpack[Options]) -> Surrogate:
        """Semantic pullbacks (arXiv 2507.22832 v6): a rule for everything that selects, also in transformers.

        Phi(z / T) at ReLUs, softmax(x / pool_temperature) at max pools, the own gate of smooth activations, constant
        statistics of normalisations, the value path of attention, constant gates of products.
        """
        usual = cls.normal_cdf(temperature, pool_temperature)
        held: Any = {"activation": activations.SelfGate(), "attention": attentions.ValuePath()}
        return replace(usual, **(held | {"norm": "constant", "product": "constant"} | options))

    @classmethod
    def none(cls, **options: Unpack[Options]) -> Surrogate:
        """The true gradient: hard gates everywhere, the arm that every comparison needs."""
        return cls(gates.Hard(), pools.Hard(), **options)

    @property
    def softens_relu(self) -> bool:
        """Whether ReLU call sites differ from the true gradient under this rule."""
        return self.mix > 0 and not isinstance(self.gate, gates.Hard)

    @property
    def softens_pool(self) -> bool:
        """Whether max-pool call sites differ from the true gradient under this rule."""
        return self.mix > 0 and not isinstance(self.pool, pools.Hard)

    @property
    def blocks(self) -> frozenset[str]:
        """Which of "norm", "attention" and "product" differ from the true gradient under this rule."""
        if not self.mix:
            return frozenset()
        own = {"norm": self.norm == "own", "product": self.product == "own"}
        own["attention"] = isinstance(self.attention, attentions.Own)
        return frozenset(name for name, off in own.items() if not off)

    def softens(self, kind: str) -> bool:
        """Whether call sites of a kind differ from the true gradient under this rule."""
        if kind in POOLS:
            return self.softens_pool
        if kind in SMOOTH:
            return self.mix > 0 and not isinstance(self.activation, activations.Own)
        if kind in NORMS:
            return "norm" in self.blocks
        if kind in (Kind.ATTENTION, Kind.PRODUCT):
            return kind in self.blocks
        return self.softens_relu

    @property
    def soft(self) -> bool:
        """Whether anything differs from the true gradient under this rule."""
        return any(map(self.softens, (Kind.RELU, Kind.MAX_POOL2D, Kind.SILU))) or bool(self.blocks)

    @property
    def rms(self) -> float:
        """What the factor is divided by: sqrt(E[factor^2] / 0.5) for gain="unit_rms", else 1."""
        return self._gain

    @property
    def matches(self) -> bool:
        """Whether gradients are rescaled to the norm of the true gradient."""
        return self.gain == "matched"

    def at(self, epoch: float = 0.0, step: int = 0) -> Surrogate:
        """The rule of a moment in training, with nothing left to change.

        Args:
            epoch: Epochs done; a fraction within an epoch.
            step: Optimiser steps done.
        """
        plan = self.schedule
        if plan.constant:
            return self
        mix = self.mix if plan.mix is None else plan.mix.at(epoch, step)
        if plan.on is not None and not plan.on.at(epoch, step):
            mix = 0.0
        parts: dict[str, Any] = {}
        if plan.temperature is not None:
            factor = plan.temperature.at(epoch, step)
            parts = {part: warmed(getattr(self, part), factor) for part in PARTS}
        return replace(self, **parts, mix=mix, schedule=Schedule())

    def at_site(self, name: str) -> Surrogate:
        """The rule of the call site of that name; the same everywhere, unless the gates are random."""
        return replace(self, gate=self.gate.at_site(name)) if self.gate.local else self

    def __call__(self, z: Tensor) -> Tensor:
        """The factor on the upstream gradient at a ReLU: gate, mix and unit_rms gain together.

        Args:
            z: Pre-activations, any shape, in units of the temperature.

        Returns:
            Factors of the same shape.
        """
        factor = self.gate.mixed(z, self.mix)
        return factor if self.gain != "unit_rms" else factor / self._gain

    def pull(self, grad: Tensor, z: Tensor) -> Tensor:
        """The gradient through a ReLU, factor(z) * grad; see `softgate.gates.Gate.pull`."""
        out = self.gate.pull(grad, z)
        if self.mix != 1:
            out = torch.lerp(gates.Hard().pull(grad, z), out, self.mix)
        return out if self.gain != "unit_rms" else out / self._gain

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain data: `{"gate": {"name": ..., ...}, "pool": {...}, "scale": ..., ...}`."""
        kinds = [str(kind) for kind in self.sites.kinds]  # an enum's member is no plain data: torch.load refuses it
        usual = type(self)()
        parts: dict[str, Any] = {
            part: {"name": name_of(getattr(self, part), known), **asdict(getattr(self, part))}
            for part, (_, known) in PARTS.items()
            if part in ("gate", "pool") or getattr(self, part) != getattr(usual, part)
        }
        later = {key: getattr(self, key) for key in ("norm", "product", "strict")}
        plain = {
            "gate": parts.pop("gate"),
            "pool": parts.pop("pool"),
            "scale": self.scale,
            "gain": self.gain,
            "mix": self.mix,
            "sites": {key: list(value) for key, value in asdict(self.sites).items()} | {"kinds": kinds},
            "schedule": self.schedule.to_dict(),
        }
        # A rule of before is written as before.
        return plain | parts | {key: value for key, value in later.items() if value != getattr(usual, key)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Surrogate:
        """Builds the rule that `to_dict` wrote or a config describes; left-out keys take their defaults.

        Raises:
            SoftgateError: For an unknown key, an unknown gate or pool, or a setting out of range.
        """
        require(isinstance(plain, Mapping), f"surrogate={plain}: a dict is needed.")
        settings = dict(plain)
        known = {f.name for f in fields(cls) if f.init}
        for key in settings:
            if key not in known:
                raise unknown("surrogate", key, known)
        for part, (_, kinds) in PARTS.items():
            if part in settings:
                settings[part] = build(f"surrogate.{part}", settings[part], kinds)
        if "sites" in settings:
            chosen, allowed = settings["sites"], {f.name for f in fields(Select)}
            require(isinstance(chosen, Mapping), f"surrogate.sites={chosen}: a dict is needed.")
            for key in chosen:
                if key not in allowed:
                    raise unknown("surrogate.sites", key, allowed)
            settings["sites"] = Select(**chosen)
        if "schedule" in settings:
            settings["schedule"] = Schedule.from_dict(settings["schedule"])
        return cls(**settings)
