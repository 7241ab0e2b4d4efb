"""How a measured number reads: three significant digits, in figures, in tables, on the terminal and on pages."""

from __future__ import annotations

import math

DIGITS = 3
"""Significant digits of a measured number."""

SMALLEST = 1e-4
"""Numbers nearer to zero than this are written with a power of ten."""


def rounded(value: float | None, signed: bool = False) -> str:
    """A measured number as text.

    Three significant digits with the zeros that belong to them; from a thousand on whole numbers with commas.

    Args:
        value: The number; None, NaN and infinities are a dash.
        signed: Write a plus before numbers above zero.

    Returns:
        Such as "0.100", "2.30", "97.2", "12,346" or "1.20e-05".
    """
    if value is None or not math.isfinite(value):
        return "–"
    sign = "+" if signed else ""
    if value == 0:
        return "0"
    if abs(value) < SMALLEST:
        return f"{value:{sign}.{DIGITS - 1}e}"
    exact = float(f"{value:.{DIGITS - 1}e}")  # 999.7 is 1,000, of one digit more
    if abs(exact) >= 10**DIGITS:
        return f"{value:{sign},.0f}"
    return f"{exact:{sign}.{max(0, DIGITS - 1 - math.floor(math.log10(abs(exact))))}f}"


def percent(share: float | None) -> str:
    """A share in [0, 1] in percent, such as "97.2 %"; only all is "100 %", and only nothing "0 %"."""
    if share is None or not math.isfinite(share):
        return "–"
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    said, digits = f"{rounded(100 * share)}", 1
    while float(said) >= 100 > 100 * share and digits < 12:
        digits += 1
        said = f"{100 * share:.{digits}f}"
    return f"{said} %"
