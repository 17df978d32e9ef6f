"""How numbers and verdicts are written, on the page and in the terminal alike."""

import math

from ridgescope.analysis.equivalence import CONFIDENCE
from ridgescope.analysis.verdict import MAX_EXCLUDED

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
MARKS = {"holds": "✓", "fails": "✗", "undetermined": "?"}

# What each word of a verdict means, and how the numbers behind it are made
RULE = {
    "holds": (
        "The mean deviation and the rms of the deviations over cells lie within the tolerance by more than chance "
        "(two one-sided t tests; only the mean where the claim asks for that)."
    ),
    "fails": (
        "One of the two lies outside the tolerance by more than chance; for the rms, after removing what the "
        "scatter between networks alone would give."
    ),
    "undetermined": (
        "Anything else: more seeds or draws are needed. Also any claim that lost more than "
        f"{100 * MAX_EXCLUDED:.0f} % of its networks."
    ),
    "deviation": (
        "Measured/predicted - 1, averaged in the logarithm, every cell (one width, sample size and "
        "ridge) with the same weight."
    ),
    "many claims": (
        "The tests are corrected for their number (Holm): among the required claims the chance that any 'holds' is "
        "wrong is at most 5 %, and so is that of any 'fails'; the same for the other claims, and for the widths of "
        "one claim."
    ),
    "interval": (
        f"{100 * CONFIDENCE:.0f} %, of one claim alone. "
        "Networks that share a training set or an initialisation seed are treated as dependent, and "
        "Student's t is used for the few that are independent. It is conditional on the pool and the "
        "test points, which all networks share."
    ),
    "excluded": (
        "Networks that were not trained to the optimum are left out of everything that depends on "
        "training, and counted."
    ),
}


def number(value: int | float, digits: int = 3) -> str:
    """Significant digits, without an exponent where a reader would not expect one; a dash for NaN."""
    if not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 10**digits:
        return f"{value:#.{digits}g}".removesuffix(".")
    if abs(value) < 1e6 and abs(value) >= 1:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: int | float, decimals: int = 1) -> str:
    """A signed percentage of a ratio minus one; zero bears no sign, NaN is a dash."""
    if not math.isfinite(value):
        return DASH
    rounded = round(100 * value, decimals)
    sign = "" if rounded == 0 else "+" if rounded > 0 else MINUS
    return f"{sign}{abs(rounded):.{decimals}f} %"


def plus_minus(value: float, half_width: float) -> str:
    """``+1.2 ± 0.3 %``, with a second decimal where one would show nothing but ``0.0``."""
    if not math.isfinite(half_width):
        return percent(value)
    decimals = 1 if 100 * half_width >= 0.1 else 2
    return f"{percent(value, decimals).removesuffix(' %')} ± {100 * half_width:.{decimals}f} %"


def interval(low: float, high: float, deviation: float) -> str:
    """The deviation with the larger half of its interval, which is slightly skew on the ratio scale."""
    return plus_minus(deviation, max(high - deviation, deviation - low))


def rms_range(rms: float, low: float, high: float) -> str:
    """``1.2 (0.4 to 2.0) %``."""
    if not math.isfinite(high):
        return f"{100 * rms:.1f} %" if math.isfinite(rms) else DASH
    return f"{100 * rms:.1f} ({100 * low:.1f} to {100 * high:.1f}) %"
