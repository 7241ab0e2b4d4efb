"""What must hold of every random network: bare, by the slow reference, attached, copied, looked at."""

import copy
import pickle
import random
import warnings
from contextlib import nullcontext
from fnmatch import fnmatchcase
from functools import partial

import torch

import reference
import softgate as sg
from random_combinators import Checkpointed, Reentrant
from random_habits import InClosure
from random_networks import Network, active, blocks, images
from random_passes import forget, hard_nodes, kept_by, run, same_forward, same_gradients, same_tensors, tensors_in
from reference_mode import Law, Reference

CLOSE = 1e-10
GATES = [
    *3 * [(sg.gates.Sigmoid(0.3), partial(reference.sigmoid, temperature=0.3))],
    (sg.gates.NormalCDF(0.6), partial(reference.normal_cdf, temperature=0.6)),
    (sg.gates.Softsign(0.3), partial(reference.softsign, temperature=0.3)),
    (sg.gates.BSiLU(1.67), partial(reference.bsilu, alpha=1.67)),
    (sg.gates.NeLU(0.05), partial(reference.nelu, alpha=0.05)),
    (sg.gates.Leaky(0.3), partial(reference.leaky, slope=0.3)),
]
POOLS = [*2 * [(sg.pools.LSE(0.4), "lse")], (sg.pools.SoftmaxFull(0.4), "softmax_full"), (sg.pools.Hard(), "hard")]


class Examination:
    """Everything that is checked of one plan."""

    def __init__(self, plan):
        self.plan = plan
        self.chance = random.Random(f"check {plan.seed}")
        self.net, self.x = Network(plan), images(plan)
        self.state = copy.deepcopy(self.net.state_dict())
        self.facts = {training: list(active(self.net, training)) for training in (False, True)}
        self.gate, self.pool = self.chance.choice(GATES), self.chance.choice(POOLS)
        self.mix = self.chance.choice((1.0, 1.0, 0.5))
        self.share = self.chance.random() < 0.5
        self.attached_in = self.chance.random() < 0.5
        self.order = self.chance.sample((False, True), 2)
        self.selecting = self.chance.choice(("all", "all", "kinds", "names", "exclude", "depth"))

    def fails(self, training):
        return self.bare[training].refused

    def refused(self, training):
        """What a refusal must say: kinds, and modules where they are seen."""
        paths = {module: name for name, module in self.net.named_modules()}
        found = [block for block in self.facts[training] if block.refused]
        return [block.refused for block in found] + [paths[block] for block in found if block.seen]

    @property
    def selects(self):
        """What a warning must name."""
        return {kind for facts in self.facts.values() for block in facts for kind in block.selects}

    @property
    def traceable(self):
        return all(block.traceable for block in blocks(self.net))

    def has(self, kind):
        return any(isinstance(block, kind) for block in blocks(self.net))

    def run(self, net=None, training=False, **options):
        return run(self.net if net is None else net, self.x, self.state, training, **options)

    def __call__(self):
        self.bare = {t: self.run(training=t, fails=None) for t in (False, True)}
        for training, bare in self.bare.items():
            assert not bare.refused or not all(block.trainable for block in self.facts[training])
        if any(self.refused(training) for training in (False, True)):
            self.check_refusal()
        else:
            self.check_covered()

    # -- networks with a block that no rule covers --

    def check_refusal(self):
        rule = sg.Surrogate(self.gate[0], sg.pools.LSE(0.4))
        before = self.footprint()
        for training in (False, True):
            self.net.train(training)
            refused = self.refused(training)
            try:
                with warnings.catch_warnings(), sg.attach(self.net, rule):
                    warnings.simplefilter("ignore")
                    self.run(training=training)
                said = ""
            except sg.UnreachableSites as error:
                said = str(error)
            assert bool(said) == bool(refused), f"training={training}: {said or 'not refused'}"
            assert all(part in said for part in refused), said
            self.net.train(False)
            assert self.footprint() == before, "a refused network is not what it was"
            found = self.run(training=training, fails=self.fails(training))
            same_forward(found, self.bare[training], "after a refusal")
            same_gradients(found, self.bare[training], "after a refusal")

    # -- networks that are covered --

    def check_covered(self):
        self.net.train(self.attached_in)
        self.choose()
        rule = sg.Surrogate(self.gate[0], self.pool[0], mix=self.mix, sites=self.select)
        self.references()
        before = self.footprint(self.attached_in)
        self.check_strict(rule)
        self.net.train(self.attached_in)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.sites = sg.attach(self.net, rule, share=self.share)
            twins = self.twins()
            soft = {}
            for training in self.order:
                soft[training] = self.check_mode(training)
        told = [w for w in told if issubclass(w.category, sg.SoftgateWarning)]
        found = {line.split(" in ")[0] for line in self.sites.unaffected}
        assert found == self.selects, f"named as having a gradient of their own: {found}, expected {self.selects}"
        assert bool(told) == bool(self.selects), [str(w.message) for w in told]
        self.check_table()
        for what, twin in twins.items():
            self.check_twin(what, twin, soft[False])
        self.check_pullback(rule)
        self.check_without_gradient()
        self.sites.detach()
        for training in (False, True):
            found = self.run(training=training, fails=self.fails(training))
            same_forward(found, self.bare[training], "after detach")
            same_gradients(found, self.bare[training], "after detach")
        forget(self.net)
        self.net.train(self.attached_in)
        assert self.footprint(self.attached_in) == before, "detach leaves something behind"

    def choose(self):
        """A choice of sites, by what the reference has seen of them."""
        self.select, self.chosen = sg.Select(), None
        seen = {}
        for training in (False, True):
            with Reference(self.net, Law(self.gate[1])) as watching:
                self.run(training=training)
            seen[training] = watching.sites
        self.seen = seen
        both = [site for site in seen[False] if site in seen[True]]
        fine = both and not any(map(self.fails, (False, True))) and not self.has(Checkpointed)
        if self.selecting == "all" or not fine:
            return
        every = list(dict.fromkeys([*seen[False], *seen[True]]))
        name, kind = self.chance.choice(both)
        if self.selecting == "kinds":
            self.select, self.chosen = sg.Select(kinds=(kind,)), {n for n, k in every if k == kind}
        elif self.selecting == "names":
            pattern = self.chance.choice([name, f"{name.split('.')[0]}*", f"*{name[-3:]}"])
            self.select, self.chosen = sg.Select(names=(pattern,)), {n for n, _ in every if fnmatchcase(n, pattern)}
        elif self.selecting == "exclude" and len(both) > 1:
            self.select, self.chosen = sg.Select(exclude=(name,)), {n for n, _ in every if n != name}
        elif self.selecting == "depth" and self.traceable and seen[False] == seen[True]:
            share = {n: i / max(1, len(both) - 1) for i, (n, _) in enumerate(both)}
            self.select, self.chosen = (
                sg.Select(depth=(0.0, share[name])),
                {n for n in share if share[n] <= share[name]},
            )

    def references(self):
        """The passes of the slow reference."""
        self.expected = {}
        law = Law(self.gate[1], self.pool[1], 0.4, self.mix, self.chosen)
        whole = self.chosen is None and self.mix == 1 and self.pool[1] != "hard" and not self.selects

        def look(outputs):
            assert not whole or not hard_nodes(outputs), f"the reference leaves {hard_nodes(outputs)}"

        for training in (False, True):
            with Reference(self.net, law):
                self.expected[training] = self.run(training=training, look=look)
            same_tensors(self.expected[training].outputs, self.bare[training].outputs, "the reference's outputs")

    def check_strict(self, rule):
        """A strict rule refuses the calls that have a gradient of their own."""
        try:
            with sg.attach(self.net, rule, strict=True):
                for training in self.order:
                    self.run(training=training)
            said = ""
        except sg.UnreachableSites as error:
            said = str(error)
        assert bool(said) == bool(self.selects), said or f"strict lets {self.selects} pass"

    def check_mode(self, training):
        what = f"training={training}"
        soft = self.run(training=training)
        same_forward(soft, self.bare[training], f"attached, {what}")
        same_gradients(soft, self.expected[training], f"attached, {what}", CLOSE)
        with self.sites.use(None):
            hard = self.run(training=training, fails=self.fails(training))
        same_forward(hard, self.bare[training], f"use(None), {what}")
        same_gradients(hard, self.bare[training], f"use(None), {what}")
        return soft

    def check_table(self):
        called = {(site.name, site.kind) for site in self.sites.table() if site.calls}
        expected = {*self.seen[False], *self.seen[True]}
        if self.has(Reentrant):  # its first run is without gradients, as its no_grad branches are
            called &= expected
        assert called == expected, f"call sites {sorted(called ^ expected)} of one side only"

    def twins(self):
        """A deep copy and a pickle of the attached network, where the bare one can be pickled."""
        forget(self.net)
        made = {"deepcopy": copy.deepcopy(self.net)}
        try:
            pickle.dumps(Network(self.plan))
        except (AttributeError, RuntimeError, pickle.PicklingError):
            return made
        return made | {"pickle": pickle.loads(pickle.dumps(self.net))}

    def check_twin(self, what, twin, soft):
        found = self.run(twin)
        if self.has(InClosure):  # a function's closure leads to the original's layers in every copy
            found.gradients, soft = {"x": found.gradients["x"]}, copy.copy(soft)
            soft.gradients = {"x": soft.gradients["x"]}
        found.random = soft.random
        if self.has_closures():  # so does that of a hook: what it keeps is kept there
            found.kept = soft.kept
        same_forward(found, soft, what)
        same_gradients(found, soft, what)
        sg.detach(twin)
        if not self.has(InClosure):
            bare = self.run(twin, fails=self.fails(False))
            same_gradients(bare, self.bare[False], f"{what}, detached")

    def check_pullback(self, rule):
        """A look at the network gives the attached network's gradient, and leaves the network as it was."""
        if self.has(Reentrant) or not self.seen[False]:
            return

        def one(outputs):
            return outputs[0][:, 1].sum()

        expected = self.run(loss=one).gradients["x"]
        forget(self.net)
        self.net.train(True)
        modes = [module.training for module in self.net.modules()]
        state = copy.deepcopy(self.net.state_dict())
        self.net.zero_grad()
        keeps = self.plan.output in ("tensor", "dataclass")
        wrong = nullcontext() if keeps else _raises(sg.SoftgateError)
        for net in (self.net, Network(self.plan)):
            with wrong, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = sg.pullback(net, self.x, 1, rule)
                far = reference.distance(found, expected)
                assert far <= 1e-12, f"pullback is {far:.1e} off"
        assert modes == [module.training for module in self.net.modules()]
        for name, value in self.net.state_dict().items():
            assert torch.equal(value.to_dense(), state[name].to_dense()), f"pullback changes {name}"
        assert all(p.grad is None for p in self.net.parameters()), "pullback leaves gradients"
        assert not kept_by(self.net), "pullback leaves tensors in the network"

    def has_closures(self):
        return any(getattr(block, "where", "") == "closure" for block in blocks(self.net))

    def check_without_gradient(self):
        for off in (torch.no_grad, torch.inference_mode):
            self.net.load_state_dict(self.state)
            self.net.eval()
            forget(self.net)
            with off():
                same_tensors(tensors_in(self.net(self.x)), self.bare[False].outputs, f"{off.__name__}: outputs")
        forget(self.net)

    def footprint(self, training=False):
        """Names and flags in every module's __dict__."""
        self.net.train(training)
        forget(self.net)
        return [
            {key: value if isinstance(value, (bool, str)) else type(value) for key, value in vars(module).items()}
            for module in self.net.modules()
        ]


class _raises:
    """As `pytest.raises`, without its pytest: plans are examined outside of tests too."""

    def __init__(self, kind):
        self.kind = kind

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert kind is not None, f"no {self.kind.__name__} is raised"
        return issubclass(kind, self.kind)


def examine(plan):
    """Raises for the first thing that does not hold of a plan's network."""
    Examination(plan)()
