"""The law of blocks by example: against the block law, its own differences, drawn kernels, infinite width."""

import math

import pytest
import torch

from ridgescope.theory import kernel_ridge
from ridgescope.theory.blocks import (
    BlockKernel,
    PointKernel,
    SampledFamily,
    SampledKernel,
    Scales,
    block_law,
    gradient_family,
    point_kernel,
    sampled_law,
)

P, T, RANK = 24, 7, 5
NAMES = ("kappa1", "kappa_features", "dkappa1_dridge", "gamma1", "test", "test_variance", "train", "loo", "gcv")


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def family(features):
    """(m, r, q, n) split into training and evaluation points."""
    return SampledFamily(features[..., :P], features[..., P:])


def varied(generator, examples=6, copies=1, points=P + T):
    """Kinds of blocks that differ in direction and size."""
    scale = torch.linspace(0.2, 1.8, examples, dtype=torch.float64)
    return scale[:, None, None, None] * normal(generator, examples, RANK, copies, points)


def same(law, expected):
    for name in NAMES:  # ten times the adjoint's tolerance
        torch.testing.assert_close(getattr(law, name), getattr(expected, name), rtol=1e-8, atol=0, msg=name)
    torch.testing.assert_close(law.predictor, expected.predictor, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("width", [3.0, 50.0])
def test_blocks_that_differ_by_their_scale_alone_are_the_block_law(generator, width):
    features = normal(generator, P + T, P + T)
    y, z = normal(generator, P, 2), normal(generator, T, 2)
    weights = torch.rand(P, generator=generator, dtype=torch.float64) + 0.5
    one = PointKernel(*(torch.ones(shape, dtype=torch.float64) for shape in ((P, P), (T, P), (T,))))
    fixed = point_kernel(torch.full((P + T, P + T), 0.1, dtype=torch.float64), P)
    scales = Scales(torch.tensor([0.4, 1.6], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64))
    blocks = gradient_family(one, point_kernel(features.T @ features, P), scales)
    expected = block_law(BlockKernel([blocks], fixed), y, z, width=width, ridge=1e-2, weights=weights)
    examples = family(scales.nodes.sqrt()[:, None, None, None] * features[:, None])
    law = sampled_law(SampledKernel([examples], fixed), y, z, width=width, ridge=1e-2, weights=weights)
    same(law, expected)


def test_copies_share_a_block_as_coupled_outputs_do(generator):
    """Blocks v v^T: of weight |v|^2, of which each of the outputs owns a share."""
    features, v = normal(generator, P + T, P + T), torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    y, z = normal(generator, P, 2), normal(generator, T, 2)
    one = PointKernel(*(torch.ones(shape, dtype=torch.float64) for shape in ((P, P), (T, P), (T,))))
    scales = Scales(v.square().sum(1), torch.tensor([0.25, 0.25], dtype=torch.float64))
    blocks = gradient_family(one, point_kernel(features.T @ features, P), scales)
    expected = block_law(BlockKernel([blocks]), y, z, width=8.0, ridge=1e-2)
    examples = family(v[:, None, :, None] * features[:, None])
    same(sampled_law(SampledKernel([examples]), y, z, width=8.0, ridge=1e-2), expected)


def test_the_risk_is_the_slope_of_the_loss_in_the_weight_of_a_point(generator):
    points, y = varied(generator, copies=2), normal(generator, P + T, 1)
    width, ridge, step = 4.0, 1e-2, 1e-5
    law = sampled_law(SampledKernel([family(points)]), y[:P], y[P:], width=width, ridge=ridge)
    index = [*range(P), P + 3]
    wide = SampledKernel([SampledFamily(points[..., index], points[..., :0])])
    weights = torch.ones(P + 1, dtype=torch.float64)
    weights[-1] = step
    more = sampled_law(wide, y[index], width=width, ridge=ridge * P / (P + 1), weights=weights)
    losses = [float((t * (g.resolvent @ t)).sum()) for t, g in ((y[:P], law), (y[index], more))]
    slope = P * ridge * (losses[1] - losses[0]) / step
    assert slope == pytest.approx(float(law.test_points[3]), rel=1e-3)  # truncation, of order step times the leverage


def test_dkappa_dridge_is_the_difference_quotient(generator):
    kernel, y = SampledKernel([family(varied(generator))]), normal(generator, P, 1)
    ridge, step = 1e-2, 1e-6
    low, high = (float(sampled_law(kernel, y, width=6.0, ridge=ridge + s).kappa1) for s in (-step, step))
    law = sampled_law(kernel, y, width=6.0, ridge=ridge)
    assert float(law.dkappa1_dridge) == pytest.approx((high - low) / (2 * step), rel=1e-6)


def test_kernels_drawn_from_the_examples_follow_the_law(generator):
    """The examples are all kinds of blocks that there are, so nothing but the law is tested."""
    width, ridge, draws = 20, 1e-2, 300
    kinds = [varied(generator), varied(generator, examples=4)[:, :1]]
    y = kinds[0][-1, :, 0].T @ normal(generator, RANK, 1)
    found = []
    for _ in range(draws):
        kernel = torch.zeros(P + T, P + T, dtype=torch.float64)
        for kind in kinds:
            chosen = kind[torch.randint(len(kind), (width,), generator=generator)].flatten(0, 2)
            kernel += chosen.T @ chosen / width
        fit = kernel_ridge(kernel[:P, :P], y[:P], ridge)
        inverse = torch.linalg.inv(kernel[:P, :P] + P * ridge * torch.eye(P, dtype=torch.float64))
        test = (y[P:] - kernel[P:, :P] @ fit.dual).square().sum(1).mean()
        found.append([float(inverse.trace()), float(test), fit.train])
    sample = torch.tensor(found, dtype=torch.float64)
    law = sampled_law(SampledKernel([family(k) for k in kinds]), y[:P], y[P:], width=width, ridge=ridge)
    expected = torch.stack([1 / law.kappa1, law.test, law.train])
    error = sample.std(0) / draws**0.5
    assert float(law.test_variance / law.test) > 0.05  # or the width would not matter
    assert ((sample.mean(0) - expected).abs() <= 4 * error + 0.02 * expected).all()  # 2 %: the cavity step's 1/N


def test_infinite_width_is_kernel_regression_and_the_excess_falls_as_its_inverse(generator):
    kernel = SampledKernel([family(varied(generator, examples=40))])
    y, limit = normal(generator, P + T, 2), kernel.limit()
    fit = kernel_ridge(limit.train, y[:P], 1e-2)
    infinite = float((y[P:] - limit.cross @ fit.dual).square().sum(1).mean())
    risks = [float(sampled_law(kernel, y[:P], y[P:], width=w, ridge=1e-2).test) for w in (math.inf, 1e5, 2e5)]
    assert risks[0] == pytest.approx(infinite, rel=1e-9)
    assert (risks[1] - infinite) / (risks[2] - infinite) == pytest.approx(2, rel=1e-3)


def test_matched_examples_have_the_wanted_limit(generator):
    kernel = SampledKernel([family(varied(generator, examples=30)), family(varied(generator))])
    root = normal(generator, P + T, 4 * P)
    wanted = point_kernel(root @ root.T / (4 * P), P)
    limit = kernel.matched(wanted).limit()
    torch.testing.assert_close(limit.train, wanted.train, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(limit.cross, wanted.cross, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="30 features for 24 training points; draw at least 48"):
        SampledKernel([family(varied(generator))]).matched(wanted)


def test_every_width_and_ridge_has_a_positive_answer(generator):
    kernel, y = SampledKernel([family(varied(generator))]), normal(generator, P + T, 1)
    start = None
    for width, ridge in ((1.0, 1.0), (1.0, 1e-6), (1e3, 1e-6), (1e9, 1e-4)):
        law = sampled_law(kernel, y[:P], y[P:], width=width, ridge=ridge, start=start)
        assert float(law.kappa1) >= ridge
        assert float(law.test_variance) >= 0
        start = law.orders


def test_bad_input_is_named(generator):
    points, y = varied(generator), normal(generator, P, 1)
    with pytest.raises(ValueError, match=r"width=0.5 must be at least 1"):
        sampled_law(SampledKernel([family(points)]), y, width=0.5, ridge=1e-2)
    points[..., 7] = points[..., 3]
    with pytest.raises(ValueError, match="training points 3 and 7 are equal"):
        sampled_law(SampledKernel([family(points)]), y, width=5, ridge=1e-2)
