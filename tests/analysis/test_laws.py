"""The finite-width law beside a cell's networks: what it gives, and that it never speaks for another architecture."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ridgescope.analysis.attribution import CROSS_COLUMNS, SETS_COLUMNS, attribute
from ridgescope.analysis.crossed import TERMS
from ridgescope.analysis.finite_width import finite_width_law, law_kernel, law_of
from ridgescope.analysis.laws import LAW_COLUMNS, BlockLaws
from ridgescope.analysis.runs import Cell
from ridgescope.models import MLP, empirical_ntk, infinite_ntk
from ridgescope.theory import kernel_ridge, pool_estimator
from ridgescope.train.data import prepare_data

P, RIDGES = 30, [1e-1, 1e-2]


@pytest.fixture(scope="module")
def data():
    return prepare_data("digits", train_size=P, pool_size=300, test_size=100, num_draws=8, target="parity")


def cell(width, model="MLP", depth=1):
    target = {"_target_": f"ridgescope.models.{model}", "width": width, "depth": depth, "activation": "relu"}
    config = {"model": target, "data": {"train_size": P}, "ridges": RIDGES}
    return Cell(Path(f"{model}-{width}"), config, [], {}, {})


@pytest.fixture(scope="module")
def estimator(data):
    return pool_estimator(infinite_ntk(cell(8).network(data), data.pool_inputs).ntk, data.pool_targets)


def test_each_draw_gets_the_law_at_its_training_set(data, estimator):
    laws = BlockLaws()
    for width in (8, 32):  # the second starts from the first
        table = laws.of_cell(cell(width), data, estimator).set_index(["draw", "ridge"])
        assert len(table) == 8 * len(RIDGES)
        assert (table[["block_note", "block_pool_note"]] == "").all(axis=None)
        for draw, ridge in ((0, 1e-1), (5, 1e-2)):
            index = data.splits.train[draw]
            sets = data.pool_inputs[index], data.pool_targets[index], data.test_inputs, data.test_targets
            law = finite_width_law(cell(width).network(data), *sets, ridge=ridge)
            row = table.loc[draw, ridge]
            assert row["block_test"] == pytest.approx(float(law.test), rel=1e-8)
            assert row["block_bias"] + row["block_variance"] == pytest.approx(row["block_test"], rel=1e-12)
            assert row["block_kappa1"] == pytest.approx(float(law.kappa1), rel=1e-8)
    # one number for all draws, near the mean of the draws' own: 8 training sets of 30 points
    average = table["block_pool_test"].groupby("ridge").agg(["min", "max"])
    assert (average["min"] == average["max"]).all()
    assert table[list(SETS_COLUMNS)].isna().all(axis=None)  # no crossed design
    own = table["block_test"].groupby("ridge").agg(["mean", "sem"])
    assert ((own["mean"] - average["min"]).abs() < 4 * own["sem"] + 0.03 * own["mean"]).all()


@pytest.mark.parametrize(("model", "depth"), [("MLP", 2), ("CNN", 1)])
def test_deep_and_convolutional_cells_have_the_law_of_their_architecture(data, estimator, model, depth):
    few = replace(data, splits=replace(data.splits, train=data.splits.train[:2]))
    table = BlockLaws().of_cell(cell(16, model, depth), few, estimator)
    assert (table["block_note"] == "").all()
    assert table["block_pool_note"].str.startswith("no average over training sets").all()
    row = table[(table["draw"] == 1) & (table["ridge"] == 1e-2)].iloc[0]
    index = data.splits.train[1]
    sets = data.pool_inputs[index], data.pool_targets[index], data.test_inputs, data.test_targets
    law = finite_width_law(cell(16, model, depth).network(data), *sets, ridge=1e-2)
    assert row["block_test"] == pytest.approx(float(law.test), rel=1e-7)
    assert row["block_kappa1"] == pytest.approx(float(law.kappa1), rel=1e-7)


def test_two_convolutions_have_a_draw_of_the_first_for_each_training_set(data, estimator):
    few = replace(data, splits=replace(data.splits, train=data.splits.train[:2]))
    table = BlockLaws().of_cell(cell(8, "CNN", 2), few, estimator)
    assert (table["block_note"] == "").all()
    assert table["block_pool_note"].str.startswith("no average over training sets").all()
    row = table[(table["draw"] == 1) & (table["ridge"] == 1e-1)].iloc[0]
    index, network = data.splits.train[1], cell(8, "CNN", 2).network(data)
    kernel = law_kernel(network, data.pool_inputs[index], data.test_inputs, draws=1, seed=1)
    law = law_of(kernel, data.pool_targets[index], data.test_targets, width=8, ridge=1e-1)
    assert row["block_test"] == pytest.approx(float(law.test), rel=1e-5)
    many = replace(data, splits=replace(data.splits, train=[torch.arange(201)]))
    table = BlockLaws().of_cell(cell(8, "CNN", 2), many, estimator)
    assert table["block_note"].str.startswith("201 training points: the law of this architecture").all()


def test_without_a_law_numbers_are_missing_and_the_reason_is_given(data, estimator):
    table = BlockLaws().of_cell(cell(8, "CNN", depth=3), data, estimator)
    assert table[list(LAW_COLUMNS)].isna().all(axis=None)
    assert table["block_note"].str.contains("CNN with one or two convolutions, got CNN of depth 3").all()
    assert table["block_pool_note"].str.contains("got CNN of depth 3").all()
    narrow = BlockLaws().of_cell(cell(8, depth=2), data, estimator)
    assert narrow["block_note"].str.contains("width=8 is too narrow for the law of depth 2").all()


def test_repeated_points_are_named(data, estimator):
    index = data.splits.train[2]
    inputs = data.pool_inputs.clone()
    inputs[index[7]] = inputs[index[3]]
    table = BlockLaws().of_cell(cell(8), replace(data, pool_inputs=inputs), estimator).set_index(["draw", "ridge"])
    assert "training points 3 and 7 are equal" in table.loc[(2, 1e-1), "block_note"]
    assert table.loc[2, list(LAW_COLUMNS)].isna().all(axis=None)
    assert "are equal" in table.loc[(0, 1e-1), "block_pool_note"]


def test_a_ridgeless_cell_has_no_law(data, estimator):
    ridgeless = cell(8)
    ridgeless.config["ridges"] = [0.0]
    table = BlockLaws().of_cell(ridgeless, data, estimator)
    assert table["block_test"].isna().all()
    assert table["block_note"].str.contains("ridge").all()


def test_every_term_of_the_risk_is_the_laws(data, estimator):
    """Kernels of 8 networks of 16 neurons, each on 8 training sets; the law knows neither."""
    crossed = cell(16)
    crossed.config["design"] = "crossed"
    table = BlockLaws().of_cell(crossed, data, estimator).set_index(["ridge", "draw"])
    pool, test = data.pool_inputs, data.test_inputs
    residuals, seeds, draws = [], [], []
    for seed in range(8):
        network = MLP(data.in_shape, 1, width=16, depth=1, generator=torch.Generator().manual_seed(seed))
        gram = empirical_ntk(network, None, torch.cat([pool, test]), form="trace") / network.kernel_scale
        for draw, train in enumerate(data.splits.train):
            fit = kernel_ridge(gram[train][:, train], data.pool_targets[train], 1e-2)
            residuals.append(gram[len(pool) :][:, train] @ fit.dual - data.test_targets)
            seeds.append(seed)
            draws.append(draw)
    law, at_sets = (
        torch.tensor(table.loc[(1e-2, 0), list(columns)].to_numpy("float64"))
        for columns in (CROSS_COLUMNS, SETS_COLUMNS)
    )
    found = attribute(torch.stack(residuals), seeds, draws, predicted=law, at_sets=at_sets)
    rows = {row["term"]: row for row in found}
    for term in TERMS:
        row = rows[term]
        assert abs(row["z"]) < 2.5 or abs(row["deviation"]) < 0.15, row
        # the luck of the draws is in the law at these sets, and no part of its error
        assert abs(row["measured"] - row["predicted_sets"]) < 2.5 * row["se_sets"], row
    for term in ("bias", "data variance", "risk"):
        assert rows[term]["se_sets"] < 0.5 * rows[term]["se"], rows[term]
    of_width = rows["initialisation variance"]["predicted"] + rows["interaction"]["predicted"]
    assert of_width > 0.15 * rows["risk"]["predicted"]  # or finite width would not matter
