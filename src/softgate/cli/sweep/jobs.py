"""One job of a sweep: its config, its directory, and what the files in there say has become of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from softgate import files
from softgate.errors import JobFailed, SoftgateError, require
from softgate.quoting import quoted
from softgate.training import summary
from softgate.training.config import TrainConfig, name_of, own_words
from softgate.training.config_differences import FREE, LENGTH, differences

FINISHED = "finished"
WAITING, RUNNING, INTERRUPTED = "waiting", "running", "interrupted"

INDIFFERENT = tuple(key for key in FREE if key not in LENGTH)
"""Keys that may differ when a sweep goes on: none of them changes what a job computes."""


@dataclass
class Job:
    """A job, from before it is started until after it has ended.

    Attributes:
        number: Its number in the sweep, from 0.
        overrides: What was asked of this job on the command line or by a search, as KEY=VALUE.
        directory: The run's directory.
        config: Its whole config.
        composed: The config as Hydra composed it, with the hydra node.
        told: The keys that tell it from other jobs: their overrides were not typed as they are.
        status: waiting, running, finished, or how it ended otherwise.
        why: The last error in its output, where it failed.
        seconds: How long it trained, or its process ran where it did not finish.
        again: Whether it was begun before and goes on now.
        summary: What the run has written of its metrics.
    """

    number: int
    overrides: list[str]
    directory: Path
    config: TrainConfig
    composed: DictConfig
    told: list[str]
    status: str = WAITING
    why: str = ""
    seconds: float = 0.0
    again: bool = False
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def objective(self) -> float | None:
        """What a search maximises; None where the job has not got that far."""
        return summary.number(self.summary, summary.OBJECTIVE)

    def options(self) -> dict[str, str]:
        """The overrides as key and value."""
        return {key: value for key, _, value in (word.partition("=") for word in self.overrides)}

    def read(self) -> None:
        """Reads what the run has written: its summary, or its curves where it was killed before that."""
        curves = self.directory / "metrics.csv"
        self.summary = files.read_json(self.directory / "summary.json")
        if not self.summary and curves.is_file():
            with suppress(SoftgateError):  # damaged: the job then has no metrics, and is not finished
                self.summary = summary.summarize(summary.history(curves))

    @property
    def trained(self) -> float:
        """Seconds of training, over all parts of the run, as it wrote them."""
        return summary.number(self.summary, "seconds") or 0.0

    @property
    def done(self) -> bool:
        """Whether the run itself wrote, as its last act, that it finished."""
        return self.summary.get("status") == FINISHED

    @property
    def begun(self) -> bool:
        """Whether the job was started before."""
        return (self.directory / ".hydra" / "config.yaml").is_file()

    def save(self) -> None:
        """Writes the config that the process will run, and Hydra's other two files."""
        folder = self.directory / ".hydra"
        files.folder(folder)
        _write_yaml({"hydra": self.composed.hydra}, folder / "hydra.yaml")
        _write_yaml(self.overrides, folder / "overrides.yaml")
        # Last, and at once: the job counts as begun from here on.
        _write_yaml(self.config.plain, folder / "config.yaml")

    def command(self) -> list[str]:
        """The command line of the job: a single run of the config saved in its directory."""
        script = Path(sys.argv[0]).resolve()
        return [
            *(sys.executable, str(script)),
            *("--config-path", str(self.directory / ".hydra"), "--config-name", "config"),
            *(f"hydra.run.dir={quoted(self.directory)}", "hydra.output_subdir=null", "hydra.job.chdir=false"),
            "hydra/job_logging=none",
            *(["resume=true"] if self.again else []),
        ]

    def returned(self) -> JobReturn:
        """What Hydra's sweepers want to know."""
        found = JobReturn()
        found.overrides, found.cfg = self.overrides, OmegaConf.create(self.config.plain)
        found.hydra_cfg, found.working_dir = self.composed, str(Path.cwd())
        found.task_name = self.composed.hydra.job.name
        if self.status == FINISHED:
            found.status, found.return_value = JobStatus.COMPLETED, self.objective
        else:
            found.status, found.return_value = JobStatus.FAILED, JobFailed(f"job {self.number}: {self.status}")
        return found


def compose(number: int, words: Sequence[str], context: HydraContext, master: DictConfig) -> Job:
    """The job of a number and its overrides, as Hydra composes it; nothing is written.

    Raises:
        HydraException: For a key or a choice that does not exist.
        SoftgateError: For what is wrong in its config.
    """
    composed = context.config_loader.load_sweep_config(master, list(words))
    sweep_dir = Path(str(master.hydra.sweep.dir)).absolute()
    before = HydraConfig.instance().cfg
    with read_write(composed), read_write(composed.hydra.runtime), open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
        HydraConfig.instance().set_config(composed)
        directory = sweep_dir / str(composed.hydra.sweep.subdir)
        composed.hydra.runtime.output_dir = str(directory)
        task = composed.copy()
        del task["hydra"]
    try:
        plain: Any = OmegaConf.to_container(task, resolve=True, throw_on_missing=True)
    finally:
        HydraConfig.instance().cfg = before
    own = own_words(words)
    place = {
        "resume": False,
        "name": name_of(OmegaConf.select(task, "sweep.name"), sweep_dir),
        "job": number,
        "overrides": own,
    }
    typed = {word.lower() for word in master.hydra.overrides.task}
    told = [word.partition("=")[0] for word in own if word.lower() not in typed]
    try:
        config = TrainConfig.read(plain | {"resume": False, "sweep": place})
    except SoftgateError as error:
        raise SoftgateError(f"job {number} ({' '.join(said(own, told))}): {error}") from None
    return Job(number, own, directory, config, composed, told)


def said(words: Sequence[str], told: Sequence[str]) -> list[str]:
    """The words with the keys that tell a job from others; all of them where there is none."""
    return [word for word in words if word.partition("=")[0] in told] or list(words)


def admit(job: Job, resume: bool) -> None:
    """Looks at what is in the job's directory already.

    Raises:
        SoftgateError: If a job ran there and `sweep.resume` is off, or the job there had another config.
        CannotWrite: If there can be no directory of that name.
    """
    with files.refusals(job.directory):
        begun = job.begun
    if not begun:
        return
    require(
        resume,
        f"hydra.sweep.dir={job.directory.parent}: job {job.number} was run there before; sweep.resume=true goes on "
        "with that sweep, another directory begins a new one.",
    )
    kept = job.directory / ".hydra" / "config.yaml"
    try:
        before: Any = OmegaConf.to_container(OmegaConf.load(kept))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError):
        raise SoftgateError(f"sweep.resume=true: {kept} is damaged.") from None
    differ = differences(before, job.config.plain, INDIFFERENT)
    if differ:
        search = "sampler" in job.composed.hydra.sweeper
        advice = "a search is repeated by hydra.sweeper.sampler.seed=N from its first start on, without a storage"
        raise SoftgateError(
            f"sweep.resume=true: job {job.number} in {job.directory} was begun with {_and(differ, 0)}, now it would "
            f"have {_and(differ, 1)}; {advice if search else 'give the words of the first start'}."
        )
    job.read()
    job.again = not job.done
    if job.done:
        job.status, job.seconds = FINISHED, job.trained


def require_same_places(jobs: Sequence[Job], directory: Path) -> None:
    """Raises `SoftgateError` where a job's number is that of another job that was begun in the sweep's directory."""
    now = {job.number: job for job in jobs}
    for path in sorted(directory.glob("*/.hydra/config.yaml")):
        try:
            saved: Any = OmegaConf.to_container(OmegaConf.load(path))
            sweep = saved["sweep"]
            number, words = int(sweep["job"]), " ".join(map(str, sweep["overrides"]))
        except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError, KeyError, TypeError):
            continue  # not a job of ours
        job = now.get(number)
        if job is not None and job.directory.resolve() != path.parents[1].resolve():
            raise SoftgateError(
                f"sweep.resume=true: job {number} of {directory} was begun in {path.parents[1].name} ({words}), now it "
                f"would be {job.directory.name}; give the words of the first start, in their order."
            )


def _and(differ: Mapping[str, tuple[Any, Any]], which: int) -> str:
    few = [f"{key}={values[which]}" for key, values in list(differ.items())[:4]]
    return ", ".join(few) + (" ..." if len(differ) > 4 else "")


def _write_yaml(values: Any, path: Path) -> None:
    files.write(OmegaConf.to_yaml(OmegaConf.create(values)), path)
