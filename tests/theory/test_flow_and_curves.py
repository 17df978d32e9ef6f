"""Gradient flow, power laws, the table and the best ridge: closed forms, limits, simulation."""

import math
from collections.abc import Callable

import pytest
import torch

from ridgescope.theory import (
    Features,
    KappaTable,
    Samples,
    Spectrum,
    Target,
    compressed_power_law,
    diagnose,
    flow_risks,
    kernel_flow,
    kernel_ridge,
    optimal_ridge,
    power_law,
    power_law_bias,
    power_law_constant,
    power_law_kappa,
    power_law_target,
    renormalise,
    risks,
    scaling_regimes,
    tuned_learning_curve,
)


@pytest.mark.parametrize(("p", "time"), [(60, 3.0), (60, 30.0), (150, 300.0)])
def test_simulated_flow_agrees(p: int, time: float, draw: Callable, assert_mean: Callable) -> None:
    generator = torch.Generator().manual_seed(p)
    spectrum, target = power_law(90, 1.2), power_law_target(90, 1.96, noise=0.1)
    theory, test, train = flow_risks(spectrum, target, num_samples=p, time=time), [], []
    for _ in range(150):
        data = draw(spectrum, target.c2.sqrt(), p, 0.1, generator)
        flow = kernel_flow(data.gram, data.labels)
        w = spectrum.eta.sqrt() * (data.features.T @ flow.dual(time))[:, 0]
        test.append(float((w - target.c2.sqrt()).square().sum()) + 0.1)
        train.append(flow.train(time))
    assert_mean(test, theory.test, 0.01)
    assert_mean(train, theory.train, 0.01)


def test_flow_starts_at_the_power_and_ends_without_ridge() -> None:
    spectrum, target = Spectrum([1.0, 0.5], [30.0, 30.0]), Target([1.0, 0.5], 0.1)
    assert flow_risks(spectrum, target, num_samples=20, time=0).test == pytest.approx(1.6, rel=1e-15)
    end = flow_risks(spectrum, target, num_samples=20, time=1e3)
    assert end.test == pytest.approx(float(risks(spectrum, target, Samples(20), 0.0).test), rel=1e-8)
    assert end.train == pytest.approx(0, abs=1e-10)
    under = flow_risks(spectrum, target, num_samples=200, time=1e3)
    ridgeless = risks(spectrum, target, Samples(200), 0.0)
    assert under.test == pytest.approx(float(ridgeless.test), rel=1e-8)
    assert under.train == pytest.approx(float(ridgeless.train), rel=1e-8)


def test_flow_on_a_kernel_solves_its_differential_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    gram, y = z @ z.T, torch.randn(12, 2, generator=generator, dtype=torch.float64)
    flow, t, step = kernel_flow(gram, y), 0.7, 1e-5
    rate = (flow.dual(t + step) - flow.dual(t - step)) / (2 * step)
    # d dual/dt = (y - K dual)/P; central differences are good to step^2
    torch.testing.assert_close(rate, (y - gram @ flow.dual(t)) / 12, rtol=1e-7, atol=1e-9)
    assert flow.train(t) == pytest.approx(float((y - gram @ flow.dual(t)).square().sum()) / 12, rel=1e-10)
    torch.testing.assert_close(flow.dual(math.inf), kernel_ridge(gram, y, 0.0).dual, rtol=1e-9, atol=1e-12)


def test_compression_keeps_every_sum() -> None:
    short = compressed_power_law(200_000, 1.5, 2.2, noise=0.1)
    full = power_law(200_000, 1.5), power_law_target(200_000, 2.2, noise=0.1)
    assert len(short[0].eta) < 500
    for p, ridge in ((100, 1e-3), (3e4, 0.0), (3e4, 1e-7)):
        a, b = (risks(*pair, Samples(p) @ Features(2 * p), ridge) for pair in (short, full))
        for name in ("test", "bias2", "var_F", "var_XF"):
            assert float(getattr(a, name)) == pytest.approx(float(getattr(b, name)), rel=1e-12)


@pytest.mark.parametrize(("alpha", "source"), [(1.5, 0.3), (2.0, 0.7), (1.5, 1.4)])
def test_closed_forms_are_the_limits_of_the_sums(alpha: float, source: float) -> None:
    spectrum, target = compressed_power_law(1e13, alpha, 2 * alpha * source + 1, noise=0.1)
    full = risks(spectrum, target, Samples(1e4), 0.0)
    kappa = float(full.scale.kappa2)
    # corrections are O(1) in df1 = 1e4
    assert power_law_kappa(alpha, num_samples=1e4) == pytest.approx(kappa, rel=3e-4)
    assert power_law_bias(alpha, source, kappa) == pytest.approx(float(full.bias2), rel=2e-3)
    assert float(full.var_noise) == pytest.approx(0.1 * (alpha - 1), rel=3e-4)
    assert float(full.scale.df1) == pytest.approx(power_law_constant(alpha) * kappa ** (-1 / alpha), rel=3e-4)
    both = renormalise(spectrum, Samples(1e4) @ Features(2e4), 1e-4)
    found = power_law_kappa(alpha, num_samples=1e4, width=2e4, ridge=1e-4)
    assert found == pytest.approx(float(both.kappa2), rel=3e-4)


def test_the_bias_has_a_logarithm_at_source_one() -> None:
    spectrum, target = compressed_power_law(1e13, 1.5, 4.0)
    fit = risks(spectrum, target, Samples(1e6), 0.0)
    # the next term is relative 1/log(1/kappa) = 5 %
    assert power_law_bias(1.5, 1.0, float(fit.scale.kappa2)) == pytest.approx(float(fit.bias2), rel=0.1)


@pytest.mark.parametrize(
    ("name", "options", "variable"),
    [
        ("data-limited", {"num_samples": 1e4}, "P"),
        ("width-limited", {"num_samples": 1e7, "width": 1e4}, "N"),
        ("ridge-limited", {"num_samples": 1e9, "ridge": 1e-5}, "lam"),
        ("noise plateau", {"num_samples": 1e4, "noise": 1e3}, "P"),
        ("noise, fixed ridge", {"num_samples": 1e7, "ridge": 1e-4, "noise": 1e9}, "lam"),
    ],
)
def test_a_diagnosis_names_its_regime_and_scales_by_it(name: str, options: dict, variable: str) -> None:
    result = diagnose(1.5, 0.4, **options)
    assert result.regime == name
    # slow crossovers: 2.4 % of the exponent, 0.01 where it is 0
    assert result.slopes[variable] == pytest.approx(scaling_regimes(1.5, 0.4)[name].exponent, rel=0.024, abs=0.01)
    assert sum(result.shares.values()) == pytest.approx(1, rel=1e-10)


def test_a_diagnosis_says_what_to_improve() -> None:
    assert diagnose(1.5, 0.4, num_samples=1e4).best == "samples"
    assert diagnose(1.5, 0.4, num_samples=1e6, width=1e3).best == "width"
    assert diagnose(1.5, 0.4, num_samples=1e4, ridge=1.0).best == "ridge"
    variance = diagnose(1.5, 0.9, num_samples=1e3, width=1e4)
    assert (variance.regime, variance.best) == ("feature-variance", "width")


def test_the_best_ridge_of_a_flat_spectrum_is_noise_over_signal() -> None:
    best = optimal_ridge(Spectrum([0.7] * 50), Target([0.04] * 50, 0.3), Samples(80))
    assert best == pytest.approx(0.7 * 0.3 * 50 / (80 * 2.0), rel=1e-9)  # in units of the eigenvalue


def test_the_best_ridge_is_a_minimum_over_a_learning_curve() -> None:
    spectrum, target = power_law(500, 1.4), power_law_target(500, 2.0, noise=0.1)
    p = torch.tensor([20.0, 100.0, 500.0], dtype=torch.float64)
    best, ridges = tuned_learning_curve(spectrum, target, p)
    assert bool((best.diff() < 0).all())
    for factor in (0.9, 1.1):
        assert bool((risks(spectrum, target, Samples(p), factor * ridges).test > best).all())
    assert optimal_ridge(spectrum, power_law_target(500, 1.5), Samples(20)) >= 0
    assert optimal_ridge(power_law(20, 1.5), power_law_target(20, 1.5), Samples(100)) == 0  # noiseless, P > rank


def test_the_table_equals_the_solver() -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = power_law(2000, 1.5)
    p, n, u = (torch.rand(300, generator=generator, dtype=torch.float64) for _ in range(3))
    sizes, ridge = torch.stack([10 ** (3 * p + 0.5), 10 ** (3 * n + 0.5)]), 10 ** (-8 * u)
    sizes[1, :50] = math.inf
    table = KappaTable(spectrum, low=1e-9, high=1e4)
    exact = renormalise(spectrum, Samples(sizes[0]) @ Features(sizes[1]), ridge).kappa2
    torch.testing.assert_close(table.solve(ridge, sizes), exact, rtol=1e-12, atol=0)
    df1, d12 = table.df1(exact)
    fit = renormalise(spectrum, Samples(sizes[0]) @ Features(sizes[1]), ridge)
    torch.testing.assert_close(df1, fit.df1, rtol=1e-13, atol=1e-13 * 2000)
    torch.testing.assert_close(d12, fit.d12, rtol=1e-11, atol=1e-11 * 2000)  # a derivative: loses degree^2


def test_the_table_leaves_hard_points_to_the_solver() -> None:
    gap = Spectrum([1.0, 1e-12], [37.0, 200.0])
    table = KappaTable(gap, low=1e-9, high=10.0)
    sizes = torch.tensor([[37.0, 37.0, math.inf, 300.0]], dtype=torch.float64)
    ridge = torch.tensor([0.0, 1e-13, 0.2, 0.0], dtype=torch.float64)
    exact = renormalise(gap, Samples(sizes[0]), ridge).kappa2
    torch.testing.assert_close(table.solve(ridge, sizes), exact, rtol=1e-12, atol=0)


def test_bad_input_is_named_with_its_fix() -> None:
    spectrum, target = power_law(5, 1.5), power_law_target(5, 1.5)
    gram, y = torch.eye(3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    table = KappaTable(spectrum, low=1e-3, high=10.0)
    flow = {"num_samples": 5, "time": 1.0}
    for call, message in (
        (lambda: flow_risks(spectrum, target, **{**flow, "time": -1.0}), "time=-1"),
        (lambda: flow_risks(spectrum, target, **{**flow, "time": 1e9}), "contour nodes"),
        (lambda: flow_risks(spectrum, target, **{**flow, "num_samples": 0}), "num_samples=0"),
        (lambda: flow_risks(spectrum.with_bulk(1.0), target, **flow), "got a bulk"),
        (lambda: kernel_flow(gram, y[:2]), r"targets has shape \(2, 1\)"),
        (lambda: kernel_flow(gram, y).train(math.inf), "time=inf"),
        (lambda: optimal_ridge(spectrum, Target([0.0] * 5), Samples(3)), "target power is 0"),
        (lambda: optimal_ridge(spectrum, target, Samples(torch.ones(2, 1, dtype=torch.float64))), "one chain"),
        (lambda: power_law_constant(1.0), "alpha=1 must exceed 1"),
        (lambda: power_law_kappa(1.5, num_samples=math.inf), "one finite"),
        (lambda: power_law_bias(1.5, 0.0, 0.1), "source=0"),
        (lambda: scaling_regimes(1.5, 0.0), "source=0"),
        (lambda: compressed_power_law(100, 1.5, 2.0, head=8), "head=8"),
        (lambda: KappaTable(spectrum, low=1.0, high=0.1), "low=1, high=0.1"),
        (lambda: table.solve([0.1], [[1.0, 2.0]]), r"ridge has shape \(1,\) and sizes \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
