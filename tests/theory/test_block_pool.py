"""The pool law at finite width: the scalar pool estimator, its own limits, and subsets of a pool with drawn blocks."""

import math

import pytest
import torch

from ridgescope.theory import kernel_ridge, pool_estimator
from ridgescope.theory.blocks import (
    BlockKernel,
    activation_family,
    block_pool_law,
    gradient_family,
    point_kernel,
    squared_readout,
)

M = 120


@pytest.fixture
def pool(generator):
    x = torch.randn(M, 200, generator=generator, dtype=torch.float64)
    x = x * torch.arange(1, 201, dtype=torch.float64) ** -0.8
    y = x @ torch.randn(200, 1, generator=generator, dtype=torch.float64)
    return x @ x.T, y + 0.1 * torch.randn(M, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("width", [60, 400, math.inf])
@pytest.mark.parametrize("size", [40, 100, M])
def test_rank_one_blocks_are_the_scalar_pool_estimator(pool, size, width):
    gram, y = pool
    kernel = BlockKernel([activation_family(point_kernel(gram, M))])
    scalar = pool_estimator(gram, y).predict(size, 1e-2, width, form="gcv")
    law = block_pool_law(kernel, y, num_samples=size, ridge=1e-2, width=width, form="gcv")
    for name in (
        "kappa1",
        "df1",
        "gamma1",
        "gamma2",
        "test",
        "train",
        "limited",
        "bias",
    ):
        assert getattr(law, name) == pytest.approx(getattr(scalar, name), rel=1e-9), name


def test_infinite_width_is_the_pool_estimator_with_leave_one_out(pool):
    gram, y = pool
    kernel = BlockKernel([activation_family(point_kernel(gram, M))])
    scalar = pool_estimator(gram, y).predict(50, 1e-3)
    law = block_pool_law(kernel, y, num_samples=50, ridge=1e-3, width=math.inf)
    assert law.test == pytest.approx(scalar.test, rel=1e-8)
    assert law.cross_risk(same_features=False, overlap=0.3) == pytest.approx(
        scalar.cross_risk(same_features=True, overlap=0.3), rel=1e-8
    )


@pytest.mark.slow
def test_subsets_of_the_pool_with_drawn_blocks(pool, generator):
    """Networks and training sets both drawn; blocks of rank 200 with a common random scale beside rank-one ones."""
    gram, y = pool
    gate = 0.3 + 0.7 * (gram / gram.diagonal().sqrt() / gram.diagonal().sqrt()[:, None]) ** 2
    kernel = BlockKernel(
        [
            activation_family(point_kernel(gram, M)),
            gradient_family(point_kernel(gate, M), point_kernel(gram, M), squared_readout()),
        ]
    )
    size, ridge, width = 50, 1e-2, 25
    law = block_pool_law(kernel, y, num_samples=size, ridge=ridge, width=width)
    values, vectors = torch.linalg.eigh(gram)
    root, gate_root = vectors * values.clamp_min(0).sqrt(), torch.linalg.cholesky(gate)
    found = []
    for _ in range(120):
        phi = root @ torch.randn(M, width, generator=generator, dtype=torch.float64)
        g = gate_root @ torch.randn(M, width, generator=generator, dtype=torch.float64)
        v = torch.randn(width, generator=generator, dtype=torch.float64)
        k = (phi @ phi.T + ((g * v**2) @ g.T) * gram) / width
        order = torch.randperm(M, generator=generator)
        train, rest = order[:size], order[size:]
        fit = kernel_ridge(k[train][:, train], y[train], ridge)
        risk = float((y[rest] - k[rest][:, train] @ fit.dual).square().mean())
        inverse = torch.linalg.inv(k[train][:, train] + size * ridge * torch.eye(size, dtype=torch.float64))
        found.append([risk, 1 / float(inverse.trace())])
    sample = torch.tensor(found, dtype=torch.float64)
    mean, error = sample.mean(0), sample.std(0) / len(found) ** 0.5
    expected = torch.tensor([law.test, law.kappa1], dtype=torch.float64)
    infinite = block_pool_law(kernel, y, num_samples=size, ridge=ridge, width=math.inf)
    assert law.test > 1.1 * infinite.test  # or the width would not matter
    assert ((mean - expected).abs() <= 4 * error + 0.03 * expected).all(), mean / expected


def test_a_pool_too_small_is_named(pool):
    gram, y = pool
    kernel = BlockKernel([activation_family(point_kernel(gram, M))])
    with pytest.raises(ValueError, match="enlarge the pool"):
        block_pool_law(kernel, y, num_samples=M + 1, ridge=1e-2, width=9)
    with pytest.raises(ValueError, match="ridge=0"):
        block_pool_law(kernel, y, num_samples=9, ridge=0, width=9)
