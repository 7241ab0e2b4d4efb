"""How long a benchmark may take, as it is given on its command line."""

import re

from softgate.errors import require

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """A duration such as 3h, 90m or 45s, of --budget.

    Raises:
        SoftgateError: For anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    require(found is not None, f"--budget={text}: a number with s, m or h is needed, such as 3h.")
    return float(found[1]) * UNITS[found[2]]
