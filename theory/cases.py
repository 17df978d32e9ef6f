"""Reference cases as files: spectrum, target, sizes and ridge in, every quantity out, with full precision.

A case is a mapping with "id", "spectrum", "target", "noise", "P", "widths", "lam" and, optionally,
"expected". Numbers are strings, so that nothing is lost on the way; "inf" is allowed for P. Schema by example
in docs/theory.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ridgescope.theory.renormalisation import Features, Samples, Source
from ridgescope.theory.risks import Risks, risks
from ridgescope.theory.spectra import Spectrum, Target, geometric, power_law, power_law_target

QUANTITIES = (
    *("kappa1", "kappa2", "df1", "df2", "gamma1", "gamma2", "test", "train", "bias2"),
    *("var_F", "var_X", "var_XF", "var_noise", "var_Fnoise", "ens_inf"),
)
RELATIVE, ABSOLUTE = 1e-12, 1e-13  # tolerance of a check; absolute where 0 is expected


def case_spectrum(description: Mapping[str, Any]) -> Spectrum:
    """The spectrum of a case: "list", "blocks", "powerlaw" or "geometric"."""
    match description["type"]:
        case "list":
            return Spectrum([float(value) for value in description["values"]])
        case "blocks":
            return Spectrum([float(v) for v in description["values"]], [float(m) for m in description["mult"]])
        case "powerlaw":
            return power_law(int(description["D"]), float(description["alpha"]), float(description["scale"]))
        case "geometric":
            return geometric(int(description["D"]), float(description["first"]), float(description["last"]))
    raise ValueError(
        f"spectrum type {description['type']!r} is unknown; use 'list', 'blocks', 'powerlaw' or 'geometric'"
    )


def case_target(description: Mapping[str, Any], noise: str, num_modes: int) -> Target:
    """The target of a case: "list", "powerlaw" or "uniform" over ``num_modes`` entries."""
    match description["type"]:
        case "list":
            return Target([float(value) for value in description["c2"]], float(noise))
        case "powerlaw":
            return power_law_target(
                num_modes, float(description["exponent"]), float(description["scale"]), float(noise)
            )
        case "uniform":
            share = float(description["total"]) / num_modes
            return Target(torch.full((num_modes,), share, dtype=torch.float64), float(noise))
    raise ValueError(f"target type {description['type']!r} is unknown; use 'list', 'powerlaw' or 'uniform'")


def solve_case(case: Mapping[str, Any]) -> dict[str, float]:
    """Every quantity of one case; nan where it is an undefined inf - inf."""
    spectrum = case_spectrum(case["spectrum"])
    target = case_target(case["target"], str(case["noise"]), len(spectrum.eta))
    chain: Source = Samples(float(case["P"]))
    for width in case["widths"]:
        chain = chain @ Features(float(width))
    result = risks(spectrum, target, chain, float(case["lam"]))
    return {name: _quantity(result, name) for name in QUANTITIES}


def _quantity(result: Risks, name: str) -> float:
    holder = result if hasattr(result, name) else result.scale
    return float(getattr(holder, name))


def deviation(value: float, expected: str | None) -> float:
    """Relative deviation; where 0 is expected, absolute in units of ABSOLUTE/RELATIVE; inf where kinds
    differ.
    """
    if expected is None:
        return 0.0 if math.isnan(value) else math.inf
    wanted = float(expected)
    if math.isinf(wanted) or math.isnan(value):
        return 0.0 if value == wanted else math.inf
    if wanted == 0:
        return abs(value) * RELATIVE / ABSOLUTE
    return abs(value - wanted) / abs(wanted)


def worst_deviations(
    cases: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, float]]
) -> dict[str, tuple[float, str]]:
    """For each quantity the worst deviation over the cases that state what they expect, and the id of that
    case.
    """
    worst: dict[str, tuple[float, str]] = {}
    for case, result in zip(cases, results, strict=True):
        for name, expected in case.get("expected", {}).items():
            worst[name] = max(worst.get(name, (0.0, "-")), (deviation(result[name], expected), str(case["id"])))
    return worst
