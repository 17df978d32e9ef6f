"""Attribution: unbiased terms with honest errors, and the theory's own regressions split as the theory says."""

import itertools

import numpy as np
import pytest
import torch

from ridgescope.analysis.attribution import attribute, attribute_cell, quantities, theory_cross_risks
from ridgescope.analysis.crossed import TERMS, bag, cross_risks, ensemble
from ridgescope.theory import Features, Samples, pool_estimator, power_law, power_law_target, risks


def two_way(seed: int, num_seeds: int, num_draws: int, points: int = 400, *, bias=0.3, data=0.2, init=0.1, both=0.15):
    """Residuals with known terms: independent Gaussian effects at each test point, one output."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    mean = bias**0.5 * normal(1, 1, points)
    effects = data**0.5 * normal(1, num_draws, points) + init**0.5 * normal(num_seeds, 1, points)
    r = mean + effects + both**0.5 * normal(num_seeds, num_draws, points)
    pairs = list(itertools.product(range(num_seeds), range(num_draws)))
    return r.reshape(-1, points, 1), [s for s, _ in pairs], [d for _, d in pairs]


TRUTH = {"bias": 0.3, "data variance": 0.2, "initialisation variance": 0.1, "interaction": 0.15, "risk": 0.75}


def estimated(seed: int, *design: int, **settings):
    r, seeds, draws = two_way(seed, *design, **settings)
    return cross_risks(r, seeds, draws, generator=torch.Generator().manual_seed(seed), replicates=60)


class TestCrossed:
    def test_balanced_design_is_the_analysis_of_variance(self):
        r, seeds, draws = two_way(0, 4, 5)
        found = cross_risks(r, seeds, draws, generator=torch.Generator().manual_seed(0), replicates=10).terms()
        grid = r.reshape(4, 5, -1)
        by_seed, by_draw, all_of_it = grid.mean(1), grid.mean(0), grid.mean((0, 1))
        rest = grid - by_seed[:, None] - by_draw[None] + all_of_it
        ms_rest = float(rest.square().sum((0, 1)).mean()) / 12
        ms_seed = 5 * float((by_seed - all_of_it).square().sum(0).mean()) / 3
        ms_draw = 4 * float((by_draw - all_of_it).square().sum(0).mean()) / 4
        assert found["interaction"].value == pytest.approx(ms_rest)
        assert found["initialisation variance"].value == pytest.approx((ms_seed - ms_rest) / 5)
        assert found["data variance"].value == pytest.approx((ms_draw - ms_rest) / 4)

    def test_terms_add_up_to_the_mean_risk_exactly(self):
        r, seeds, draws = two_way(1, 3, 4)
        found = cross_risks(r, seeds, draws, generator=torch.Generator().manual_seed(0), replicates=10).terms()
        assert sum(found[name].value for name in TERMS if name != "risk") == pytest.approx(found["risk"].value)
        assert found["risk"].value == pytest.approx(float(r.square().mean()))

    def test_terms_are_unbiased_and_their_errors_honest(self):
        trials = 100
        values = {name: [] for name in TERMS}
        for trial in range(trials):
            for name, one in estimated(trial, 5, 6, points=60).terms().items():
                values[name].append((one.value, one.se, one.low <= TRUTH[name] <= one.high))
        for name, rows in values.items():
            value, se, covered = map(np.array, zip(*rows, strict=True))
            spread = value.std(ddof=1)
            assert abs(value.mean() - TRUTH[name]) < 4 * spread / np.sqrt(trials), name
            # here all effects interact with the points, which all three sources count: the most conservative case
            assert 0.95 < np.sqrt((se**2).mean()) / spread < 2.2, name
            assert covered.mean() > 0.9 - 4 * np.sqrt(0.09 / trials), name

    def test_missing_networks_leave_the_rest_unbiased(self):
        values = []
        for trial in range(60):
            r, seeds, draws = two_way(1000 + trial, 5, 5, points=60)
            keep = [i for i in range(25) if i % 6]
            g = torch.Generator().manual_seed(0)
            found = cross_risks(r[keep], [seeds[i] for i in keep], [draws[i] for i in keep], generator=g, replicates=5)
            values.append([found.terms()[name].value for name in TERMS])
        mean, se = np.mean(values, 0), np.std(values, 0, ddof=1) / np.sqrt(60)
        assert (np.abs(mean - [TRUTH[name] for name in TERMS]) < 4 * se).all()

    def test_ensembles_and_bags_are_averages_of_predictors(self):
        r, seeds, draws = two_way(2, 4, 4)
        found = cross_risks(r, seeds, draws, generator=torch.Generator().manual_seed(0), replicates=5)
        grid = r.reshape(4, 4, -1)
        assert found.estimate(ensemble(4)).value == pytest.approx(float(grid.mean(0).square().mean()))
        assert found.estimate(bag(4)).value == pytest.approx(float(grid.mean(1).square().mean()))
        pairs = [grid[[i, j]].mean(0).square().mean() for i, j in itertools.combinations(range(4), 2)]
        assert found.estimate(ensemble(2)).value == pytest.approx(float(torch.stack(pairs).mean()))

    def test_the_design_that_it_asks_for_reaches_the_precision(self):
        found = estimated(3, 6, 6)
        seeds, draws = found.networks_for(0.04)
        again = estimated(4, seeds, draws)
        assert max(one.se for one in again.terms().values()) < 1.5 * 0.04 * 0.75
        coarser = found.networks_for(0.2)
        assert coarser[0] * coarser[1] <= seeds * draws
        assert found.networks_for(1e-5) is None
        alone = found.networks_for(0.04, [TERMS["interaction"]])  # one term alone needs no more than all
        assert alone[0] * alone[1] <= seeds * draws

    def test_too_few_seeds_decide_nothing_and_say_how_many_would(self):
        exact = torch.tensor([0.75, 0.4, 0.5, 0.3], dtype=torch.float64)
        for tolerance in (0.001, 0.06):  # of the first no number of seeds is enough on 2000 test points
            r, seeds, draws = two_way(5, 3, 3, points=2000)
            found = cross_risks(r, seeds, draws, generator=torch.Generator().manual_seed(0))
            rows = attribute(r, seeds, draws, predicted=exact, tolerance=tolerance)
            open_rows = [row for row in rows if row["verdict"] == "undetermined"]
            assert open_rows
            for row in open_rows:
                combination = quantities(3, 3)[row["term"]]
                share = tolerance * row["predicted"] / 2 / float(found.values[0])
                design = found.networks_for(share, [combination])
                wanted = "more test points" if design is None else f"{design[0]} seeds x {design[1]} draws"
                assert row["note"] == f"the interval crosses the tolerance; {wanted} would decide"
            assert tolerance > 0.01 or {row["note"] for row in open_rows} == {
                "the interval crosses the tolerance; more test points would decide"
            }

    @pytest.mark.parametrize(
        ("seeds", "draws", "message"),
        [
            ([0, 0, 0, 0], [0, 1, 2, 3], "1 seeds and 4 draws give no terms with errors; train with design=crossed"),
            ([0, 1, 2, 3], [0, 1, 2, 3], "no pair shares only its seed"),
            ([0, 0, 1, 2], [0, 0, 1, 2], "the same seed and draw"),
        ],
    )
    def test_designs_that_cannot_be_split_are_refused(self, seeds, draws, message):
        r = torch.ones(4, 10, 1, dtype=torch.float64)
        with pytest.raises(ValueError, match=message):
            cross_risks(r, seeds, draws, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def random_features():
    """Random-feature regression on Gaussian data, 8 feature draws x 8 subsets of one pool, and its pool estimator."""
    modes, pool, size, width, ridge, noise = 600, 500, 120, 200, 1e-3, 0.1
    g = torch.Generator().manual_seed(5)
    spectrum, target = power_law(modes, 1.4), power_law_target(modes, 2.0, noise=noise)
    coefficients = target.c2.sqrt() * torch.randn(modes, generator=g, dtype=torch.float64).sign()

    def sample(count):
        z = torch.randn(count, modes, generator=g, dtype=torch.float64)
        y = z @ coefficients + noise**0.5 * torch.randn(count, generator=g, dtype=torch.float64)
        return z * spectrum.eta.sqrt(), y

    (x, y), (x_test, y_test) = sample(pool), sample(1500)
    residuals, seeds, draws = [], [], []
    subsets = [torch.randperm(pool, generator=g)[:size] for _ in range(8)]
    for s in range(8):
        features = torch.randn(modes, width, generator=g, dtype=torch.float64) / width**0.5
        for d, index in enumerate(subsets):
            a = x[index] @ features
            weights = torch.linalg.solve(a.T @ a + size * ridge * torch.eye(width, dtype=torch.float64), a.T @ y[index])
            residuals.append(x_test @ (features @ weights) - y_test)
            seeds.append(s)
            draws.append(d)
    estimator = pool_estimator(x @ x.T, y[:, None])
    truth = risks(spectrum, target, Samples(size) @ Features(width), ridge)
    return torch.stack(residuals)[:, :, None], seeds, draws, estimator.predict(size, ridge, width), size / pool, truth


class TestTheory:
    def test_cross_risks_at_no_overlap_are_the_six_terms(self, random_features):
        *_, prediction, _, truth = random_features
        four = theory_cross_risks(prediction, 0.0)
        total, same_seed, same_draw, neither = four.tolist()
        assert total == pytest.approx(prediction.test)
        # pool estimates against the population's own six terms
        assert neither == pytest.approx(float(truth.bias2 + truth.noise), rel=0.06)
        assert same_seed - neither == pytest.approx(float(truth.var_F), rel=0.15)
        assert same_draw - neither == pytest.approx(float(truth.var_X + truth.var_noise), rel=0.15)
        interaction = total - same_seed - same_draw + neither
        assert interaction == pytest.approx(float(truth.var_XF + truth.var_Fnoise), rel=0.2)

    def test_measured_terms_match_the_theory_for_overlapping_draws(self, random_features):
        residuals, seeds, draws, prediction, overlap, _ = random_features
        rows = attribute(residuals, seeds, draws, predicted=theory_cross_risks(prediction, overlap))
        for row in rows:
            assert abs(row["z"]) < 2.5 or abs(row["deviation"]) < 0.15, row
        by_term = {row["term"]: row for row in rows}
        assert by_term["ensemble of 8"]["deviation"] == pytest.approx(0, abs=0.1)
        # forgetting that the training sets overlap misplaces a visible part of the data variance
        naive = attribute(residuals, seeds, draws, predicted=theory_cross_risks(prediction, 0.0))
        assert abs(naive[1]["deviation"]) > abs(by_term["data variance"]["deviation"]) + 0.05


def test_a_cell_leaves_out_what_did_not_converge_and_says_so():
    import pandas as pd

    r, seeds, draws = two_way(6, 4, 4)
    rows = pd.DataFrame({"member": range(16), "seed": seeds, "draw": draws, "converged": True})
    rows = rows.assign(
        run="r", data="d", model="mlp", width=8, P=10, ridge=0.1, alpha=10.0, inverse_width=np.nan, krr_test=1.0
    )
    rows.loc[5, "converged"] = False
    rows.loc[[2, 7], "krr_test"] = np.nan  # kernels that cannot carry the ridge
    r[5] = 1e6
    targets = torch.zeros(r.shape[1], 1, dtype=torch.float64)
    table = pd.DataFrame(attribute_cell(rows, {"network": r, "kernel": two_way(6, 4, 4)[0]}, targets, None))
    network = table[table["who"] == "network"].set_index("term")
    assert (network["excluded"] == 1).all()
    assert (table.loc[table["who"] == "kernel", "excluded"] == 2).all()
    assert network.loc["risk", "measured"] < 2
    assert set(table["verdict"]) == {"undetermined"}
    assert network.loc["risk", "note"] == "no theory for this kernel"
