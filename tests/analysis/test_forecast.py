"""Claims about forecasts from a pilot: what they say, refuse, cost, and print."""

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from ridgescope.analysis.forecast import Cost, Forecast, Machine, best_risk, cheapest, forecast, make_pilot
from ridgescope.analysis.forecast.grid import RIDGE_GRID
from ridgescope.analysis.forecast.pilot import require_disjoint
from ridgescope.analysis.forecast.spend import choices, measured_cost
from ridgescope.analysis.forecast.width import at_width, ensemble_readings, paying_members
from ridgescope.analysis.forecast.words import recommendation
from ridgescope.analysis.report.forecast import frontier
from ridgescope.models import MLP, empirical_ntk, infinite_ntk
from ridgescope.theory import pool_estimator
from ridgescope.train.errors import UserError
from ridgescope.train.files import write_tensors


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random inputs of norm sqrt(12) and the sign of a quadratic."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True) * 12**0.5
    return x, (x[:, 0] + 0.5 * x[:, 1] * x[:, 2] > 0).double()[:, None] * 2 - 1


def network(width: int, seed: int = 0) -> MLP:
    return MLP((12,), 1, width=width, depth=1, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pilot() -> tuple[dict[float, list[Tensor]], Tensor]:
    x, y = points(256, seed=0)
    kernels = {float(w): [empirical_ntk(network(w, seed), None, x) for seed in (1, 2)] for w in (16, 64)}
    return kernels | {math.inf: [infinite_ntk(network(8), x).ntk]}, y


@pytest.fixture(scope="module")
def result(pilot: tuple[dict[float, list[Tensor]], Tensor]) -> Forecast:
    return forecast(*pilot, num_samples=[128, 256, 1024], ridges=[1e-1, 1e-2, 1e-3])


def test_forecasts_of_four_times_the_pool_hold_what_larger_runs_give(result: Forecast) -> None:
    x, y = points(4048, seed=5)
    gram = infinite_ntk(network(8), x[:1024]).ntk
    cross = infinite_ntk(network(8), x[1024:], x[:1024]).ntk
    rows = result.table[(result.table["P"] == 1024) & (result.table["width"] == math.inf)]
    inside = 0
    for row in rows.to_dict("records"):
        shifted = gram + 1024 * row["ridge"] * torch.eye(1024, dtype=torch.float64)
        risk = float((cross @ torch.linalg.solve(shifted, y[:1024]) - y[1024:]).square().mean())
        assert row["risk"] == pytest.approx(risk, rel=0.25)
        inside += row["risk_low"] * 0.97 < risk < row["risk_high"] * 1.03
    assert inside >= 2  # of three, at 90 % each and strongly dependent


def test_at_the_pilots_own_size_it_repeats_the_pilot(result: Forecast) -> None:
    keys = ["P", "width", "ridge"]
    both = result.table.merge(result.pilot.groupby(keys, as_index=False)["risk"].mean(), on=keys)
    own = both[(both["P"] == 256) & (both["width"] == math.inf)]
    assert len(own) == 3
    # linear interpolation between eight pool ridges a decade
    assert (own["risk_x"] / own["risk_y"] - 1).abs().max() < 0.01
    assert (own["extrapolation"] == "none").all()


def test_wider_is_better_and_ensembles_pay_where_it_is_narrow(result: Forecast) -> None:
    small = result.table[(result.table["P"] == 1024) & (result.table["ridge"] == 1e-3)].set_index("width")
    assert small.loc[16.0, "risk"] > small.loc[64.0, "risk"] > small.loc[math.inf, "risk"]
    assert small.loc[16.0, "ensemble_floor"] < small.loc[64.0, "ensemble_floor"] < 1
    assert small.loc[math.inf, "ensemble_floor"] == 1
    assert small.loc[16.0, "members"] >= small.loc[64.0, "members"] > 1
    assert small.loc[16.0, "regime"] in ("width", "ridge")


def test_widths_between_those_measured_are_interpolated_and_beyond_refused(result: Forecast) -> None:
    ridges = torch.tensor([1e-2], dtype=torch.float64)
    wide, middle, narrow = (float(at_width(result.widths, w, 512, ridges)[0].log_risk) for w in (64, 32, 16))
    # 1/32 lies at a third of the way from 1/64 to 1/16
    assert middle == pytest.approx(wide + (narrow - wide) / 3, rel=1e-12)
    with pytest.raises(UserError, match="width 4 was asked for, kernels were measured at 16, 64, inf"):
        at_width(result.widths, 4, 512, ridges)
    assert at_width(result.widths[:2], 256, 512, ridges)[1]  # no infinite width: 1/N is extrapolated


def test_the_best_ridge_lies_amid_the_range_where_the_risk_is_flat(result: Forecast) -> None:
    grid = RIDGE_GRID * result.widths[-1].pilots[0].scale
    for row in result.optimal.to_dict("records"):
        low, best, high = (int((grid - row[name]).abs().argmin()) for name in ("ridge_low", "ridge", "ridge_high"))
        assert low < best < high
        found = at_width(result.widths, row["width"], row["P"], grid)[0]
        place = (found.share[best] - found.share[high]) / (found.share[low] - found.share[high])
        assert 0.3 < float(place) < 0.7
        risks = found.log_risk.exp()
        assert row["risk"] == pytest.approx(float(risks[best]), rel=1e-12)
        top = float(risks[low : high + 1].max())
        assert low == 0 or top < float(risks[low - 1])
        assert top < float(risks[high + 1])
        assert float(risks[best] / risks.min()) < 1.01


def test_two_equal_networks_make_no_ensemble(pilot: tuple[dict[float, list[Tensor]], Tensor]) -> None:
    pool = pool_estimator(pilot[0][16.0][0], pilot[1])
    _, ratio, gamma = ensemble_readings(pool, pool, torch.tensor([1e-2, 1e-1], dtype=torch.float64))
    torch.testing.assert_close(ratio, torch.zeros(2, dtype=torch.float64))
    # then gamma_x is the gamma of the resolvent, 1 - 1/(kappa^2 tr R^2/M)
    r = 1 / (pool.eigenvalues + 1e-2)
    assert float(gamma[0]) == pytest.approx(1 - float(r.mean() ** 2 / r.square().mean()), rel=1e-8)


@pytest.mark.parametrize(("floor", "members"), [(1.0, 1), (0.5, 7), (0.0, 64)])
def test_members_pay_until_one_more_gains_a_per_cent(floor: float, members: int) -> None:
    # floor 1/2: 1 - (1 + 1/8)/(1 + 1/7) = 1/64 > 1 %, and from 10 to 11 it is 0.8 %
    found = paying_members(floor)
    gain = 1 - (floor + (1 - floor) / (found + 1)) / (floor + (1 - floor) / found)
    assert gain < 0.01 or found == 64
    assert found >= members


def test_noise_above_the_signal_is_undetermined_and_says_why() -> None:
    x, _ = points(128, seed=1)
    y = torch.randn(128, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = forecast({math.inf: [infinite_ntk(network(8), x).ntk]}, y, num_samples=[256])
    assert (found.table["status"] == "undetermined").all()
    assert found.table["needed"].str.contains("a signal above the noise").all()
    assert "No forecast" in recommendation(found, pd.DataFrame())


def test_too_many_samples_are_undetermined_and_name_the_pool_needed(pilot: tuple[dict, Tensor]) -> None:
    found = forecast({math.inf: pilot[0][math.inf]}, pilot[1], num_samples=[256 * 20])
    assert set(found.table["status"]) == {"undetermined"}
    assert found.table["needed"].iloc[0] == "P = 5120 is more than 16 times the pool; a pool of 320 points"


def test_bad_pilots_are_refused_with_the_value_and_the_fix(pilot: tuple[dict, Tensor]) -> None:
    gram, y = pilot[0][math.inf][0], pilot[1]
    with pytest.raises(UserError, match=r"a pilot of 50 points cannot be checked .* at least 96"):
        make_pilot(gram[:50, :50], y[:50])
    twice = torch.cat([torch.arange(128), torch.arange(3)])
    with pytest.raises(UserError, match="3 pairs of pilot points are equal to the kernel, the first 0 and 128"):
        make_pilot(gram[twice][:, twice], y[twice])
    with pytest.raises(UserError, match="the targets are 0 everywhere"):
        make_pilot(gram, 0 * y)
    with pytest.raises(UserError, match="num_samples holds -5"):
        forecast({math.inf: [gram]}, y, num_samples=[-5])


def test_leaking_test_points_are_counted() -> None:
    x, _ = points(6, seed=3)
    require_disjoint(x[:3], x[3:])
    with pytest.raises(UserError, match="2 test points are also pilot points, the first is test point 1"):
        require_disjoint(x[:3], torch.cat([x[4:5], x[:2]]))


def test_flops_are_those_of_the_matrix_products() -> None:
    x = torch.randn(4, 12, dtype=torch.float64)
    cost = measured_cost(lambda n: network(n), [16.0, math.inf], x, passes=10)
    # forward: 2 (12 * 16 + 16); backward: the same for the weights, and 2 * 16 to the hidden layer
    assert cost.flops_per_sample == {16.0: 2 * 2 * (12 * 16 + 16) + 2 * 16}
    assert cost.flops(100, 16.0, members=3) == 3 * 10 * 100 * cost.flops_per_sample[16.0]


def test_the_cheapest_choice_meets_its_target_and_the_best_its_budget(result: Forecast) -> None:
    table = choices(result.optimal, Cost({16.0: 1e3, 64.0: 4e3}, passes=10), Machine(peak=1e12, utilisation=0.5))
    target = float(table["risk"].median())
    chosen = cheapest(table, target)
    assert chosen is not None
    assert chosen["flops"] == table.loc[table["risk"] <= target, "flops"].min()
    best = best_risk(table, chosen["flops"])
    assert best is not None
    assert best["risk"] <= chosen["risk"]
    assert cheapest(table, 1e-9) is None
    assert best_risk(table, 1.0) is None
    assert chosen["gpu_seconds"] == pytest.approx(chosen["flops"] / 5e11)
    kept = frontier(table)
    assert kept["risk"].is_monotonic_decreasing
    assert kept["flops"].is_monotonic_increasing


Outcome = tuple[int | str | None, str, str]


def test_the_command_forecasts_from_a_kernel_in_a_file(
    call: Callable[..., Outcome], tmp_path: Path, pilot: tuple[dict[float, list[Tensor]], Tensor]
) -> None:
    write_tensors(tmp_path / "mine.safetensors", {"kernel": pilot[0][math.inf][0], "targets": pilot[1]})
    pd.DataFrame({"P": [1024], "ridge": [1e-2], "test": [0.3]}).to_parquet(tmp_path / "runs.parquet")
    status, out, errors = call(
        "forecast", "kernel=mine.safetensors", "ridges=[1e-2,1e-3]", "runs=runs.parquet", "name=given"
    )
    assert status == 0, errors
    page = (tmp_path / "runs" / "given" / "index.html").read_text()
    assert out.splitlines()[0] in page
    assert "The pilot of 256 samples has a best left-out risk" in out
    assert {path.stem for path in (tmp_path / "runs" / "given").glob("*.parquet")} == {"forecast", "optimal", "pilot"}
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.pool_size=50", "data.train_size=10"], "a pilot of 50 points cannot be checked"),
        (["kernel=none.safetensors"], "cannot read none.safetensors"),
        (["widths=[0]", "data.pool_size=100", "data.train_size=10"], "widths holds 0"),
        (["runs=none.parquet", "data.pool_size=100", "data.train_size=10"], "runs=none.parquet cannot be read"),
    ],
)
def test_each_mistake_is_one_line(words: list[str], message: str, call: Callable[..., Outcome]) -> None:
    status, _, errors = call("forecast", *words)
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("ridgescope: error")]
    assert len(lines) == 1, errors
    assert message in lines[0]
