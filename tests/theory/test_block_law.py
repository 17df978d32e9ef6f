"""The block law against the scalar law, its limits, simulation and finite differences."""

import math

import pytest
import torch

from ridgescope.theory import Features, Samples, Spectrum, Target, kernel_ridge, renormalise, risks
from ridgescope.theory.blocks import (
    BlockFamily,
    BlockKernel,
    PointKernel,
    activation_family,
    block_law,
    fixed_scale,
    gradient_family,
    point_kernel,
    squared_readout,
)
from ridgescope.theory.blocks.scales import Scales


def gram(generator, n, d, decay=1.0):
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (x * torch.arange(1, d + 1, dtype=torch.float64) ** -decay) @ x.T


def targets(generator, n, outputs=1):
    return torch.randn(n, outputs, generator=generator, dtype=torch.float64)


def gated_kernel(generator, p, t, outputs=1):
    """Gates and features of their own, as a hidden layer has, and a deterministic part."""
    gate = torch.exp(-(torch.cdist(*[torch.randn(p + t, 4, generator=generator, dtype=torch.float64)] * 2) ** 2) / 8)
    below = gram(generator, p + t, 6)
    families = [
        activation_family(point_kernel(gram(generator, p + t, 3 * p), p)),
        gradient_family(point_kernel(gate, p), point_kernel(below, p), squared_readout(outputs)),
    ]
    return BlockKernel(families, point_kernel(torch.full((p + t, p + t), 0.1, dtype=torch.float64), p)), gate, below


@pytest.mark.parametrize("width", [7.0, 30.0, 1000.0])
@pytest.mark.parametrize("ridge", [1e-1, 1e-4])
def test_rank_one_blocks_are_the_scalar_law(generator, width, ridge):
    """With the whole population as training set the train risk is section 3's risk at infinite data."""
    n = 40
    kernel, y = gram(generator, n, 2 * n), targets(generator, n)
    values, vectors = torch.linalg.eigh(kernel / n)
    power = (vectors.T @ y)[:, 0].square() / n
    scalar = renormalise(Spectrum(values.clamp_min(0)), Features(width), ridge)
    expected = risks(Spectrum(values.clamp_min(0)), Target(power), Samples(math.inf) @ Features(width), ridge)
    law = block_law(BlockKernel([activation_family(point_kernel(kernel, n))]), y, width=width, ridge=ridge)
    torch.testing.assert_close(law.kappa_features, scalar.kappa2, rtol=1e-10, atol=0)
    torch.testing.assert_close(law.df1, scalar.df1, rtol=1e-10, atol=0)
    torch.testing.assert_close(law.train, expected.test, rtol=1e-10, atol=0)
    torch.testing.assert_close(law.train_variance, expected.var_F + law.train_bias * 0, rtol=1e-9, atol=0)
    assert float(law.train_bias) == pytest.approx(float(expected.bias2), rel=1e-9)


def test_infinite_width_is_kernel_regression(generator):
    p, t, ridge = 30, 9, 1e-3
    kernel, _, _ = gated_kernel(generator, p, t)
    y, z = targets(generator, p, 3), targets(generator, t, 3)
    limit = kernel.limit()
    fit = kernel_ridge(limit.train, y, ridge)
    law = block_law(kernel, y, z, width=math.inf, ridge=ridge)
    torch.testing.assert_close(law.predictor, limit.cross @ fit.dual, rtol=1e-9, atol=1e-12)
    assert float(law.train) == pytest.approx(fit.train, rel=1e-9)
    assert float(law.gcv) == pytest.approx(fit.gcv, rel=1e-9)
    assert float(law.loo) == pytest.approx(fit.loo, rel=1e-9)
    assert float(law.kappa_features) == pytest.approx(ridge, rel=1e-9)
    assert float(law.test_variance) == 0.0
    near = [block_law(kernel, y, z, width=n, ridge=ridge) for n in (1e6, 2e6)]
    steps = [float(one.test - law.test) for one in near]
    assert steps[0] == pytest.approx(2 * steps[1], rel=1e-3)


def test_infinite_data_leaves_no_fluctuation_of_the_data(generator):
    """P points drawn from a population of 25, as weights: the risk on the population tends to its own train risk."""
    n, ridge = 25, 1e-2
    kernel, _, _ = gated_kernel(generator, n, n)
    families = [
        BlockFamily(PointKernel(f.gate.train, f.gate.train, f.gate.train.diagonal()), f.features, f.features, f.scales)
        for f in kernel.families
    ]
    whole = BlockKernel(families, PointKernel(kernel.fixed.train, kernel.fixed.train, kernel.fixed.train.diagonal()))
    y = targets(generator, n)
    limit = block_law(whole, y, y, width=15, ridge=ridge)
    assert float(limit.test) == pytest.approx(float(limit.train), rel=1e-9)
    assert float(limit.test_variance) == pytest.approx(float(limit.train_variance), rel=1e-9)
    shifts = torch.randn(4, n, generator=generator, dtype=torch.float64)
    shifts = torch.cat([shifts, -shifts])  # pairs, which leave what is of second order in the fluctuation
    excess = []
    for size in (1e4, 1e6):
        weights = 1 + (n / size) ** 0.5 * shifts  # counts of P draws, over P/n
        laws = [block_law(whole, y, y, width=15, ridge=ridge, weights=w, start=limit.orders) for w in weights]
        excess.append(sum(float(law.test / limit.test) - 1 for law in laws) / len(laws))
    assert 0 < excess[0] < 0.01
    assert excess[1] == pytest.approx(excess[0] / 100, rel=0.02)


def test_gated_gaussian_blocks_match_simulation(generator):
    """Blocks r diag(g) J J^T diag(g) with Gaussian gates g and chi-squared r, far from infinite width."""
    p, t, width, ridge, draws = 60, 40, 40, 1e-3, 300
    kernel, gate, below = gated_kernel(generator, p, t)
    y, z = targets(generator, p), targets(generator, t)
    law = block_law(kernel, y, z, width=width, ridge=ridge)
    roots = [torch.linalg.cholesky(m + 1e-10 * torch.eye(p + t, dtype=torch.float64)) for m in (gate,)]
    values, vectors = torch.linalg.eigh(_activation_gram(kernel, p, t, generator))
    first = vectors * values.clamp_min(0).sqrt()
    found = []
    for _ in range(draws):
        phi = first @ torch.randn(p + t, width, generator=generator, dtype=torch.float64)
        g = roots[0] @ torch.randn(p + t, width, generator=generator, dtype=torch.float64)
        v = torch.randn(width, generator=generator, dtype=torch.float64)
        k = (phi @ phi.T + ((g * v**2) @ g.T) * below) / width + 0.1
        a = k[:p, :p] + p * ridge * torch.eye(p, dtype=torch.float64)
        dual = torch.linalg.solve(a, y)
        test = float((z - k[p:, :p] @ dual).square().mean())
        found.append([1 / float(torch.linalg.inv(a).trace()), test, float((p * ridge * dual).square().mean())])
    sample = torch.tensor(found, dtype=torch.float64)
    mean, error = sample.mean(0), sample.std(0) / draws**0.5
    expected = torch.stack([law.kappa1, law.test, law.train])
    assert float(law.test_variance / law.test) > 0.1  # or the width would not matter
    assert ((mean - expected).abs() <= 4 * error + torch.tensor([0.02, 0.02, 0.04]) * expected).all(), mean / expected


def _activation_gram(kernel, p, t, generator):
    """The full Gram matrix behind the first family, drawn again from the same stream."""
    again = torch.Generator().manual_seed(0)
    torch.randn(p + t, 4, generator=again, dtype=torch.float64)
    gram(again, p + t, 6)
    full = gram(again, p + t, 3 * p)
    torch.testing.assert_close(full[:p, :p], kernel.families[0].gate.train)
    return full


def test_derivatives_are_those_of_finite_differences(generator):
    p, t = 20, 6
    kernel, _, _ = gated_kernel(generator, p, t)
    y, z = targets(generator, p, 2), targets(generator, t, 2)
    weights = torch.rand(p, generator=generator, dtype=torch.float64) + 0.5
    tilt = torch.rand(p, generator=generator, dtype=torch.float64)
    names = ("kappa1", "kappa_features", "df1", "gamma1", "test", "test_variance", "train", "loo", "gcv")

    def at(theta):
        law = block_law(kernel, y, z, width=theta[0], ridge=theta[1], weights=weights + theta[2] * tilt)
        return torch.stack([getattr(law, name) for name in names]), law

    centre = torch.tensor([25.0, 1e-2, 0.0], dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(lambda theta: at(theta)[0], centre)
    for i, step in enumerate((1e-3, 1e-6, 1e-5)):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = step
        slope = (at(centre + shift)[0] - at(centre - shift)[0]) / (2 * step)
        torch.testing.assert_close(exact[:, i], slope, rtol=2e-6, atol=1e-8)
    law = at(centre)[1]
    torch.testing.assert_close(law.dkappa1_dridge, exact[0, 1], rtol=1e-8, atol=0)


def test_a_point_of_weight_two_is_a_point_taken_twice(generator):
    p, t, ridge = 12, 5, 1e-2
    big = gram(generator, p + t, 30)
    y, z = targets(generator, p), targets(generator, t)
    weights = torch.ones(p, dtype=torch.float64)
    weights[0] = 2
    law = block_law(
        BlockKernel([activation_family(point_kernel(big, p))]),
        y,
        z,
        width=20,
        ridge=ridge,
        weights=weights * p / (p + 1),
    )
    order = torch.tensor([0, *range(p + t)])
    jitter = 1e-6 * torch.eye(p + t + 1, dtype=torch.float64)
    twice = block_law(
        BlockKernel([activation_family(point_kernel(big[order][:, order] + jitter, p + 1))]),
        y[order[: p + 1]],
        z,
        width=20,
        ridge=ridge,
    )
    assert float(law.test) == pytest.approx(float(twice.test), rel=1e-4)
    assert float(law.train) == pytest.approx(float(twice.train), rel=1e-4)


@pytest.mark.parametrize("width", [1, 2, 16, 1e9])
def test_every_width_and_ridge_has_a_positive_answer(generator, width):
    kernel, _, _ = gated_kernel(generator, 25, 5)
    y, z = targets(generator, 25), targets(generator, 5)
    start, last = None, math.inf
    for ridge in (1e2, 1.0, 1e-2, 1e-4, 1e-7):
        law = block_law(kernel, y, z, width=width, ridge=ridge, start=start)
        cold = block_law(kernel, y, z, width=width, ridge=ridge)
        assert float(law.test) == pytest.approx(float(cold.test), rel=1e-7)
        assert ridge <= float(law.kappa_features) * (1 + 1e-9)
        assert 0 <= float(law.test_variance)
        assert 0 < float(law.kappa1) < last
        assert 0 <= float(law.df2) <= float(law.df1)
        start, last = law.orders, float(law.kappa1)


def test_scales_average_the_shrinkage():
    q = torch.tensor([[0.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    r = torch.distributions.Chi2(4.0).sample((400_000,)).double()
    full, trace = squared_readout(4), squared_readout(4, trace=True)
    assert full.mean == pytest.approx(1, rel=1e-13)
    assert trace.mean == pytest.approx(1, rel=1e-13)
    assert squared_readout(1).mean == pytest.approx(1, rel=1e-13)
    for scales, draws in ((full, r / 4 / (1 + 3 * r)), (trace, r / 4 / (1 + 3 * r / 4))):
        assert float(scales.shrink(q)[1, 1]) == pytest.approx(float(draws.mean()), rel=5e-3)
    # E[v^2/(1 + a v^2)] = (1 - sqrt(pi/2a) e^(1/2a) erfc(1/sqrt(2a)))/a
    a = 3.0
    exact = (1 - math.sqrt(math.pi / (2 * a)) * math.exp(1 / (2 * a)) * math.erfc(1 / math.sqrt(2 * a))) / a
    assert float(squared_readout(1).shrink(q)[1, 1]) == pytest.approx(exact, rel=1e-12)


def test_bad_input_is_named(generator):
    kernel, _, _ = gated_kernel(generator, 8, 3)
    y = targets(generator, 8)
    with pytest.raises(ValueError, match="at least 1"):
        block_law(kernel, y, width=0.5, ridge=1e-2)
    with pytest.raises(ValueError, match="ridge"):
        block_law(kernel, y, width=5, ridge=0.0)
    with pytest.raises(ValueError, match=r"pass \(P, C\)"):
        block_law(kernel, y[:4], width=5, ridge=1e-2)
    twins = gram(generator, 8, 5)
    order = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7])
    with pytest.raises(ValueError, match="points 0 and 3 are equal"):
        block_law(BlockKernel([activation_family(point_kernel(twins[order][:, order], 8))]), y, width=5, ridge=1e-2)
    with pytest.raises(ValueError, match="outputs=0"):
        squared_readout(0)


def test_a_family_of_a_constant_feature_is_the_activation_family(generator):
    k = point_kernel(gram(generator, 12, 20), 12)
    ones = torch.ones(12, 1, dtype=torch.float64)
    a = block_law(BlockKernel([activation_family(k)]), ones, width=9, ridge=1e-2)
    same = PointKernel(ones @ ones.T, torch.empty(0, 12, dtype=torch.float64), torch.empty(0, dtype=torch.float64))
    half = Scales(2 * fixed_scale().nodes, fixed_scale().weights / 2)
    b = block_law(BlockKernel([gradient_family(k, same, fixed_scale())]), ones, width=9, ridge=1e-2)
    torch.testing.assert_close(a.kappa1, b.kappa1, rtol=1e-9, atol=0)
    c = block_law(BlockKernel([BlockFamily(k, ones, ones[:0], half)]), ones, width=9, ridge=1e-2)
    assert float(c.kappa1) < float(a.kappa1)  # fewer, larger directions take up less of the kernel's trace
