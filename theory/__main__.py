"""``python -m ridgescope.theory CASES.json [--out FILE]``: solve reference cases, check them where they say
how.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from ridgescope.theory.cases import RELATIVE, solve_case, worst_deviations


def _encoded(value: float) -> float | str | None:
    """JSON knows neither inf nor nan: "inf" and null, as in the cases themselves. Other floats round-trip."""
    if math.isnan(value):
        return None
    return "inf" if math.isinf(value) else value


def _loaded(file: Path) -> list[Any]:
    loaded = json.loads(file.read_text(encoding="utf-8"))
    cases = loaded.get("cases") if isinstance(loaded, dict) else loaded
    if not isinstance(cases, list):
        raise ValueError(f"found {type(cases).__name__} where the list of cases should be")
    return cases


def main(arguments: list[str] | None = None) -> int:
    """Return 0, 1 where a deviation exceeds the tolerance, 2 where the file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m ridgescope.theory", description=__doc__)
    parser.add_argument("cases", type=Path, help='JSON: a list of cases, or {"cases": [...]}')
    parser.add_argument("--out", type=Path, help="write the results here instead of standard output")
    options = parser.parse_args(arguments)
    try:
        cases = _loaded(options.cases)
    except (OSError, ValueError) as error:  # broken JSON and broken text are ValueErrors
        print(f"{options.cases}: not a file of cases ({error}); pass a JSON list of cases", file=sys.stderr)
        return 2
    results = []
    for index, case in enumerate(cases):
        try:
            results.append(solve_case(case))
        except (ValueError, RuntimeError) as error:  # RuntimeError: out of memory
            name = case.get("id", f"number {index}") if isinstance(case, dict) else f"number {index}"
            print(f"case {name}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            return 2
    pairs = zip(cases, results, strict=True)
    answer = [{"id": case.get("id"), "result": {k: _encoded(v) for k, v in r.items()}} for case, r in pairs]
    text = json.dumps(answer, indent=1)
    if options.out is None:
        print(text)
    else:
        try:
            options.out.write_text(text + "\n")
        except OSError as error:
            print(f"{options.out}: cannot be written ({error.strerror}); pass another --out", file=sys.stderr)
            return 2
    return _report(worst_deviations(cases, results))


def _report(worst: dict[str, tuple[float, str]]) -> int:
    for name, (value, case) in worst.items():
        print(f"{name:<11} worst deviation {value:.1e} in {case}", file=sys.stderr)
    return int(any(value > RELATIVE for value, _ in worst.values()))


if __name__ == "__main__":
    sys.exit(main())
