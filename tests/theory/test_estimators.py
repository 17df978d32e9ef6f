"""What a kernel matrix reveals: identities that hold on every matrix, and error bars with spread one."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ridgescope.theory import (
    Features,
    Samples,
    Target,
    effective_width,
    effective_width_from_population,
    kappa_from_heldout,
    kappa_from_modes,
    kappa_from_risks,
    kernel_ridge,
    learned_modes,
    log_kappa_errors,
    power_law,
    renormalise,
    resolvent_estimate,
    risks,
)

RTOL = 1e-10  # identities between matrix functions of a 30 x 30 kernel of condition 1e5


@pytest.fixture
def kernel() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(30, 50, generator=generator, dtype=torch.float64) * power_law(50, 1.2).eta.sqrt()
    return z @ z.T, torch.randn(30, 2, generator=generator, dtype=torch.float64)


def test_the_estimates_are_the_matrix_functions_they_are_defined_by(kernel: tuple) -> None:
    gram, targets = kernel
    p, ridge = 30, 1e-2
    resolvent = torch.linalg.inv(gram / p + ridge * torch.eye(p, dtype=torch.float64))
    estimate = resolvent_estimate(torch.linalg.eigvalsh(gram / p), ridge=ridge)
    r1, r2 = float(resolvent.trace()) / p, float((resolvent @ resolvent).trace()) / p
    assert estimate.kappa == pytest.approx(1 / r1, rel=RTOL)
    assert estimate.df1 == pytest.approx(float((gram / p @ resolvent).trace()), rel=RTOL)
    assert estimate.df1 == pytest.approx(p * (1 - ridge / estimate.kappa), rel=RTOL)
    assert estimate.gamma == pytest.approx(1 - r1**2 / r2, rel=RTOL)
    fit = kernel_ridge(gram, targets, ridge)
    residual = targets - gram @ fit.dual
    assert fit.train == pytest.approx(float(residual.square().sum()) / p, rel=RTOL)
    assert fit.gcv == pytest.approx((estimate.kappa / ridge) ** 2 * fit.train, rel=RTOL)


def test_leave_one_out_is_leaving_one_out(kernel: tuple) -> None:
    gram, targets = kernel
    total = 0.0
    for i in range(30):
        keep = torch.arange(30) != i
        # the ridge added to the matrix stays P * ridge with P = 30
        dual = kernel_ridge(gram[keep][:, keep], targets[keep], 30 / 29 * 1e-2).dual
        total += float((gram[i, keep] @ dual - targets[i]).square().sum())
    assert kernel_ridge(gram, targets, 1e-2).loo == pytest.approx(total / 30, rel=RTOL)


def test_equal_blocks_leave_the_estimate_and_its_error_alone() -> None:
    e = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, three = resolvent_estimate(e, ridge=0.1), resolvent_estimate(e.repeat(3), ridge=0.1, num_samples=40)
    for name in ("kappa", "kappa_corrected", "se_log", "bias_log", "df1", "gamma"):
        assert getattr(three, name) == pytest.approx(getattr(one, name), rel=1e-13)


def test_the_error_bar_is_the_schwarzian_of_the_population() -> None:
    """(kappa/P)^2/3 times the Schwarzian of kappa(lam), by differentiating the solver three times."""
    spectrum, p = power_law(400, 1.3), 150
    lam = torch.tensor(1e-2, dtype=torch.float64, requires_grad=True)
    kappa = renormalise(spectrum, Samples(p), lam).kappa2
    (first,) = torch.autograd.grad(kappa, lam, create_graph=True)
    (second,) = torch.autograd.grad(first, lam, create_graph=True)
    (third,) = torch.autograd.grad(second, lam)
    kappa, first, second = kappa.detach(), first.detach(), second.detach()
    schwarzian = float(third / first - 1.5 * (second / first) ** 2)
    sd, bias = log_kappa_errors(spectrum.eta, None, p, float(kappa))
    assert sd == pytest.approx(float(kappa) / p * math.sqrt(schwarzian / 3), rel=1e-9)
    assert bias == pytest.approx(float(kappa * second / first) / (2 * p), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("p", "ridge", "noise", "draws"), [(150, 1e-2, 0.1, 500), (300, 1e-3, 0.05, 400)])
def test_z_scores_of_kappa_have_spread_one(
    p: int, ridge: float, noise: float, draws: int, draw: Callable, spread: Callable
) -> None:
    # the spread is known to 3.2 and 3.5 %: 0.9 to 1.1 is 3 of its standard errors
    generator = torch.Generator().manual_seed(2)
    spectrum = power_law(400, 1.3)
    c = torch.arange(1, 401, dtype=torch.float64) ** -1.02
    theory = risks(spectrum, Target(c.square(), noise), Samples(p), ridge)
    kappa, gamma, test_risk = (float(x) for x in (theory.scale.kappa2, theory.scale.gamma2, theory.test))
    resolvent, ratio, modes = [], [], []
    for _ in range(draws):
        data = draw(spectrum, c, p, noise, generator)
        estimate = resolvent_estimate(torch.linalg.eigvalsh(data.gram / p), ridge=ridge)
        resolvent.append(math.log(estimate.kappa_corrected / kappa) / estimate.se_log)
        fit = kernel_ridge(data.gram, data.labels, ridge)
        v = spectrum.eta.sqrt() * (data.features.T @ fit.dual)[:, 0]
        missed = (c - v).square().sum() + noise  # on Gaussian points the errors are Gaussian of this variance
        errors = missed * torch.randn(1000, generator=generator, dtype=torch.float64).square()
        risk = kappa_from_risks(
            float(errors.mean()), fit.train, ridge, num_samples=p, gamma=estimate.gamma, test_squared_errors=errors
        )
        ratio.append(math.log(risk.kappa / kappa) / risk.se_log)
        mode = kappa_from_modes(v, c, spectrum.eta, num_samples=p, test_risk=test_risk, gamma=gamma)
        modes.append(math.log(mode.kappa / kappa) / mode.se_log)
    assert 0.9 < spread(resolvent) < 1.1
    assert abs(sum(resolvent) / draws) < 4 / draws**0.5  # the bias is corrected
    assert 0.9 < spread(ratio) < 1.1
    assert 0.9 < spread(modes) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize(("p", "n", "ridge"), [(200, 100, 1e-3), (200, 400, 1e-3)])
def test_z_scores_of_the_width_have_spread_one(p: int, n: int, ridge: float, spread: Callable) -> None:
    generator = torch.Generator().manual_seed(3)
    spectrum, same, population = power_law(400, 1.3), [], []
    for _ in range(300):
        x = torch.randn(p, 400, generator=generator, dtype=torch.float64) * spectrum.eta.sqrt()
        z = x @ torch.randn(400, n, generator=generator, dtype=torch.float64) / n**0.5
        e, limit = torch.linalg.eigvalsh(z @ z.T / p), torch.linalg.eigvalsh(x @ x.T / p)
        measured = resolvent_estimate(e, ridge=ridge)
        one = effective_width(limit, measured.df1, ridge)
        same.append((one.inverse_width - 1 / n) / one.se)
        two = effective_width_from_population(spectrum, kappa1=measured.kappa, num_samples=p, ridge=ridge)
        population.append((two.inverse_width - 1 / n) / two.se)
    for z_scores in (same, population):
        assert 0.9 < spread(z_scores) < 1.1
        assert abs(sum(z_scores) / 300) < 0.25  # leftover bias O(1/P) in units of the error


def test_the_width_inverts_the_renormalisation_exactly() -> None:
    spectrum = power_law(500, 1.3)
    fit = renormalise(spectrum, Samples(200) @ Features(300), 1e-3)
    estimate = effective_width_from_population(spectrum, kappa1=float(fit.kappa1), num_samples=200, ridge=1e-3)
    assert estimate.inverse_width + estimate.bias == pytest.approx(1 / 300, rel=1e-10)
    # same inputs: df1 of a kernel whose ridge lam was renormalised to lam/(1 - df/N)
    e = spectrum.eta / 200
    limit = renormalise(spectrum, Features(300), 1e-3)
    same = effective_width(spectrum.eta, float(limit.df1), 1e-3)
    assert same.inverse_width + same.bias == pytest.approx(1 / 300, rel=1e-10)
    assert len(e) == 500


def test_infinite_width_is_within_its_error() -> None:
    spectrum = power_law(300, 1.3)
    df1 = float((spectrum.eta / (spectrum.eta + 1e-3)).sum())
    estimate = effective_width(spectrum.eta, df1, 1e-3)
    assert abs(estimate.inverse_width) < estimate.se
    more = effective_width(spectrum.eta, 1.01 * df1, 1e-3)  # more degrees of freedom than the limit has
    assert more.inverse_width < 0
    assert more.width == math.inf
    ridgeless = effective_width(spectrum.eta, 40.0, 0.0)
    assert (ridgeless.width, ridgeless.se) == (pytest.approx(40.0, rel=1e-9), 0.0)


def test_modes_recover_kappa_without_fluctuation() -> None:
    spectrum = power_law(200, 1.3)
    c = torch.ones(200, dtype=torch.float64)
    fit = learned_modes(spectrum, c, num_samples=100, ridge=1e-2)
    options: dict[str, Any] = {"num_samples": 100, "test_risk": 1.0, "gamma": 0.2}
    estimate = kappa_from_modes(fit.mean, c, spectrum.eta, **options)
    assert estimate.kappa == pytest.approx(float(fit.scale.kappa2), rel=1e-8)
    assert estimate.low < estimate.kappa < estimate.high
    # Gaussian here: the profile interval is one standard error to each side
    assert math.log(estimate.high / estimate.kappa) == pytest.approx(estimate.se_log, rel=0.2)
    nearer = kappa_from_modes(fit.mean, c, spectrum.eta, start=1.0, **options)
    assert nearer.kappa == pytest.approx(estimate.kappa, rel=1e-8)
    noisy = kappa_from_modes(fit.mean, c, spectrum.eta, measurement_variance=c, **options)
    assert noisy.se_log > estimate.se_log


@pytest.mark.slow
@pytest.mark.parametrize("p", [150, 300])
def test_z_scores_of_heldout_modes_have_spread_one(p: int, draw: Callable, spread: Callable) -> None:
    # 60 modes reach below kappa: se_log is 0.31 and 0.25, small enough for log kappa to be Gaussian. 400 draws
    # give the spread to 3.5 %: 0.9 to 1.1 is 2.8 of its standard errors
    generator = torch.Generator().manual_seed(4)
    spectrum, ridge, noise, num_modes, points = power_law(400, 1.3), 1e-2, 0.1, 60, 2000
    c = torch.arange(1, 401, dtype=torch.float64) ** -1.02
    theory = risks(spectrum, Target(c.square(), noise), Samples(p), ridge)
    kappa, gamma, z = float(theory.scale.kappa2), float(theory.scale.gamma2), []
    for _ in range(400):
        data = draw(spectrum, c, p, noise, generator)
        v = spectrum.eta.sqrt() * (data.features.T @ kernel_ridge(data.gram, data.labels, ridge).dual)[:, 0]
        # what the other modes add to prediction and label is a pair of correlated Gaussians
        other = torch.stack([v[num_modes:], c[num_modes:]])
        spreads = other @ other.T + torch.tensor([0.0, noise], dtype=torch.float64).diag()
        phi = torch.randn(points, num_modes + 2, generator=generator, dtype=torch.float64)
        rest = phi[:, num_modes:] @ torch.linalg.cholesky(spreads).T
        phi = phi[:, :num_modes]
        estimate = kappa_from_heldout(
            phi @ v[:num_modes] + rest[:, 0], phi @ c[:num_modes] + rest[:, 1],
            phi, c[:num_modes], spectrum.eta[:num_modes],
            num_samples=p, test_risk=float(theory.test), gamma=gamma,
        )  # fmt: skip
        z.append(math.log(estimate.kappa / kappa) / estimate.se_log)
    assert 0.9 < spread(z) < 1.1
    assert abs(sum(z) / 400) < 0.25  # leftover bias of a nonlinear fit, in units of its error


def test_modes_that_overshoot_their_target_are_refused() -> None:
    eta, c = power_law(10, 0.1).eta, torch.ones(10, dtype=torch.float64)
    phi = torch.randn(500, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = phi @ c
    # no kappa >= 0 explains v = 1.01 c
    with pytest.raises(ValueError, match="eigenvalues on both sides of kappa"):
        kappa_from_heldout(1.01 * labels, labels, phi, c, eta, num_samples=100, test_risk=0.1, gamma=0.1)


def test_bad_input_is_named_with_its_fix(kernel: tuple) -> None:
    gram, targets = kernel
    e, one = power_law(5, 1.5).eta, torch.ones(1, dtype=torch.float64)
    modes: dict[str, Any] = {"num_samples": 5, "test_risk": 1.0, "gamma": 0.5}
    held = (e, e, torch.ones(5, 5, dtype=torch.float64))
    population = {"num_samples": 10, "ridge": 0.1}
    for call, message in (
        (lambda: resolvent_estimate(e * 0, ridge=0.0), "5 zero eigenvalues"),
        (lambda: resolvent_estimate(-e, ridge=1.0), "eigenvalues must be finite"),
        (lambda: resolvent_estimate(e[:0], ridge=1.0), "non-empty"),
        (lambda: resolvent_estimate(e, ridge=-1.0), "ridge=-1"),
        (lambda: resolvent_estimate(e, ridge=1.0, num_samples=0), "num_samples=0"),
        (lambda: kernel_ridge(gram, targets[:5], 0.1), r"targets has shape \(5, 2\)"),
        (lambda: kernel_ridge(gram * 0 + 1, targets, 0.0), "cannot carry ridge=0: .* raise the ridge to"),
        (lambda: kernel_ridge(gram.float(), targets, 0.1), "float32"),
        (lambda: kappa_from_risks(1.0, 0.0, 0.1, num_samples=5, gamma=0.5), "train_risk=0"),
        (lambda: kappa_from_risks(1.0, 1.0, 0.1, num_samples=5, gamma=1.0), "gamma=1"),
        (lambda: kappa_from_risks(1.0, 1.0, 0.1, num_samples=5, gamma=0.5, test_squared_errors=one), "1 entries"),
        (lambda: effective_width(e, 5.0, 0.1), "df1=5 must lie in .0, rank=5."),
        (lambda: log_kappa_errors(e, None, 1.0, 1e-3), "gamma="),
        (lambda: effective_width_from_population(power_law(5, 1.5), kappa1=0.1, **population), "kappa1=0.1"),
        (lambda: effective_width_from_population(power_law(5, 1.5), kappa1=9.0, **population), "df="),
        (
            lambda: effective_width_from_population(power_law(5, 1.5).with_bulk(1.0), kappa1=0.11, **population),
            "a bulk has no fluctuation",
        ),
        (lambda: kappa_from_modes(e, e, e * 0, **modes), "eigenvalues must be > 0"),
        (lambda: kappa_from_modes(e, e * 0, e, **modes), "no mode constrains kappa"),
        (lambda: kappa_from_modes(e, e, e, **{**modes, "gamma": 1.0}), "gamma=1"),
        (lambda: kappa_from_modes(e, e, e, **{**modes, "test_risk": 0.0}), "test_risk=0"),
        (lambda: kappa_from_modes(e, e, e, start=0.0, **modes), "start=0"),
        (lambda: kappa_from_heldout(*held[:2], held[2][:3], e, e, **modes), r"modes has shape \(3, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
