"""Call sites of a model: found, gated by a rule, measured, and run for a look."""

from softgate.sites.attaching import attach, detach
from softgate.sites.calibration import calibrate, follow_scales
from softgate.sites.diagnostics import SiteDiagnosis, diagnose, revived
from softgate.sites.sites import Sites, attached_sites
from softgate.sites.table import Site

__all__ = [
    "Site",
    "SiteDiagnosis",
    "Sites",
    "attach",
    "attached_sites",
    "calibrate",
    "detach",
    "diagnose",
    "follow_scales",
    "revived",
]
