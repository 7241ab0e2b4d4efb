"""What all tests run under: one thread, and one hypothesis profile.

Models here are so small that a second thread mostly waits; where other work shares the machine it costs
a factor of ten. Drawn cases have no time limit and are the same on every machine.
"""

import pytest
import torch
from hypothesis import HealthCheck, settings

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
