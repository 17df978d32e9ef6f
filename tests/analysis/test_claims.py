"""Claims from configuration, multiplicity, and verdicts in words."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ridgescope.analysis.claims import DEFAULT_CLAIMS, claims_from
from ridgescope.analysis.equivalence import equivalence, holm
from ridgescope.analysis.verdict import evaluate, failed_required
from ridgescope.train.errors import UserError

CLAIM = {"label": "a / b", "sentence": "a is b.", "link": "a → b", "measured": "a", "predicted": "b", "tolerance": 0.05}


def table(rng, columns: int, deviation: float, scatter: float, draws: int = 6) -> pd.DataFrame:
    """One setting, one cell, ``draws`` networks; columns m0, m1, ... each off by ``deviation`` from one."""
    values = {f"m{i}": np.exp(np.log1p(deviation) + scatter * rng.normal(size=draws)) for i in range(columns)}
    fixed = {"data": "d", "model": "mlp", "depth": 2, "activation": "relu", "parameterisation": "ntk", "alpha": 10.0}
    fixed |= {"options": "{}", "training": "{}"}
    fixed |= {"width": 16, "P": 100, "ridge": 0.1, "seed": 0, "converged": True, "run": "r", "one": 1.0}
    return pd.DataFrame(values).assign(draw=range(draws), **fixed)


def claims(columns: int, **settings):
    return claims_from(
        {
            f"c{i}": CLAIM | {"measured": f"m{i}", "predicted": "one", "factors": ["draw"]} | settings
            for i in range(columns)
        }
    )


class TestMultiplicity:
    def test_holm_against_the_textbook(self):
        # Holm 1979: smallest times 4, next times 3, and never falling
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
        assert holm([0.9]).tolist() == [0.9]

    @pytest.mark.parametrize("wrong", ["holds", "fails"])
    def test_any_wrong_verdict_among_eight_is_as_rare_as_promised(self, wrong):
        rng = np.random.default_rng(0)
        # just outside the tolerance nothing may hold, just inside nothing may fail
        deviation = 0.0501 if wrong == "holds" else 0.0499
        trials = 100
        corrected, alone = 0, 0
        for _ in range(trials):
            values = np.log1p(deviation) + 0.02 * rng.normal(size=(8, 5))
            results = [
                equivalence(pd.DataFrame({"cell": 0, "draw": range(5), "log_ratio": row}), ("draw",)) for row in values
            ]
            p = [result.p_values(0.05)[wrong == "fails"] for result in results]
            corrected += min(holm(p)) <= 0.05
            alone += min(p) <= 0.05
        assert corrected / trials < 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
        assert alone / trials > 0.2  # without the correction one in three reports would err

    def test_required_claims_are_a_family_of_their_own(self):
        data = table(np.random.default_rng(2), 12, 0.0, 0.03)
        many = claims(12)
        one = claims(12)
        one["c0"].required = True
        p_many = evaluate(data, many).set_index("claim")["p_holds"]["c0"]
        p_one = evaluate(data, one).set_index("claim")["p_holds"]["c0"]
        assert p_one < p_many / 2


class TestTests:
    def test_mean_is_two_one_sided_t_tests(self):
        values = np.array([0.01, 0.03, -0.02, 0.04])
        result = equivalence(pd.DataFrame({"cell": 0, "draw": range(4), "log_ratio": values}), ("draw",))
        p_holds, p_fails = result.p_values(0.05, "mean")
        above = stats.ttest_1samp(values, np.log(1.05), alternative="less").pvalue
        below = stats.ttest_1samp(values, np.log(0.95), alternative="greater").pvalue
        assert p_holds == pytest.approx(max(above, below))
        assert p_fails == pytest.approx(1 - above)

    def test_at_most_allows_any_shortfall(self):
        data = table(np.random.default_rng(3), 1, -0.5, 0.01)
        assert evaluate(data, claims(1, test="at_most"))["verdict"].item() == "holds"
        assert evaluate(data, claims(1))["verdict"].item() == "fails"
        above = table(np.random.default_rng(3), 1, 0.5, 0.01)
        assert evaluate(above, claims(1, test="at_most"))["verdict"].item() == "fails"

    def test_the_number_of_seeds_that_it_asks_for_would_decide(self):
        rng = np.random.default_rng(4)
        row = evaluate(table(rng, 1, 0.0, 0.05, draws=4), claims(1)).iloc[0]
        assert row["verdict"] == "undetermined"
        assert 8 <= row["needed"] <= 80
        again = evaluate(table(rng, 1, 0.0, 0.05, draws=2 * int(row["needed"])), claims(1))
        assert again["verdict"].item() == "holds"


class TestWords:
    @pytest.mark.parametrize(
        ("deviation", "scatter", "verdict", "words"),
        [
            (0.0, 0.003, "holds", "so the claim holds"),
            (0.3, 0.01, "fails", "so the claim fails: look there."),
            (0.0, 0.08, "undetermined", "seeds and training sets per cell would decide it"),
        ],
    )
    def test_two_sentences_say_the_verdict(self, deviation, scatter, verdict, words):
        data = table(np.random.default_rng(5), 1, deviation, scatter)
        row = evaluate(data, claims(1, if_fails="look there", what="the thing", against="the other")).iloc[0]
        assert row["verdict"] == verdict
        assert words in row["explanation"]
        assert "the thing is" in row["explanation"]
        assert row["explanation"].count(". ") == 1
        assert "nan" not in row["explanation"]

    def test_networks_left_out_are_always_mentioned(self):
        data = table(np.random.default_rng(6), 1, 0.0, 0.003, draws=12)
        data.loc[0, "m0"] = np.inf
        row = evaluate(data, claims(1)).iloc[0]
        assert row["verdict"] == "holds"
        assert "1 networks had to be left out" in row["explanation"]

    def test_nothing_measured_is_no_verdict(self):
        data = table(np.random.default_rng(7), 1, 0.0, 0.01).assign(m0=np.nan)
        row = evaluate(data, claims(1)).iloc[0]
        assert row["verdict"] == "undetermined"
        assert "nothing can be said" in row["explanation"]


class TestRequired:
    def test_a_failed_required_claim_is_named_with_its_link(self):
        verdicts = evaluate(table(np.random.default_rng(8), 2, 0.3, 0.01), claims(2, required=True))
        lines = failed_required(verdicts)
        assert len(lines) == 2
        assert lines[0].startswith("required claim c0 fails for mlp (a → b): +")

    def test_undetermined_does_not_fail_a_build(self):
        verdicts = evaluate(table(np.random.default_rng(9), 1, 0.0, 0.3), claims(1, required=True))
        assert verdicts["verdict"].item() == "undetermined"
        assert failed_required(verdicts) == []


class TestDeclared:
    def test_the_default_claims_name_three_links(self):
        links = {DEFAULT_CLAIMS[key].link for key in ("theory", "width", "lazy")}
        assert links == {"theory → infinite width", "infinite → finite width", "kernel → network"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"tolerence": 1}, "claims.mine has no key tolerence; known: label"),
            ({"tolerance": 5}, "claims.mine.tolerance=5.0 is a relative deviation"),
            ({"test": "significance"}, "claims.mine.test='significance' is unknown; choose equivalence"),
            ({"factors": ["pool"]}, "claims.mine.factors=\\['pool'\\]"),
        ],
    )
    def test_mistakes_are_named(self, change, message):
        with pytest.raises(UserError, match=message):
            claims_from({"mine": CLAIM | change})

    def test_a_missing_key_is_named(self):
        with pytest.raises(UserError, match=r"claims\.mine lacks predicted"):
            claims_from({"mine": {key: value for key, value in CLAIM.items() if key != "predicted"}})
