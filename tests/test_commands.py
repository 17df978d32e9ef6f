"""The commands as a user meets them: one line for each mistake, nothing measured is lost, all on real data."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from ridgescope.analysis.experiment import project
from ridgescope.models import KernelStore

Outcome = tuple[int | str | None, str, str]

# the smallest experiment that has every part: two architectures, two widths, two sizes, two ridges
SWEEPS = (
    "sweeps=['model=mlp model.depth=1 model.width=24,48 data.train_size=10,20',"
    "'model=cnn model.width=8 data.train_size=10,20']"
)
COMMON = "common='data=digits data.pool_size=200 data.test_size=100 ridges=[1e-1,1e-2] num_seeds=3 num_draws=3'"


def ridgescope(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ridgescope", *words], capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("validated")
    done = ridgescope("validate", "name=tiny", SWEEPS, COMMON, "infinite_draws=8", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny", done


@pytest.mark.slow
def test_validate_trains_measures_and_reports(validated: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = validated
    assert "about" in done.stderr  # the estimate, before it starts
    assert "holds" in done.stdout
    assert "report:" in done.stdout
    networks = pd.read_parquet(folder / "report" / "networks.parquet")
    assert len(networks) == 6 * 3 * 2
    assert networks["converged"].all()
    measured = ["network_test", "krr_test", "krr_final_test", "krr_last_test", "krr_trace_test", "infinite_test"]
    measured += ["nngp_test", "theory_test", "theory_width_test", "kappa_entk", "kappa_risk", "inverse_width"]
    measured += ["entk_gcv", "entk_loo", "kappa_trace", "kernel_movement", "infinite_heldout"]
    assert networks[measured].notna().all().all()
    laws, mlp = ["block_test", "block_kappa1", "block_pool_test"], networks["model"] == "mlp"
    # an average over initialisations, which single networks of 48 neurons scatter about
    wide = networks[mlp & (networks["width"] == 48)]
    assert wide[laws].notna().all(axis=None)
    assert (wide["krr_test"] / wide["block_test"]).mean() == pytest.approx(1, abs=0.1)
    # no law, or too narrow for it: a reason and no number, never another architecture's
    for _, row in networks.iterrows():
        assert row[["block_test", "block_kappa1"]].isna().all() != (row["block_note"] == "")
        assert pd.isna(row["block_pool_test"]) != (row["block_pool_note"] == "")
    assert networks.loc[networks["width"] == 24, "block_note"].str.contains("24 is too narrow").any()
    # every number can be traced to its run
    assert {path.name for path in (folder / "cells").iterdir()} == set(networks["run"])


@pytest.mark.slow
def test_links_that_must_hold_do_hold(validated: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    networks = pd.read_parquet(validated[0] / "report" / "networks.parquet")
    wide = networks[(networks["model"] == "mlp") & (networks["width"] == 48) & (networks["ridge"] == 0.1)]
    # lazy at alpha = 10 with a large ridge: the network is its kernel
    assert ((wide["network_test"] / wide["krr_test"] - 1).abs() < 0.01).all()
    # an average over 8 draws of 10 to 20 points: single draws scatter by 10 to 20 %
    infinite = pd.read_parquet(validated[0] / "report" / "infinite.parquet")
    ratio = (infinite["infinite_heldout"] / infinite["theory_test"]).mean()
    assert ratio == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_the_same_command_again_trains_and_measures_nothing(
    validated: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = validated
    before = {
        path: path.stat().st_mtime_ns
        for part in ("cells", "measurements", "laws")
        for path in (folder / part).rglob("*")
    }
    table = pd.read_parquet(folder / "report" / "networks.parquet")
    again = ridgescope("validate", "name=tiny", SWEEPS, COMMON, "infinite_draws=8", cwd=folder.parents[1])
    assert again.returncode == 0, again.stderr
    assert "6 cells, 6 done already" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "report" / "networks.parquet"), table)


@pytest.mark.slow
def test_an_analysis_reads_the_kernels_that_an_earlier_one_kept(
    validated: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    copy, store = tmp_path / "copy", tmp_path / "kernels"
    cell = sorted((validated[0] / "cells").glob("*mlp-w24*"))[0]
    shutil.copytree(cell, copy / "cells" / cell.name)
    expected = project(copy, infinite_draws=1).networks
    seen: list[dict[str, int]] = []
    for _ in range(2):
        shutil.rmtree(copy / "measurements")
        kept = project(copy, infinite_draws=1, kernels=KernelStore(store)).networks
        pd.testing.assert_frame_equal(kept, expected)
        seen.append({str(path): path.stat().st_mtime_ns for path in store.rglob("*.safetensors")})
    assert seen[0] == seen[1] != {}
    damaged = sorted(store.iterdir())[0] / "kernel.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8] + b"12345678")
    status, out, _ = call("kernels", f"folder={store}", "check=true", "remove=damaged")
    assert (status, out.count(" whole "), out.count(" damaged ")) == (0, len(seen[0]) - 1, 1)
    assert len(list(store.iterdir())) == len(seen[0]) - 1
    assert "removed" in call("kernels", f"folder={store}", "remove=all")[2]
    assert list(store.iterdir()) == []


@pytest.mark.slow
def test_analysis_refuses_another_format_and_damaged_files(
    validated: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(validated[0], copy)
    shutil.rmtree(copy / "measurements")
    cell = sorted((copy / "cells").iterdir())[0]
    done = json.loads((cell / "done.json").read_text())
    (cell / "done.json").write_text(json.dumps(done | {"format": 99}))
    status, _, errors = call("analyse", f"folder={copy}")
    assert status == 2
    assert "has run format 99 but this version reads 1" in errors
    (cell / "done.json").write_text(json.dumps(done))
    weights = cell / "program-000.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    status, _, errors = call("analyse", f"folder={copy}")
    assert status == 2
    assert "the run is damaged" in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; choose one of"),
        (["kernels", "folder=nowhere"], "folder=nowhere does not exist; give the folder of a store"),
        (["kernels", "folder=.", "remove=kernel-0"], "remove=kernel-0 is no kernel here; choose a name, all"),
        (["analyse", "folder=.", "kernels=store", "kernels_limit=much"], "kernels_limit: memory='much' is not a size"),
        (["train", "model.width=0"], "width must be at least 1, got width=0"),
        (["train", "data.train_size=5000"], "data.train_size=5000 > data.pool_size"),
        (["train", "ridges=[-1]"], "ridge -1.0 is not possible; ridges are >= 0"),
        (["train", "ridges=[0]", "model.width=2", "data.train_size=100"], "ridge 0 with P C = 1000 residuals"),
        (["train", "+data.nois=1"], "unknown key data.nois"),
        (["train", "data=nope"], "Could not find 'data/nope'"),
        (["train", "model.width=wide"], "could not be converted to Integer"),
        (["train", "dtype=float8"], "dtype='float8' is unknown; choose float64 or float32"),
        (["train", "data=cifar10", "data.root=nowhere"], "data.root=nowhere is not a folder"),
        (["train", "model.activation=swish"], "activation='swish' is unknown; choose one of"),
        (["train", "memory=lots"], "memory='lots' is not a size"),
        (["analyse", "folder=runs/none"], "runs/none holds no cells"),
        (["validate", "experiment=none"], "Could not find 'experiment/none'"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_and_status_2(words: list[str], message: str, call: Callable[..., Outcome]) -> None:
    status, _, errors = call(*words)
    assert status == 2
    lines = [line for line in errors.strip().splitlines() if not line.startswith("training ")]
    assert len(lines) == 1, errors
    assert lines[0].startswith("ridgescope: error: ")
    assert message in lines[0]


def test_a_run_that_diverges_says_so_and_keeps_its_record(call: Callable[..., Outcome], tmp_path: Path) -> None:
    words = ["optimiser=sgd", "optimiser.learning_rate=1e6", "model.width=8", "data.train_size=20", "max_steps=300"]
    status, _, errors = call("train", *words)
    assert status == 2
    assert "diverged to a non-finite loss; lower optimiser.learning_rate" in errors
    cell = next((tmp_path / "runs" / "runs" / "cells").iterdir())
    members = json.loads((cell / "program-000.json").read_text())
    assert {member["status"] for member in members} == {"diverged"}


def test_a_multirun_goes_through_hydra(call: Callable[..., Outcome], tmp_path: Path) -> None:
    words = ["name=sweep", "model.width=16,24", "data.train_size=10", "ridges=[1e-1]", "num_seeds=1", "num_draws=1"]
    status, _, errors = call("train", "-m", *words)
    assert status == 0, errors
    cells = sorted((tmp_path / "runs" / "sweep" / "cells").iterdir())
    assert ["-w16-" in cells[0].name, "-w24-" in cells[1].name] == [True, True]
    assert all((cell / "done.json").is_file() for cell in cells)


def test_a_users_own_network_and_config_folder_work(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mynet.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, in_shape, num_outputs, generator, dtype, width):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(generator.initial_seed() % 2**31)\n"
        "        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width, dtype=dtype),\n"
        "            torch.nn.Tanh(), torch.nn.Linear(width, num_outputs, dtype=dtype))\n"
        "    def forward(self, x):\n"
        "        return self.body(x)\n"
    )
    (tmp_path / "myconf" / "model").mkdir(parents=True)
    (tmp_path / "myconf" / "model" / "mine.yaml").write_text("_target_: mynet.Net\nwidth: 40\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    size = ["data.train_size=10", "data.pool_size=100", "data.test_size=50", "num_seeds=2", "num_draws=2"]
    status, _, errors = call("train", "--config-dir", "myconf", "model=mine", *size, "ridges=[1e-1]")
    assert status == 0, errors
    status, _, errors = call("analyse", "folder=runs/runs")
    assert status == 0, errors
    assert "no infinite-width theory for net" in errors
    networks = pd.read_parquet(tmp_path / "runs" / "runs" / "report" / "networks.parquet")
    assert networks["krr_test"].notna().all()
    assert networks["theory_test"].isna().all()


@pytest.mark.slow
def test_a_required_claim_that_fails_ends_with_its_own_status(
    validated: tuple[Path, subprocess.CompletedProcess[str]], call: Callable[..., Outcome]
) -> None:
    # networks of width 24 are far from infinite width: with nearly no tolerance that claim must fail
    strict = ["claims.width.required=true", "claims.width.tolerance=0.0001", "infinite_draws=8"]
    status, _, errors = call("analyse", f"folder={validated[0]}", *strict)
    assert status == 3, errors
    lines = [line for line in errors.splitlines() if "required claim" in line]
    assert lines
    assert lines[0].startswith("ridgescope: required claim width fails for ")
    assert "(infinite → finite width)" in lines[0]
    status, _, errors = call("analyse", f"folder={validated[0]}", "claims.width.tolerance=0.0001", "infinite_draws=8")
    assert status == 0, errors
    status, _, errors = call("analyse", f"folder={validated[0]}", "claims.width.tolerance=7")
    assert status == 2
    assert "claims.width.tolerance=7" in errors


@pytest.mark.slow
def test_a_crossed_design_is_attributed_without_what_did_not_converge(
    call: Callable[..., Outcome], tmp_path: Path
) -> None:
    sizes = ["data.pool_size=150", "data.test_size=100", "data.train_size=20", "model.width=24", "ridges=[1e-1]"]
    status, _, errors = call("train", *sizes, "design=crossed", "num_seeds=3", "num_draws=3", "name=crossed")
    assert status == 0, errors
    folder = tmp_path / "runs" / "crossed"
    program = next((folder / "cells").iterdir()) / "program-000.json"
    members = json.loads(program.read_text())
    members[4]["status"] = "not converged"
    program.write_text(json.dumps(members))
    status, _, errors = call("analyse", f"folder={folder}")
    assert status == 0, errors
    table = pd.read_parquet(folder / "report" / "attribution.parquet")
    network = table[table["who"] == "network"].set_index("term")
    kernel = table[table["who"] == "kernel"].set_index("term")
    assert (network["networks"].unique(), network["excluded"].unique()) == ([8], [1])
    assert (kernel["networks"] == 9).all()
    rows = pd.read_parquet(folder / "report" / "networks.parquet")
    assert network.loc["risk", "measured"] == pytest.approx(rows.loc[rows["converged"], "network_test"].mean())
    # lazy training: the terms of the network are those of its kernel
    assert network.loc["bias", "measured"] == pytest.approx(kernel.loc["bias", "measured"], rel=0.1)
    assert network.loc["bias", "predicted"] > 0
    assert "Where the risk comes from" in (folder / "report" / "index.html").read_text()


def test_the_coordinate_check_prints_its_slopes_and_keeps_its_table(call: Callable[..., Outcome]) -> None:
    words = ("coordinates", "widths=[8,16]", "alphas=[1]", "parameterisations=[mup]", "steps=3", "num_seeds=1")
    status, out, _ = call(*words, "data.train_size=20")
    assert status == 0
    assert "the loss of 2 of 2 networks fell" in out
    (table,) = Path("runs/coordinates").glob("coordinates-*.parquet")
    assert table.with_suffix(".svg").exists()
    written = table.stat().st_mtime_ns
    assert call(*words, "data.train_size=20")[1] == out
    assert table.stat().st_mtime_ns == written
    status, _, err = call("coordinates", "optimiser=kernel_lbfgs", "~optimiser.learning_rate")
    assert status == 2
    status, _, err = call("coordinates", "optimiser.learning_rate=null")
    assert status == 2
    assert "needs one learning rate for all networks; give optimiser.learning_rate" in err


NETWORK = """
from torch import nn

def small(width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))
"""


@pytest.mark.slow
def test_audit_takes_a_network_that_is_not_ours(call: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "their_network.py").write_text(NETWORK)
    words = ("module=their_network:small", "points=90", "sizes=[40]", "ridges=[1e-2]", "num_draws=4")
    status, out, err = call("audit", *words, "num_seeds=3")
    assert status == 0, err
    for expected in ("κ by every route", "bias", "Gaussian control", "report:"):
        assert expected in out
    folder = tmp_path / "runs" / "audit"
    tables = {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}
    assert tables.keys() == {"audit", "kappa", "verdicts", "attribution"}
    assert set(tables["verdicts"]["verdict"]) <= {"holds", "fails", "undetermined"}
    page = (folder / "index.html").read_text()
    assert "<svg" in page
    assert "their_network:small" in page
    assert "http" not in page.replace("http-equiv", "")  # self-contained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("module=nowhere:x",), "cannot import nowhere"),
        (("module=their_network:small", "num_seeds=2"), "num_seeds=2 cannot be split"),
        (("module=their_network:small", "checkpoint=none.safetensors"), "none.safetensors does not exist"),
        (("module=their_network:small", "channels=3"), "cannot take inputs of shape"),
        (("module=their_network:small", "trained=weights"), "need to be told what they were trained on"),
        ((), "no value for module"),
    ],
)
def test_a_mistake_in_an_audit_is_one_line(
    words: tuple[str, ...], message: str, call: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / "their_network.py").write_text(NETWORK)
    status, _, err = call("audit", "points=60", "sizes=[20]", "ridges=[1e-2]", "num_draws=4", *words)
    assert status == 2
    assert message in err
    assert err.strip().splitlines()[-1].startswith("ridgescope: error:")
