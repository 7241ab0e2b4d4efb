"""What all tests run under: one thread, and one hypothesis profile.

Models here are so small that a second thread mostly waits; where other work shares the machine it costs
a factor of ten. Drawn cases have no time limit and are the same on every machine.
"""

import runpy
import signal
import sys

import pytest
import pytorch_lightning  # noqa: F401  # its log handler keeps the stderr that it is imported with: no test's own
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, settings

from configs import ROOT
from softgate import signals
from softgate.cli import stops

torch.set_num_threads(1)

settings.register_profile(
    "softgate", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("softgate")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """No test reads or writes the user's own cache; commands that tests start inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals():
    """Signals end processes, also where the tests were started in the background or behind a closed terminal.

    There SIGINT and SIGHUP are ignored, and by whatever the tests start as well.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def _handlers():
    """Commands take the signals over for good, and say once that they were stopped; tests end as pytest ends them."""
    before = {number: signal.getsignal(number) for number in signals.ends()}
    stops.watch("train")
    signals.put_back(before)
    yield
    signals.put_back(before)


@pytest.fixture(autouse=True)
def _forget_hydra():
    """No test meets the config that another has composed."""
    yield
    HydraConfig.instance().cfg = None


@pytest.fixture
def typed(monkeypatch, capfd, tmp_path):
    """Runs a command as if typed in `tmp_path`, in this process: its exit status, and what it says to stderr."""

    def run(script: str, *words: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *words])
        monkeypatch.setattr(sys, "path", list(sys.path))
        GlobalHydra.instance().clear()
        capfd.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        return status, capfd.readouterr().err

    return run
