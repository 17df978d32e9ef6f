"""Risks: 46 reference cases, sum rules and limits on generated inputs, gradients, and simulation."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ridgescope.theory import (
    Features,
    Risks,
    Samples,
    Source,
    Spectrum,
    Target,
    centred_risks,
    gaussian_equivalent,
    geometric,
    learned_modes,
    power_law,
    power_law_target,
    renormalise,
    risks,
)

RTOL = 1e-12  # the accuracy promised for every output
VARIANCES = ("var_F", "var_X", "var_XF", "var_noise", "var_Fnoise")
decades = st.floats(-17, 3).map(lambda x: 10.0**x)
modes = st.lists(st.tuples(decades, st.floats(0, 2)), min_size=2, max_size=30)
ridges = st.one_of(st.just(0.0), st.floats(-15, 3).map(lambda x: 10.0**x))
sizes = st.floats(0.5, 60)


def solved(entries: list[tuple[float, float]], noise: float, p: float, n: float, ridge: float) -> Risks:
    eta, power = zip(*entries, strict=True)
    return risks(Spectrum(list(eta)), Target(list(power), noise), Samples(p) @ Features(n), ridge)


@settings(max_examples=80, deadline=None)
@given(modes, st.floats(0, 1), sizes, sizes, ridges)
def test_variances_are_positive_and_sum_to_the_risk(
    entries: list[tuple[float, float]], noise: float, p: float, n: float, ridge: float
) -> None:
    result = solved(entries, noise, p, n, ridge)
    if math.isinf(float(result.test)):
        assert float(result.train) == 0
        return
    terms = [float(getattr(result, name)) for name in VARIANCES]
    assert min(terms) >= 0
    assert sum(terms) + float(result.bias2) + noise == pytest.approx(float(result.test), rel=RTOL, abs=1e-300)
    assert 0 <= float(result.scale.rho) <= 1
    assert float(result.ens_inf) <= float(result.test) * (1 + RTOL)


@settings(max_examples=80, deadline=None)
@given(modes, sizes, sizes, st.floats(-15, 3).map(lambda x: 10.0**x))
def test_train_risk_is_the_shrunk_test_risk(
    entries: list[tuple[float, float]], p: float, n: float, ridge: float
) -> None:
    result = solved(entries, 0.1, p, n, ridge)
    ratio = ridge / float(result.scale.kappa1)
    assert float(result.train) == pytest.approx(ratio**2 * float(result.test), rel=RTOL, abs=1e-300)


@settings(max_examples=40, deadline=None)
@given(modes, sizes, ridges)
def test_infinite_width_and_data_are_the_limits_of_large_ones(
    entries: list[tuple[float, float]], size: float, ridge: float
) -> None:
    kernel, wide = solved(entries, 0.1, size, math.inf, ridge), solved(entries, 0.1, size, 1e13, ridge)
    if float(kernel.scale.open1) > 1e-3:  # otherwise 1/N is divided by the open share
        assert float(wide.test) == pytest.approx(float(kernel.test), rel=1e-6)
    many, all_data = (solved(entries, 0.1, p, size, ridge) for p in (1e13, math.inf))
    assert float(many.test) == pytest.approx(float(all_data.test), rel=1e-6)
    assert float(all_data.scale.kappa1) == pytest.approx(ridge, rel=1e-14)


def test_averages_over_members_interpolate_between_the_terms() -> None:
    r = risks(power_law(300, 1.3), power_law_target(300, 2.0, noise=0.2), Samples(80) @ Features(120), 1e-3)
    assert float(r.crossed(1, 1)) == pytest.approx(float(r.test), rel=RTOL)
    many = 10**15
    assert float(r.ensemble(many)) == pytest.approx(float(r.ens_inf), rel=RTOL)
    at_infinite_data = r.noise + r.bias2 + r.var_F
    assert float(r.bag(many)) == pytest.approx(float(at_infinite_data), rel=RTOL)
    assert float(r.ensemble(3)) == pytest.approx(float(r.ens_inf + (r.test - r.ens_inf) / 3), rel=RTOL)
    assert float(r.independent(4)) == pytest.approx(float(r.noise + r.bias2 + (r.excess - r.bias2) / 4), rel=RTOL)
    assert float(r.ensemble_train(3)) == pytest.approx(float((1e-3 / r.scale.kappa1) ** 2 * r.ensemble(3)), rel=RTOL)
    with pytest.raises(ValueError, match="members=0 must be at least 1"):
        r.independent(0)


def test_ensembling_keeps_the_implicit_ridge() -> None:
    spectrum, target = power_law(300, 1.3), power_law_target(300, 2.0, noise=0.2)
    r = risks(spectrum, target, Samples(80) @ Features(120), 1e-3)
    kernel = risks(spectrum, target, Samples(80), 1e-3 / r.scale.spare_features[0])
    assert float(r.ens_inf) == pytest.approx(float(kernel.test), rel=RTOL)


def test_a_grid_equals_its_points() -> None:
    spectrum, target = geometric(200, 1.0, 1e-6), power_law_target(200, 1.5, noise=0.1)
    p, lam = torch.tensor([[20.0], [300.0]], dtype=torch.float64), torch.tensor([0.0, 1e-3, 1.0], dtype=torch.float64)
    grid = risks(spectrum, target, Samples(p) @ Features(150), lam)
    assert grid.test.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = risks(spectrum, target, Samples(float(p[i, 0])) @ Features(150), float(lam[j]))
            assert float(grid.test[i, j]) == pytest.approx(float(one.test), rel=RTOL)


@pytest.mark.parametrize("ridge", [0.0, 0.02])
def test_every_output_has_its_gradient(ridge: float) -> None:
    torch.manual_seed(2)
    eta = (0.05 + torch.rand(8, dtype=torch.float64)).requires_grad_()
    c2 = torch.rand(8, dtype=torch.float64).requires_grad_()
    noise = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    # gradcheck steps to both sides, so lam = 0 itself is covered by holding it fixed
    lam = torch.tensor(ridge, dtype=torch.float64, requires_grad=ridge > 0)
    p = torch.tensor([4.0, 20.0], dtype=torch.float64, requires_grad=True)

    def outputs(eta: Tensor, c2: Tensor, noise: Tensor, lam: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        r = risks(Spectrum(eta), Target(c2, noise), Samples(p) @ Features(6.0) @ Features(7.0), lam)
        scale = r.scale
        both = [r.test, r.train, r.bias2, r.ens_inf, *(getattr(r, name) for name in VARIANCES)]
        return (*both, scale.kappa1, scale.kappa2, scale.df1, scale.df2, scale.gamma1, scale.gamma2)

    assert torch.autograd.gradcheck(outputs, (eta, c2, noise, lam, p))


def test_outputs_add_and_the_constant_mode_is_a_mode() -> None:
    torch.manual_seed(3)
    c = torch.randn(40, 3, dtype=torch.float64)
    spectrum = power_law(40, 1.2)
    joint = risks(
        spectrum, Target.from_coefficients(c, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)), Samples(20), 0.1
    )
    single = [risks(spectrum, Target.from_coefficients(c[:, a], 0.1 * (a + 1)), Samples(20), 0.1) for a in range(3)]
    assert float(joint.test) == pytest.approx(sum(float(r.test) for r in single), rel=RTOL)


def test_bad_input_is_named_with_its_fix() -> None:
    good = power_law(5, 1.5)
    for call, message in (
        (lambda: Spectrum([1.0, -0.5]), "eigenvalues must be finite and >= 0, got -0.5"),
        (lambda: Spectrum([1.0, math.nan]), "got nan"),
        (lambda: Spectrum([]), r"shape \(0,\)"),
        (lambda: Spectrum(torch.ones(3)), "float32, which loses digits"),
        (lambda: Spectrum([1.0], [0.0]), "multiplicities must be > 0"),
        (lambda: Spectrum([1.0], [1.0, 2.0]), r"multiplicities has shape \(2,\).*1 entries"),
        (lambda: Target([-1.0]), "target power .* got -1"),
        (lambda: risks(good, Target([1.0]), Samples(3), 0.1), r"target power has shape \(1,\).*5 entries"),
        (lambda: power_law(0, 1.5), "num_modes=0"),
        (lambda: power_law(5, 1.5, -1.0), "scale=-1"),
        (lambda: geometric(5, 1.0, 0.0), "last=0"),
        (lambda: gaussian_equivalent(torch.full((3,), 2.0, dtype=torch.float64), 0.0, 1.0, 0.0), "average to 2"),
        (lambda: centred_risks(good, Target([1.0] * 5), 1, 0.1), "num_samples - 1 must be > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_truncation_keeps_trace_and_rank_becomes_infinite() -> None:
    spectrum = power_law(100, 1.5)
    short = spectrum.truncated(10)
    assert float(short.trace) == pytest.approx(float(spectrum.trace), rel=RTOL)
    assert (spectrum.rank, short.rank) == (100, math.inf)
    assert Spectrum([1.0, 0.0, 2.0], [2.0, 5.0, 3.0]).rank == 5
    blocks = Spectrum([1.0, 0.5], [1.0, 4.0]).truncated(1)
    assert float(blocks.bulk_trace) == 2


@pytest.mark.parametrize(
    ("p", "n", "ridge"), [(100, math.inf, 1e-2), (60, math.inf, 0.0), (100, 60, 1e-3), (60, 120, 1e-3)]
)
def test_simulated_risks_agree(p: int, n: float, ridge: float, draw: Callable, assert_mean: Callable) -> None:
    generator = torch.Generator().manual_seed(p)
    spectrum, noise = power_law(200, 1.4), 0.1
    target = power_law_target(200, 2.0, noise=noise)
    c, theory = target.c2.sqrt(), risks(spectrum, target, Samples(p) @ Features(n), ridge)
    test, train = [], []
    for _ in range(80):
        data = draw(spectrum, c, p, noise, generator)
        f = torch.eye(200, dtype=torch.float64)
        if math.isfinite(n):
            f = torch.randn(200, int(n), generator=generator, dtype=torch.float64) / n**0.5
        z = data.features @ f
        gram = z @ z.T + (p * ridge if ridge else 1e-12) * torch.eye(p, dtype=torch.float64)
        dual = torch.linalg.solve(gram, data.labels)
        w = spectrum.eta.sqrt() * (f @ (z.T @ dual))[:, 0]
        test.append(float((w - c).square().sum()) + noise)
        train.append(float((z @ (z.T @ dual) - data.labels).square().mean()))
    # 1/P corrections: 3 % at these sizes
    assert_mean(test, float(theory.test), 0.03)
    if ridge:
        assert_mean(train, float(theory.train), 0.03)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("p", "widths", "ridge"),
    [(100, (150, 120), 1e-3), (150, (300, 100, 200), 1e-4), (80, (150, 250), 0.0)],
)
def test_simulated_deep_features_agree(p: int, widths: tuple[int, ...], ridge: float, assert_mean: Callable) -> None:
    draws, d, noise = 150, 300, 0.1
    spectrum, target = power_law(d, 1.3), power_law_target(d, 2.0, noise=noise)
    c = target.c2.sqrt()
    chain: Source = Samples(p)
    for n in widths:
        chain = chain @ Features(n)
    theory = risks(spectrum, target, chain, ridge)
    mixing = spectrum.eta.sqrt().diag().expand(draws, d, d)
    for layer, n in enumerate(widths):
        mixing = mixing @ normal(draws, mixing.shape[-1], n, seed=layer) / n**0.5
    phi = normal(draws, p, d, seed=100)
    labels = phi @ c[:, None] + noise**0.5 * normal(draws, p, 1, seed=101)
    z = phi @ mixing
    gram, eye = z @ z.mT / p, torch.eye(p, dtype=torch.float64)
    dual = torch.linalg.solve(gram + (ridge or 1e-14) * eye, labels) / p
    w = (mixing @ (z.mT @ dual))[..., 0]
    test = (w - c).square().sum(1) + noise
    # 1/P corrections of the risk: 3 % at these sizes
    assert_mean(test.tolist(), float(theory.test), 0.03)
    if ridge:
        train = (z @ (z.mT @ dual) - labels).square().mean((1, 2))
        assert_mean(train.tolist(), float(theory.train), 0.03)
        kappa1 = 1 / (torch.linalg.eigvalsh(gram) + ridge).reciprocal().mean(1)
        assert_mean(kappa1.tolist(), float(theory.scale.kappa1), 0.01)


@pytest.mark.parametrize(("p", "n", "ridge"), [(80, 160, 1e-3), (120, 60, 1e-3)])
def test_simulated_ensembles_and_bags_agree(p: int, n: int, ridge: float, assert_mean: Callable) -> None:
    """Every pair of 5 feature draws and 5 data sets is fitted, in 40 independent grids of them."""
    grids, members, d, noise = 40, 5, 200, 0.1
    spectrum, target = power_law(d, 1.3), power_law_target(d, 2.0, noise=noise)
    c, theory = target.c2.sqrt(), risks(spectrum, target, Samples(p) @ Features(n), ridge)
    mixing = spectrum.eta.sqrt()[:, None] * normal(grids, members, 1, d, n, seed=0) / n**0.5
    phi = normal(grids, 1, members, p, d, seed=1)
    labels = phi @ c[:, None] + noise**0.5 * normal(grids, 1, members, p, 1, seed=2)
    z = phi @ mixing  # (grid, feature draw, data set, sample, feature)
    fit = z.mT @ torch.linalg.solve(z @ z.mT + p * ridge * torch.eye(p, dtype=torch.float64), labels)
    w = (mixing @ fit)[..., 0]

    def risk(average: Tensor) -> list[float]:
        excess = (average - c).square().sum(-1)
        return (excess.reshape(grids, -1).mean(1) + noise).tolist()

    # 1/P corrections of the single risk reach 3 % here; averages inherit them
    assert_mean(risk(w), float(theory.test), 0.03)
    assert_mean(risk(w.mean(1)), float(theory.ensemble(members)), 0.03)
    assert_mean(risk(w.mean(2)), float(theory.bag(members)), 0.03)
    assert_mean(risk(w.mean((1, 2))), float(theory.crossed(members, members)), 0.03)
    own = w.diagonal(dim1=1, dim2=2).mean(-1)  # member e with its own features and its own data
    assert_mean(risk(own), float(theory.independent(members)), 0.03)
    residual = ((z @ fit).mean(1) - labels[:, 0]).square().mean((1, 2, 3))
    assert_mean(residual.tolist(), float(theory.ensemble_train(members)), 0.03)
    assert float(theory.ensemble(members)) < 0.95 * float(theory.test)  # averaging is visible at this size


def test_nonlinear_features_follow_their_gaussian_equivalent(assert_mean: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    d, p, n, ridge, noise = 150, 225, 150, 1e-2, 0.05
    levels = torch.arange(1, d + 1, dtype=torch.float64) ** -0.6
    levels = levels / levels.mean()
    spectrum = gaussian_equivalent(levels, (2 * math.pi) ** -0.5, 0.5, (0.25 - 1 / (2 * math.pi)) ** 0.5)
    target = Target(torch.cat([torch.zeros(1, dtype=torch.float64), levels / d]), noise)
    theory = risks(spectrum, target, Samples(p) @ Features(n), ridge)
    measured = []
    for _ in range(20):
        weights = torch.randn(d, n, generator=generator, dtype=torch.float64) / d**0.5
        teacher = torch.randn(d, generator=generator, dtype=torch.float64)
        teacher *= (levels.sum() / (levels * teacher.square()).sum()).sqrt() / d**0.5
        x = torch.randn(p + 2000, d, generator=generator, dtype=torch.float64) * levels.sqrt()
        y = x @ teacher + noise**0.5 * torch.randn(len(x), generator=generator, dtype=torch.float64)
        z = (x @ weights).relu() / n**0.5
        gram = z[:p].T @ z[:p] + p * ridge * torch.eye(n, dtype=torch.float64)
        fit = torch.linalg.solve(gram, z[:p].T @ y[:p])
        measured.append(float((z[p:] @ fit - y[p:]).square().mean()))
    assert_mean(measured, float(theory.test), 0.03)


def test_an_intercept_costs_one_sample(draw: Callable, assert_mean: Callable) -> None:
    generator = torch.Generator().manual_seed(4)
    spectrum, p, ridge, noise = power_law(100, 1.4), 40, 1e-2, 0.1
    target = power_law_target(100, 2.0, noise=noise)
    c, measured = target.c2.sqrt(), []
    for _ in range(300):
        data = draw(spectrum, c, p, noise, generator)
        mean, shift = data.features.mean(0), data.labels.mean()
        z = data.features - mean
        dual = torch.linalg.solve(z @ z.T + p * ridge * torch.eye(p, dtype=torch.float64), data.labels - shift)
        w = (z.T @ dual)[:, 0]
        bias = float(shift - mean @ w)
        measured.append(float((spectrum.eta.sqrt() * w - c).square().sum()) + bias**2 + noise)
    assert_mean(measured, float(centred_risks(spectrum, target, p, ridge)), 0.01)


def test_learned_modes_sum_to_df1_and_add_up_to_the_variance() -> None:
    spectrum = power_law(300, 1.5)
    c = torch.arange(1, 301, dtype=torch.float64) ** -1.1
    fit = learned_modes(spectrum, c, num_samples=100, ridge=1e-3, noise=0.1)
    assert float(fit.learnability.sum()) == pytest.approx(float(fit.scale.df1), rel=RTOL)
    # sum of the first variance term is gamma E_test: noise and data variance of the risk together
    plain = fit.variance - fit.direction.square()
    r = risks(spectrum, Target(c.square(), 0.1), Samples(100), 1e-3)
    assert float(plain.sum()) == pytest.approx(float(r.var_X + r.var_noise), rel=RTOL)
    assert torch.equal(fit.covariance().diagonal(), fit.variance)
    for call, message in (
        (lambda: learned_modes(Spectrum([1.0], [2.0]), c[:1], num_samples=5, ridge=0.1), "single modes"),
        (lambda: learned_modes(spectrum, c, num_samples=300, ridge=0.0), "gamma = 1"),
        (lambda: learned_modes(spectrum, c, num_samples=torch.ones(2), ridge=0.0), "float32"),
        (lambda: learned_modes(spectrum, c, num_samples=torch.ones(2, dtype=torch.float64), ridge=0.1), "one"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_dominant_mode_fluctuates_twice_as_much_as_the_mean_field(draw: Callable) -> None:
    generator = torch.Generator().manual_seed(5)
    spectrum, p, ridge = power_law(200, 1.8), 100, 1.0
    c = torch.arange(1, 201, dtype=torch.float64) ** -1.3
    fit = learned_modes(spectrum, c, num_samples=p, ridge=ridge)
    learned = []
    for _ in range(2000):
        data = draw(spectrum, c, p, 0.0, generator)
        gram = data.gram + p * ridge * torch.eye(p, dtype=torch.float64)
        learned.append((spectrum.eta.sqrt() * (data.features.T @ torch.linalg.solve(gram, data.labels))[:, 0])[:2])
    v = torch.stack(learned)
    # a variance from n draws has relative error sqrt(2/n) = 3 %; 1/P corrections add a few per cent
    assert float(v[:, 0].var()) == pytest.approx(float(fit.variance[0]), rel=0.15)
    plain = float(fit.variance[0] - fit.direction[0] ** 2)
    assert float(v[:, 0].var()) > 1.5 * plain
    covariance = float(torch.cov(v.T)[0, 1])
    stderr = float((v[:, 0].var() * v[:, 1].var() / len(v)).sqrt())
    assert covariance == pytest.approx(float(fit.covariance()[0, 1]), rel=0.15, abs=4 * stderr)
    assert covariance > 4 * stderr


def test_renormalise_without_sources_is_the_population() -> None:
    fit = renormalise(power_law(10, 1.5), Features(math.inf), 0.5)
    assert float(fit.kappa2) == 0.5
    assert float(fit.gamma1) == 0
