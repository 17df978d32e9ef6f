"""Regime map and scaling: planted regimes, exponents, crossings and peaks are found; too little says so."""

import math

import numpy as np
import pandas as pd
import pytest

from ridgescope.analysis.regimes import maps, regime_map
from ridgescope.analysis.report.regimes import regime_summary, scaling_lines
from ridgescope.analysis.resample import resampled
from ridgescope.analysis.scaling import descent_verdict, scaling_table


@pytest.fixture(scope="module")
def mapped(planted) -> pd.DataFrame:
    """Lazy networks, networks that only their final kernel describes, and networks that neither does."""
    lazy = planted(0, widths=(16, 64), sizes=(100,))
    rich = planted(1, widths=(16, 64), sizes=(100,), lazy_off=-0.3).assign(alpha=1.0)
    richer = planted(2, widths=(16, 64), sizes=(100,), lazy_off=-0.6).assign(alpha=0.1)
    richer["krr_final_test"] = 1.4 * richer["network_test"]
    return pd.concat([lazy, rich, richer], ignore_index=True)


def test_each_cell_is_in_its_regime(mapped) -> None:
    table = regime_map(mapped)
    assert len(table) == 12
    assert table.groupby("alpha")["regime"].unique().map(list).to_dict() == {
        10.0: ["initial"],
        1.0: ["final"],
        0.1: ["neither"],
    }
    rich = table[table["alpha"] == 1.0]
    assert ((rich["initial_low"] < -0.3) & (rich["initial_high"] > -0.3)).mean() >= 0.5
    assert regime_summary(table).startswith(
        "Of 12 cells regression with the kernel at initialisation describes 4, only"
    )


def test_one_map_holds_all_alphas_and_a_small_one_is_left_out(mapped, planted) -> None:
    other = planted(3, model="cnn", widths=(8,), sizes=(100,))
    table = regime_map(pd.concat([mapped, other], ignore_index=True))
    found = maps(table)
    assert list(found) == ["mlp"]
    assert len(found["mlp"]) == 12


def test_a_cell_that_lost_its_networks_or_has_one_is_undetermined(mapped) -> None:
    lost = mapped.assign(converged=mapped["seed"] > 1)
    assert set(regime_map(lost)["regime"]) == {"undetermined"}
    single = mapped[(mapped["seed"] == 0) & (mapped["draw"] == 0)]
    assert set(regime_map(single)["regime"]) == {"undetermined"}


def test_a_kernel_on_the_edge_of_the_tolerance_is_undetermined(planted) -> None:
    edge = planted(4, widths=(16,), sizes=(100,), noise=0.02, lazy_off=0.05)
    assert set(regime_map(edge)["regime"]) == {"undetermined"}


def crossed(value, *, levels: int = 6, noise: float = 0.01, seed: int = 0, **axes) -> pd.DataFrame:
    """``value(width, P)`` with relative noise by seed, by draw and of each network, on a grid of ``axes``."""
    rng = np.random.default_rng(seed)
    by_seed, by_draw = rng.normal(size=levels), rng.normal(size=levels)
    rows = [
        {
            "width": n,
            "P": p,
            "seed": s,
            "draw": d,
            "value": value(n, p) * math.exp(noise * (by_seed[s] + by_draw[d] + e)),
        }
        for n in axes["width"]
        for p in axes["P"]
        for s in range(levels)
        for d in range(levels)
        for e in [rng.normal()]
    ]
    return pd.DataFrame(rows)


def test_intervals_cover_a_mean_as_often_as_they_say() -> None:
    inside = 0
    for seed in range(60):
        table = crossed(lambda n, p: 1.0, width=(8,), P=(10,), noise=0.1, seed=seed)
        one = resampled(table, ["width"], ["value"], lambda m: np.log(m[:, 0]), replicates=100, seed=seed)[0]
        inside += one.low < 0 < one.high
    # 90 %: 54 +- 2.3; seeds and draws counted apart are slightly conservative
    assert 47 <= inside <= 60


def networks(value, infinite, **axes) -> pd.DataFrame:
    table = crossed(value, **axes)
    names = {
        "data": "digits",
        "model": "mlp",
        "depth": 1,
        "activation": "relu",
        "parameterisation": "ntk",
        "alpha": 10.0,
        "options": "{}",
        "training": "{}",
    }
    table = table.assign(**names, ridge=1e-3, converged=True, run="run", kernel_movement=0.0)
    table["network_test"] = table["krr_test"] = table["value"]
    table["infinite_test"] = [infinite(p) for p in table["P"]]
    table["block_test"] = [value(n, p) for n, p in zip(table["width"], table["P"], strict=True)]
    return table


def test_planted_exponents_are_within_their_intervals() -> None:
    table = networks(lambda n, p: p**-0.4 * (1 + 8 / n), lambda p: p**-0.4, width=(8, 16, 32, 64), P=(50, 100, 200))
    found = scaling_table(table)
    size = found[(found["kind"] == "size") & (found["who"] == "network")]
    assert len(size) == 4
    assert ((size["low"] < -0.4) & (size["high"] > -0.4)).sum() >= 3
    width = found[(found["kind"] == "width") & (found["who"] == "network")]
    assert len(width) == 3
    assert ((width["low"] < 1.0) & (width["high"] > 1.0)).sum() >= 2
    assert width["predicted"].to_numpy() == pytest.approx(1.0, abs=0.011)  # the grid of exponents
    assert (width["se"] < 0.05).all()
    assert set(scaling_lines(found, "mlp")) >= {"size", "width", "descent"}


def test_the_onset_is_where_half_of_the_risk_is_due_to_the_width() -> None:
    # excess (P/P_half)^1 with P_half = 10 sqrt(N)
    table = networks(
        lambda n, p: 1 + p / (10 * n**0.5), lambda p: 1.0, width=(16, 64, 256), P=(20, 40, 80, 160, 320), noise=0.01
    )
    found = scaling_table(table.drop(columns="network_test"))  # kernels alone will do
    onset = found[(found["kind"] == "onset") & (found["who"] == "kernel")].set_index("width")
    for width in (16, 64, 256):
        # the straight line between two sizes that are a factor 2 apart
        assert onset.loc[width, "value"] == pytest.approx(10 * width**0.5, rel=0.04)
    exponent = found[(found["kind"] == "onset exponent") & (found["who"] == "kernel")].iloc[0]
    assert exponent["value"] == pytest.approx(0.5, abs=max(3 * exponent["se"], 0.01))

    # a width beyond the peak, whose excess falls through 1 and back, is none of the series
    def broken(n: int, p: int) -> float:
        return 3.0 if n == 8 else 1 + p / (10 * n**0.5)

    odd = networks(broken, lambda p: 1.0, width=(6, 8, 16, 64, 256), P=(10, 20, 40, 80, 160, 320))
    exponent = scaling_table(odd).query("kind == 'onset exponent' and who == 'kernel'").iloc[0]
    assert exponent["points"] == 3
    assert exponent["value"] == pytest.approx(0.5, abs=max(3 * exponent["se"], 0.01))
    lazy = networks(lambda n, p: 1.5, lambda p: 1.0, width=(16, 64, 256), P=(20, 40))
    assert not (scaling_table(lazy)["kind"].isin(["onset", "onset exponent"])).any()


def test_a_peak_is_found_with_its_place_and_a_monotone_curve_has_none() -> None:
    bump = networks(
        lambda n, p: 1 / n + 2 * math.exp(-(math.log(n / 32) ** 2) / 0.5), lambda p: 1.0, width=(4, 8, 16, 32, 64, 128),
        P=(100,),
    )  # fmt: skip
    row = scaling_table(bump).query("kind == 'descent' and who == 'network'").iloc[0]
    assert (descent_verdict(row), row["at"], row["axis"]) == ("peak", 32, "N")
    falling = networks(lambda n, p: 1 + 1 / n, lambda p: 1.0, width=(4, 8, 16, 32), P=(100,))
    row = scaling_table(falling).query("kind == 'descent' and who == 'network'").iloc[0]
    assert descent_verdict(row) == "none"
    noisy = networks(lambda n, p: 1 + 0.1 * (n == 8), lambda p: 1.0, width=(4, 8, 16), P=(100,), noise=0.1, levels=3)
    assert (
        descent_verdict(scaling_table(noisy).query("kind == 'descent' and who == 'network'").iloc[0]) == "undetermined"
    )
