"""One hypothesis profile for all tests: no time limits, the same drawn cases on every machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "softgate", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("softgate")
