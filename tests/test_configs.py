"""Every file in conf/ composes and can be instantiated; mistakes are refused with the key and the fix."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from hydra.utils import instantiate

import ridgescope.analysis.main
import ridgescope.train.main  # noqa: F401  (registers the schemas)
from ridgescope.__main__ import one_line
from ridgescope.train.config import cell_hash, cell_name, checked, parse_memory
from ridgescope.train.errors import UserError
from ridgescope.train.networks import network_factory
from ridgescope.train.sweep import compose_cells, expand

NEEDED = {
    "data=own": ["data.name=mydata:points"],
    "model=own": ["model._target_=ridgescope.models.MLP", "+model.width=8", "+model.depth=1"],
}
CONF = Path(__file__).parents[1] / "conf"


def composed(name: str, *overrides: str):  # type: ignore[no-untyped-def]
    with initialize_config_module("ridgescope.conf", version_base="1.3"):
        return compose(name, overrides=list(overrides))


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={path.stem}"
        for group in ("data", "model", "optimiser")
        for path in sorted((CONF / group).glob("*.yaml"))
    ],
)
def test_every_group_option_composes_and_instantiates(override: str) -> None:
    plain = checked(composed("train", override, *NEEDED.get(override, ())))
    network = network_factory(plain["model"])(
        in_shape=(1, 8, 8), num_outputs=10, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    assert network(torch.ones(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 10)
    assert instantiate(plain["optimiser"]).bytes_per_member(100, 10, 8) > 0


@pytest.mark.parametrize("experiment", [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))])
def test_every_experiment_expands_into_distinct_cells(experiment: str) -> None:
    plain = checked(composed("validate", f"experiment={experiment}"))
    cells = [c for sweep in plain["sweeps"] for c in compose_cells([*plain["common"].split(), *sweep.split()])]
    names = [cell_name(checked(cell)) for cell in cells]
    assert len(set(names)) == len(names)
    widths = {model: {c.model.width for c in cells if model in c.model._target_} for model in ("MLP", "CNN")}
    assert len(widths["MLP"]) >= 3  # a ladder
    if experiment in ("digits", "fashion_mnist"):
        assert len(widths["MLP"]) >= 5
        assert len(widths["CNN"]) >= 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=8", "Key 'widht' not in 'MLPConfig'"),
        ("model.width=eight", "could not be converted to Integer"),
        ("model=nope", "Could not find 'model/nope'"),
        ("data=imagenet", "Could not find 'data/imagenet'"),
        ("optimiser.momentum=0.9", "Key 'momentum' not in 'KernelLBFGSConfig'"),
    ],
)
def test_mistakes_are_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed("train", override)
    assert message in one_line(caught.value)
    assert "\n" not in one_line(caught.value)


def test_added_keys_that_no_schema_knows_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown key model.widht; known here: _target_, activation"):
        checked(composed("train", "+model.widht=8"))


def test_a_sweep_expands_as_hydra_would() -> None:
    assert expand(["model.width=16,32", "seed=1"]) == [["model.width=16", "seed=1"], ["model.width=32", "seed=1"]]


def test_the_cell_changes_with_what_changes_it_and_with_nothing_else() -> None:
    base = checked(composed("train"))
    assert cell_hash(checked(composed("train", "alpha=1"))) != cell_hash(base)
    assert cell_hash(checked(composed("train", "model.bias_std=0.1"))) != cell_hash(base)
    same = checked(composed("train", "output=elsewhere", "name=other", "logging.wandb=disabled", "memory=1GB"))
    assert cell_hash(same) == cell_hash(base)


@pytest.mark.parametrize("text", ["4", "GB", "-1GB", "many"])
def test_memory_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="memory="):
        parse_memory(text)


def test_memory_units() -> None:
    assert [*map(partial(parse_memory), ("500MB", "1.5 GB".replace(" ", "")))] == [500_000_000, 1_500_000_000]
