"""The reference cases (100-digit arithmetic), and the command that checks them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from ridgescope.theory.__main__ import main
from ridgescope.theory.cases import QUANTITIES, deviation, solve_case

FILE = Path(__file__).with_name("oracle_public.json")
CASES = json.loads(FILE.read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']} {case['note']}")
def test_every_output_agrees_with_the_reference(case: dict) -> None:
    result = solve_case(case)
    assert set(case["expected"]) == set(QUANTITIES)
    worst = {name: deviation(result[name], case["expected"][name]) for name in QUANTITIES}
    assert max(worst.values()) < 1e-12, worst


def test_the_command_writes_every_case_in_order(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "ridgescope.theory", str(FILE), "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "kappa1" in run.stderr
    written = json.loads(out.read_text())
    assert [entry["id"] for entry in written] == [case["id"] for case in CASES]
    infinite = next(entry for entry in written if entry["id"] == "p038")["result"]
    assert (infinite["test"], infinite["var_XF"]) == ("inf", None)
    assert written[0]["result"]["kappa1"] == solve_case(CASES[0])["kappa1"]  # full precision survives the file


def test_the_command_fails_on_a_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {**CASES[0], "expected": {"test": "1.0"}}
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([wrong]))
    assert main([str(file)]) == 1
    assert "test        worst deviation" in capsys.readouterr().err


def test_the_command_needs_no_expectation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([{key: value for key, value in CASES[0].items() if key != "expected"}]))
    assert main([str(file)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "p000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": "-1"}, "ridge must be finite and >= 0, got -1"),
        ({"spectrum": {"type": "comb"}}, "spectrum type 'comb' is unknown"),
        ({"target": {"type": "comb"}}, "target type 'comb' is unknown"),
        ({"P": "0"}, "the size of Samples must be > 0"),
        ({"P": None}, "P=None is not a number; write digits"),
        ({"widths": 5}, "widths=5 is not a list"),
        ({"target": {"type": "list", "c2": ["1"]}}, "target power has shape (1,), but the spectrum has"),
        ({"spectrum": {"type": "list", "values": ["1", "-0.5"]}}, "eigenvalues must be finite and >= 0, got -0.5"),
        ({"spectrum": {"type": "list", "values": ["1", "nan"]}}, "eigenvalues must be finite and >= 0, got nan"),
        ({"spectrum": "powerlaw"}, "'powerlaw' stands where a mapping with 'type' is needed"),
        ({"spectrum": {"type": "powerlaw", "D": 5, "alpha": "1"}}, "'scale' is missing beside 'type', 'D', 'alpha'"),
        ({"spectrum": {"type": "powerlaw", "D": 1e14, "alpha": "1", "scale": "1"}}, "D=1e+14 must be a whole number"),
        ({"expected": {"risk": "1"}}, "expected names 'risk', which is no output"),
        ({"expected": [1]}, "expected=[1] is no mapping"),
    ],
)
def test_the_command_names_a_bad_case(
    change: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([{**CASES[0], **change}]))
    assert main([str(file)]) == 2
    assert f"case p000: ValueError: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[3]", "{}", "null", '{"cases": 3}', '[{"id": ', "", "\udcff"])
def test_the_command_refuses_what_is_no_case(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cases.json"
    file.write_text(text, errors="surrogateescape")
    assert main([str(file)]) == 2
    message = capsys.readouterr().err.splitlines()
    assert len(message) == 1
    assert "not a file of cases" in message[0] or "case number 0: ValueError: 3 stands where" in message[0]


def test_the_command_names_a_place_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FILE), "--out", str(tmp_path / "none" / "results.json")]) == 2
    assert "results.json: cannot be written (No such file or directory)" in capsys.readouterr().err


def test_deviations_tell_kinds_apart() -> None:
    assert deviation(math.nan, None) == 0
    assert deviation(1.0, None) == math.inf
    assert deviation(math.inf, "inf") == 0
    assert deviation(1.0, "inf") == math.inf
    assert deviation(math.nan, "1.0") == math.inf
    assert deviation(1e-13, "0") == pytest.approx(1e-12)
    assert deviation(1.1, "1.0") == pytest.approx(0.1)
