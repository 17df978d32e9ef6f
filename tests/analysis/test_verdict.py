"""Verdicts on tables with planted truths: what was broken is named, and noise alone never breaks anything."""

import numpy as np
import pandas as pd
import pytest

from ridgescope.analysis.cells import TRAINED_COLUMNS, cells, kappa_parts, setting_labels
from ridgescope.analysis.claims import DEFAULT_CLAIMS
from ridgescope.analysis.equivalence import equivalence
from ridgescope.analysis.verdict import broken_links, evaluate


def verdict_of(verdicts: pd.DataFrame, claim: str, scope: str = "all") -> pd.Series:
    rows = verdicts[(verdicts["claim"] == claim) & (verdicts["scope"] == scope)]
    assert len(rows) == 1
    return rows.iloc[0]


def two_way(rng, num_cells, num_seeds, num_draws, by_seed, by_draw, alone, shift=0.0):
    """Seed effect + draw effect + noise + shift; half of each effect's variance is shared by the cells."""
    cell, seed, draw = (
        axis.ravel() for axis in np.meshgrid(*map(np.arange, (num_cells, num_seeds, num_draws)), indexing="ij")
    )
    effect_of_seed = by_seed * (rng.normal(size=(1, num_seeds)) + rng.normal(size=(num_cells, num_seeds)))
    effect_of_draw = by_draw * (rng.normal(size=(1, num_draws)) + rng.normal(size=(num_cells, num_draws)))
    log_ratio = shift + effect_of_seed[cell, seed] + effect_of_draw[cell, draw] + alone * rng.normal(size=cell.size)
    return pd.DataFrame({"cell": cell, "seed": seed, "draw": draw, "log_ratio": log_ratio})


class TestEquivalence:
    def test_one_factor_and_one_cell_is_the_textbook_interval(self):
        values = np.array([0.01, 0.03, -0.02, 0.04])
        ratios = pd.DataFrame({"cell": 0, "draw": range(4), "log_ratio": values})
        result = equivalence(ratios, ("draw",))
        error = values.std(ddof=1) / 2
        quantile = 2.3533634  # Student's t, 95 %, 3 degrees of freedom, from a table
        assert result.deviation == pytest.approx(np.expm1(values.mean()))
        assert result.error == pytest.approx(np.exp(values.mean()) * error)
        assert result.low == pytest.approx(np.expm1(values.mean() - quantile * error))
        assert result.high == pytest.approx(np.expm1(values.mean() + quantile * error))

    def test_copies_of_a_draw_add_no_information(self):
        rng = np.random.default_rng(3)
        once = pd.DataFrame({"cell": 0, "draw": range(5), "log_ratio": 0.02 * rng.normal(size=5)})
        copied = pd.concat([once] * 7, ignore_index=True)
        first, second = equivalence(once, ("draw",)), equivalence(copied, ("draw",))
        assert second.error == pytest.approx(first.error)
        assert second.high == pytest.approx(first.high)

    def test_seed_tied_to_draw_counts_once(self):
        rng = np.random.default_rng(4)
        tied = pd.DataFrame({"cell": 0, "draw": range(5), "log_ratio": 0.02 * rng.normal(size=5)})
        tied["seed"] = 10 + tied["draw"]
        assert equivalence(tied, ("draw", "seed")).error == pytest.approx(equivalence(tied, ("draw",)).error)

    @pytest.mark.parametrize(
        ("by_seed", "by_draw", "alone"),
        [(0.01, 0.0, 0.0), (0.0, 0.01, 0.0), (0.0, 0.0, 0.01), (0.01, 0.01, 0.0), (0.01, 0.003, 0.003)],
    )
    def test_interval_covers_the_truth(self, by_seed, by_draw, alone):
        rng = np.random.default_rng(17)
        trials = 300
        covered = 0
        for _ in range(trials):
            result = equivalence(two_way(rng, 3, 4, 3, by_seed, by_draw, alone, shift=0.02), ("draw", "seed"))
            covered += result.low <= np.expm1(0.02) <= result.high
        # nominal 90 %; four binomial standard errors, and Satterthwaite's quantile is itself approximate
        assert covered / trials > 0.90 - 4 * np.sqrt(0.9 * 0.1 / trials)

    def test_ignoring_shared_draws_would_not_cover(self):
        rng = np.random.default_rng(18)
        trials = 200
        covered = 0
        for _ in range(trials):
            ratios = two_way(rng, 3, 4, 3, 0.0, 0.01, 0.0).assign(own=lambda table: range(len(table)))
            result = equivalence(ratios, ("own",))
            covered += result.low <= 0 <= result.high
        assert covered / trials < 0.7

    def test_a_deviation_at_the_tolerance_seldom_holds(self):
        rng = np.random.default_rng(19)
        trials = 300
        tables = (two_way(rng, 3, 4, 3, 0.01, 0.01, 0.003, shift=np.log(1.05)) for _ in range(trials))
        held = sum(equivalence(ratios, ("draw", "seed")).verdict(0.05) == "holds" for ratios in tables)
        # an equivalence test at 5 %: four binomial standard errors above it
        assert held / trials < 0.05 + 4 * np.sqrt(0.05 * 0.95 / trials)

    def test_one_level_of_a_factor_is_named(self):
        ratios = two_way(np.random.default_rng(5), 3, 4, 1, 0.01, 0.0, 0.01)
        result = equivalence(ratios, ("draw", "seed"))
        assert result.note == "one draw only"
        assert np.isfinite(result.high)

    def test_no_repetition_is_undetermined_however_small_the_deviation(self):
        ratios = pd.DataFrame({"cell": [0, 1], "draw": 0, "seed": 0, "log_ratio": [1e-6, -1e-6]})
        result = equivalence(ratios, ("draw", "seed"))
        assert np.isnan(result.high)
        assert result.verdict(0.05) == "undetermined"

    def test_a_cell_with_one_network_is_undetermined(self):
        ratios = two_way(np.random.default_rng(6), 3, 3, 3, 0.001, 0.001, 0.001)
        alone = ratios[(ratios["cell"] > 0) | ((ratios["seed"] == 0) & (ratios["draw"] == 0))]
        assert equivalence(alone, ("draw", "seed")).verdict(0.05) == "undetermined"

    def test_opposite_errors_do_not_cancel(self):
        ratios = two_way(np.random.default_rng(7), 2, 4, 4, 0.001, 0.001, 0.001)
        ratios["log_ratio"] += np.where(ratios["cell"] == 0, 0.2, -0.2)
        result = equivalence(ratios, ("draw", "seed"))
        assert abs(result.deviation) < 0.03
        assert result.verdict(0.05) == "fails"

    def test_scatter_alone_is_never_a_failure(self):
        rng = np.random.default_rng(8)
        verdicts = [
            equivalence(two_way(rng, 8, 3, 3, 0.1, 0.1, 0.1), ("draw", "seed")).verdict(0.02) for _ in range(100)
        ]
        # either test may err in 5 % of tables that are exactly at the tolerance; these are well inside
        assert verdicts.count("fails") <= 10


class TestEvaluate:
    def test_everything_holds_where_nothing_is_broken(self, planted):
        verdicts = evaluate(planted(0))
        assert set(verdicts["verdict"]) == {"holds"}
        # nothing was measured along training
        assert set(verdicts["claim"]) == {key for key, claim in DEFAULT_CLAIMS.items() if not claim.along_training}
        assert "no link breaks" in broken_links(verdicts)["mlp"]

    @pytest.mark.parametrize(
        ("option", "claim", "link"),
        [
            ("theory_off", "theory", "theory → infinite width"),
            ("lazy_off", "lazy", "kernel → network"),
            ("law_off", "blocks", "infinite → finite width"),
        ],
    )
    def test_a_link_broken_by_ten_percent_fails_alone_and_is_named(self, planted, option, claim, link):
        # at the narrowest of the three widths the planted excess is the option itself
        verdicts = evaluate(planted(1, **{option: 0.10}))
        narrow = verdict_of(verdicts, claim, "all" if claim == "theory" else "width 16")
        assert narrow["verdict"] == "fails"
        assert narrow["deviation"] == pytest.approx(0.10, abs=0.01)
        others = {"theory", "blocks", "lazy"} - {claim}
        assert set(verdicts[verdicts["claim"].isin(others)]["verdict"]) == {"holds"}
        assert broken_links(verdicts)["mlp"].startswith(f"the chain breaks at {link}:")

    def test_says_at_which_widths_a_link_breaks(self, planted):
        sentence = broken_links(evaluate(planted(2, law_off=0.4)))["mlp"]
        assert "infinite → finite width holds at width 256, fails at width 16, 64" in sentence

    def test_an_effect_of_width_that_the_law_predicts_breaks_no_link(self, planted):
        verdicts = evaluate(planted(2, width_excess=0.4))
        assert verdict_of(verdicts, "width")["verdict"] == "fails"
        assert verdict_of(verdicts, "blocks")["verdict"] == "holds"
        assert "no link breaks" in broken_links(verdicts)["mlp"]

    def test_without_a_law_the_link_is_the_comparison_with_infinite_width(self, planted):
        reason = "the block law is derived for an MLP with one hidden layer, got CNN of depth 2"
        lacking = dict.fromkeys(("block_test", "block_kappa1", "block_pool_test"), np.nan)
        networks = planted(2, width_excess=0.4).assign(**lacking, block_note=reason)
        verdicts = evaluate(networks)
        blocks = verdict_of(verdicts, "blocks")
        assert blocks["verdict"] == "undetermined"
        assert blocks["note"] == f"not available: {reason}"
        assert f"could not be had for any network ({reason})" in blocks["explanation"]
        assert broken_links(verdicts)["mlp"].startswith("the chain breaks at infinite → finite width:")

    def test_noise_beyond_the_tolerance_is_undetermined(self, planted):
        verdicts = evaluate(planted(3, noise=0.2))
        assert "holds" not in set(verdicts.loc[verdicts["claim"] == "width", "verdict"])
        assert verdict_of(verdicts, "theory")["verdict"] == "undetermined"

    def test_measured_over_predicted_is_the_deviation(self, planted):
        verdicts = evaluate(planted(4, width_excess=0.3))
        ratio = verdicts["measured"] / verdicts["predicted"] - 1
        np.testing.assert_allclose(ratio, verdicts["deviation"], rtol=1e-9, atol=1e-12)

    def test_networks_that_did_not_converge_are_excluded_and_counted(self, planted):
        networks = planted(5)
        bad = networks.index[::10]
        networks.loc[bad, "converged"] = False
        networks.loc[bad, "network_test"] = 1e6
        verdicts = evaluate(networks)
        lazy = verdict_of(verdicts, "lazy")
        assert lazy["verdict"] == "holds"
        assert lazy["excluded"] == len(bad)
        assert not set(networks.loc[bad, "run"]) & set(lazy["runs"])
        # the kernel at initialisation owes nothing to training
        assert verdict_of(verdicts, "width")["excluded"] == 0

    def test_losing_a_fifth_of_the_networks_decides_nothing(self, planted):
        networks = planted(6)
        networks.loc[networks["member"] < 4, "converged"] = False  # 4 of 16 members
        lazy = verdict_of(evaluate(networks), "lazy")
        assert lazy["verdict"] == "undetermined"
        assert lazy["note"] == "48 of 192 networks excluded"

    def test_what_was_not_measured_is_said_once(self, planted):
        networks = planted(7).assign(infinite_test=np.nan, infinite_heldout=np.nan)
        verdicts = evaluate(networks)
        width = verdicts[verdicts["claim"] == "width"]
        assert list(width["scope"]) == ["all"]
        assert width["note"].item() == "not available"
        assert width["verdict"].item() == "undetermined"

    def test_ridgeless_networks_have_no_risk_ratio_claim(self, planted):
        networks = planted(8, ridges=(0.0, 1e-2)).assign(
            kappa_risk=lambda table: table["kappa_risk"].where(table["ridge"] > 0)
        )
        claim = verdict_of(evaluate(networks), "kappa_network")
        assert (claim["cells"], claim["excluded"]) == (6, 0)  # 3 widths, 2 sizes, 1 ridge

    def test_settings_are_never_pooled(self, planted):
        lazy, rich = planted(9), planted(10, lazy_off=0.2).assign(alpha=1.0)
        verdicts = evaluate(pd.concat([lazy, rich], ignore_index=True))
        by_model = verdicts[(verdicts["claim"] == "lazy") & (verdicts["scope"] == "all")].set_index("model")
        assert by_model["verdict"].to_dict() == {"mlp, alpha 10": "holds", "mlp, alpha 1": "fails"}

    def test_a_missing_column_is_named(self, planted):
        with pytest.raises(ValueError, match="lacks krr_test, theory_test; analyse the runs again"):
            evaluate(planted(11).drop(columns=["krr_test", "theory_test"]))

    def test_an_empty_table_says_what_to_do(self, planted):
        with pytest.raises(ValueError, match="no rows; analyse at least one finished run"):
            evaluate(planted(12).iloc[:0])


class TestCells:
    def test_one_row_per_width_size_and_ridge(self, planted):
        table = cells(planted(0))
        assert len(table) == 3 * 2 * 2
        assert (table["networks"] == 16).all()
        assert (table["runs"].map(len) == 16).all()

    def test_error_is_that_of_the_draws_where_only_draws_differ(self, planted):
        networks = planted(1)
        one = networks[(networks["width"] == 16) & (networks["P"] == 100) & (networks["ridge"] == 1e-2)]
        by_draw = one.groupby("draw")["infinite_test"].first()
        row = cells(one).iloc[0]
        assert row["infinite_test_se"] == pytest.approx(by_draw.std() / 2)  # 4 draws, not 16 networks

    def test_diverged_networks_leave_no_trace_in_the_means(self, planted):
        networks = planted(2)
        clean = cells(networks[networks["member"] != 3])
        networks.loc[networks["member"] == 3, list(TRAINED_COLUMNS)] = np.inf
        networks.loc[networks["member"] == 3, "converged"] = False
        table = cells(networks)
        assert (table["excluded"] == 1).all()
        np.testing.assert_allclose(table["network_test"], clean["network_test"], rtol=1e-12)

    def test_labels_show_only_what_varies(self, planted):
        both = pd.concat([planted(3), planted(4, model="cnn").assign(depth=3)], ignore_index=True)
        assert set(setting_labels(both)) == {"mlp", "cnn"}


class TestKappaParts:
    def test_parts_add_up_and_solve_both_renormalisations(self, planted):
        parts = kappa_parts(cells(planted(0)))
        total = parts["explicit"] + parts["data_part"] + parts["width_part"]
        np.testing.assert_allclose(total, parts["kappa_2"], rtol=1e-12)
        # lam = kappa_2 (1 - df1/P)(1 - df1/N), the equation that the split comes from
        df1 = parts["P"] * (1 - parts["ridge"] / parts["kappa_entk"])
        lam = parts["kappa_2"] * (1 - df1 / parts["P"]) * (1 - df1 * parts["inverse_width"])
        np.testing.assert_allclose(lam, parts["ridge"], rtol=1e-10)

    def test_infinite_width_has_no_width_part(self, planted):
        parts = kappa_parts(cells(planted(0).assign(inverse_width=0.0)))
        assert (parts["width_part"] == 0).all()

    def test_a_width_below_the_degrees_of_freedom_has_no_kappa(self, planted):
        assert kappa_parts(cells(planted(0).assign(inverse_width=1.0)))["kappa_2"].isna().all()


def test_kernels_that_cannot_carry_the_ridge_are_left_out_with_their_reason(planted):
    networks = planted().assign(undetermined="")
    refused = networks["ridge"] == 1e-4
    networks.loc[refused, "undetermined"] = "kernel at initialisation: the kernel cannot carry ridge=0.0001: so it is"
    networks.loc[refused, ["krr_test", "kappa_entk"]] = np.nan
    verdicts = evaluate(networks)
    lazy = verdicts[(verdicts["claim"] == "lazy") & (verdicts["scope"] == "all")].iloc[0]
    assert lazy["excluded"] == refused.sum()
    assert lazy["verdict"] == "undetermined"
    assert lazy["note"] == f"{refused.sum()} of {len(networks)} networks excluded: {networks['undetermined'].max()}"
    networks[["krr_test", "undetermined"]] = np.nan, networks["undetermined"].max()
    lazy = evaluate(networks).query("claim == 'lazy' and scope == 'all'").iloc[0]
    assert "could not be had for any network (kernel at initialisation: the kernel cannot" in lazy["explanation"]
