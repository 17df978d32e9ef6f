"""One import name, reached through links that must resolve."""

import subprocess
import sys
from pathlib import Path

import pytest

import ridgescope

PARTS = ("theory", "models", "train", "analysis", "cluster", "conf")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("part", PARTS)
def test_each_link_leads_to_its_top_level_folder(part: str) -> None:
    # a clone with core.symlinks=false has small text files here, and a package without its parts
    link = ROOT / "src" / "ridgescope" / part
    assert link.resolve() == ROOT / part
    assert (link / "__init__.py").is_file()


def test_no_part_is_imported_under_a_bare_name() -> None:
    code = f"import sys, {', '.join(f'ridgescope.{part}' for part in PARTS)}; "
    code += f"print([part for part in {PARTS} if part in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_a_users_own_folder_called_models_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise ImportError('the wrong models')")
    code = "import ridgescope.models; print(ridgescope.models.MLP.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "ridgescope.models.mlp"


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("theory", ("models", "train", "analysis", "cluster")),
        ("models", ("theory", "train", "analysis", "cluster")),
        ("train", ("theory", "analysis", "cluster")),
    ],
)
def test_arrows_point_one_way(part: str, forbidden: tuple[str, ...]) -> None:
    for path in (ROOT / part).rglob("*.py"):
        text = path.read_text()
        for other in forbidden:
            assert f"ridgescope.{other} " not in text, f"{path.name} imports {other}"
            assert f"from ridgescope.{other}" not in text, f"{path.name} imports {other}"


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert ridgescope.__version__ == version("ridgescope")
