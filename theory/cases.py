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
LONGEST = 10**8  # modes of a case: 0.8 GB a vector


def case_spectrum(description: Any) -> Spectrum:
    """The spectrum of a case: "list", "blocks", "powerlaw" or "geometric"."""
    match _entry(description, "type"):
        case "list":
            return Spectrum(_numbers(description, "values"))
        case "blocks":
            return Spectrum(_numbers(description, "values"), _numbers(description, "mult"))
        case "powerlaw":
            return power_law(_count(description, "D"), _number(description, "alpha"), _number(description, "scale"))
        case "geometric":
            return geometric(_count(description, "D"), _number(description, "first"), _number(description, "last"))
    raise ValueError(
        f"spectrum type {description['type']!r} is unknown; use 'list', 'blocks', 'powerlaw' or 'geometric'"
    )


def case_target(description: Any, noise: float, num_modes: int) -> Target:
    """The target of a case: "list", "powerlaw" or "uniform" over ``num_modes`` entries."""
    match _entry(description, "type"):
        case "list":
            return Target(_numbers(description, "c2"), noise)
        case "powerlaw":
            return power_law_target(num_modes, _number(description, "exponent"), _number(description, "scale"), noise)
        case "uniform":
            share = _number(description, "total") / num_modes
            return Target(torch.full((num_modes,), share, dtype=torch.float64), noise)
    raise ValueError(f"target type {description['type']!r} is unknown; use 'list', 'powerlaw' or 'uniform'")


def solve_case(case: Any) -> dict[str, float]:
    """Every quantity of one case; nan where it is an undefined inf - inf.

    ``case`` is whatever stood in the file: ``ValueError`` names the entry that is missing or unusable.
    """
    spectrum = case_spectrum(_entry(case, "spectrum"))
    target = case_target(_entry(case, "target"), _number(case, "noise"), len(spectrum.eta))
    _check_expected(case.get("expected", {}))
    chain: Source = Samples(_number(case, "P"))
    for width in _numbers(case, "widths"):
        chain = chain @ Features(width)
    result = risks(spectrum, target, chain, _number(case, "lam"))
    return {name: _quantity(result, name) for name in QUANTITIES}


def _entry(description: object, name: str) -> Any:
    if not isinstance(description, Mapping):
        raise ValueError(f"{description!r} stands where a mapping with {name!r} is needed; write {{{name!r}: ...}}")
    if name not in description:
        raise ValueError(f"{name!r} is missing beside {', '.join(map(repr, description))}; add it")
    return description[name]


def _as_number(name: str, value: object) -> float:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f'{name}={value!r} is not a number; write digits, as in {name!r}: "1e-3"')


def _number(description: object, name: str) -> float:
    return _as_number(name, _entry(description, name))


def _numbers(description: object, name: str) -> list[float]:
    values = _entry(description, name)
    if not isinstance(values, list):
        raise ValueError(f"{name}={values!r} is not a list; write {name!r}: [...]")
    return [_as_number(name, value) for value in values]


def _count(description: object, name: str) -> int:
    value = _number(description, name)
    if not 1 <= value <= LONGEST or value != int(value):
        raise ValueError(f"{name}={value:g} must be a whole number from 1 to {LONGEST:g}; shorten the spectrum")
    return int(value)


def _check_expected(expected: object) -> None:
    if not isinstance(expected, Mapping):
        raise ValueError(f"expected={expected!r} is no mapping; write 'expected': {{'test': \"1.5\"}}, or leave it out")
    for name, value in expected.items():
        if name not in QUANTITIES:
            raise ValueError(f"expected names {name!r}, which is no output; use {', '.join(QUANTITIES)}")
        if value is not None:
            _as_number(name, value)


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
