"""Starting: what is imported before an option is refused, and that names known without imports are the real ones."""

import subprocess
import sys

import pytest

from configs import CONF, ROOT
from softgate.data import names, sources
from softgate.data.config import NamedData
from softgate.evaluation import choices
from softgate.explainers import KNOWN
from softgate.grids.reading import KINDS
from softgate.grids.scaling import SCALES
from softgate.metrics import corruptions
from softgate.metrics.control_table import BETTER
from softgate.models.networks import CONFIGURED, STEMS
from softgate.training.callbacks.config import GridsConfig

SLOW = ("torchvision", "torchmetrics", "pytorch_lightning", "torch._dynamo", "matplotlib", "scipy", "sklearn", "wandb")

PROGRAM = """
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    print("status", end.code)
print("imported", *sys.modules)
"""


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (["train.py", "lr=1"], ("torch", *SLOW)),
        (["train.py", "model=resnt18"], ("torch", *SLOW)),
        (["train.py", "--help"], ("torch", *SLOW)),
        (["train.py", "--cfg", "job"], ("torch", *SLOW)),
        (["train.py", "optim.lr=fast"], ("torch", *SLOW)),
        (["train.py", "data.augment.flip=3"], ("torch", *SLOW)),
        (["train.py", "callbacks.grids.kind=rwa"], ("torch", *SLOW)),
        (["train.py", "trainer.max_epochs=-3"], ("torch", *SLOW)),
        (["train.py", "train.noise=-1"], ("torch", *SLOW)),
        (["train.py", "surrogate.gate.temperature=-1"], SLOW),
        (["evaluate.py", "runz=x"], ("torch", *SLOW)),
        (["evaluate.py", "runs=x", "grid.kinds=[rwa]"], SLOW),
    ],
)
def test_what_needs_no_library_waits_for_none(words, slow, tmp_path):
    line = [sys.executable, "-c", PROGRAM, str(ROOT / words[0]), *words[1:]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = set(done.stdout.rpartition("imported ")[2].split())
    assert not imported & set(slow), (done.stdout[-300:], done.stderr)
    assert [*tmp_path.iterdir()] == [], "a refused command left something behind"
    assert "status 2" in done.stdout or "--help" in words or "--cfg" in words


def test_names_for_checks_are_those_that_there_are():
    assert tuple(sources.SOURCES) == names.NAMED
    chosen = {path.stem for path in (CONF / "model").glob("*.yaml")}
    assert set(CONFIGURED) | {"default", "target", "timm"} | {"pvt_v2_b1", "whitebox", "dgn", "dlgn"} == chosen
    assert tuple(KNOWN) == choices.EXPLAINERS
    assert (tuple(KINDS), tuple(SCALES)) == (choices.KINDS, choices.SCALES)
    assert tuple(BETTER) == choices.ALIGNMENT
    assert tuple(corruptions.FAMILIES) == choices.FAMILIES
    assert tuple(corruptions.SEVERITIES) == choices.SEVERITIES
    quick = [kind for kind in KINDS if kind != "accentuation"]  # which takes thousands of passes, too many each epoch
    for key, known in (("kind", quick), ("scale", SCALES)):
        assert GridsConfig.model_fields[key].annotation.__args__ == tuple(known)
    assert STEMS[0] == "auto"
    assert set(NamedData.model_fields) > {"root", "archive"}
