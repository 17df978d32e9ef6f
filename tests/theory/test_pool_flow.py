"""Gradient flow from a pool: simulation on the pool's own points, the ridgeless end, the start, and the population."""

from collections.abc import Callable

import pytest
import torch

from ridgescope.theory import (
    PoolEstimator,
    flow_risks,
    kernel_flow,
    pool_estimator,
    pool_flow_risks,
    power_law,
    power_law_target,
)


@pytest.fixture(scope="module")
def world() -> tuple[torch.Tensor, torch.Tensor, PoolEstimator]:
    """A pool of 300 Gaussian points with two outputs: Gram matrix, noisy labels, estimator."""
    generator = torch.Generator().manual_seed(0)
    spectrum, target = power_law(400, 1.3), power_law_target(400, 1.8, noise=0.1)
    phi = torch.randn(300, 400, generator=generator, dtype=torch.float64)
    signs = torch.sign(torch.randn(400, 1, generator=generator, dtype=torch.float64))
    labels = torch.cat([phi @ target.c2.sqrt()[:, None], phi @ (signs * target.c2.sqrt()[:, None])], 1)
    labels += 0.1**0.5 * torch.randn(labels.shape, generator=generator, dtype=torch.float64)
    gram = (phi * spectrum.eta) @ phi.T
    return gram, labels, pool_estimator(gram, labels)


@pytest.mark.parametrize(("size", "time"), [(60, 3.0), (60, 100.0), (150, 30.0)])
def test_flow_on_points_of_the_pool_agrees(
    world: tuple[torch.Tensor, torch.Tensor, PoolEstimator], size: int, time: float, assert_mean: Callable
) -> None:
    gram, labels, pool = world
    generator, tests, trains = torch.Generator().manual_seed(size), [], []
    for _ in range(60):
        order = torch.randperm(300, generator=generator)
        train, rest = order[:size], order[size:]
        flow = kernel_flow(gram[train][:, train], labels[train])
        tests.append(float((gram[rest][:, train] @ flow.dual(time) - labels[rest]).square().sum(1).mean()))
        trains.append(flow.train(time))
    test, train_risk = pool_flow_risks(pool, num_samples=size, time=time)
    # deterministic equivalents have corrections of order 1/P
    assert_mean(tests, test, 1.5 / size)
    assert_mean(trains, train_risk, 1.5 / size)


def test_flow_ends_without_a_ridge_and_starts_at_the_power(
    world: tuple[torch.Tensor, torch.Tensor, PoolEstimator],
) -> None:
    pool = world[2]
    power = float(pool.target_power.sum())
    assert pool_flow_risks(pool, num_samples=50, time=0) == (power, power)
    early = pool_flow_risks(pool, num_samples=50, time=1e-4)
    assert early == pytest.approx(
        (power, power), rel=2e-2
    )  # leave-one-out residuals of f = 0 are the labels themselves
    late, train = pool_flow_risks(pool, num_samples=50, time=3e4)
    assert late == pytest.approx(pool.predict(50, 0.0).test, rel=1e-6)
    assert train == pytest.approx(0, abs=1e-8)


def test_a_large_pool_is_its_population() -> None:
    generator = torch.Generator().manual_seed(1)
    spectrum, target = power_law(60, 1.2), power_law_target(60, 1.9, noise=0.1)
    phi = torch.randn(1500, 60, generator=generator, dtype=torch.float64)
    labels = phi @ target.c2.sqrt() + 0.1**0.5 * torch.randn(1500, generator=generator, dtype=torch.float64)
    pool = pool_estimator((phi * spectrum.eta) @ phi.T, labels[:, None])
    test, train = pool_flow_risks(pool, num_samples=40, time=20.0)
    whole = flow_risks(spectrum, target, num_samples=40, time=20.0)
    # the pool's own risk is known to sqrt(2/M) = 4 %
    assert test == pytest.approx(whole.test, rel=0.08)
    assert train == pytest.approx(whole.train, rel=0.08)


def test_bad_input_is_named_with_its_fix(world: tuple[torch.Tensor, torch.Tensor, PoolEstimator]) -> None:
    pool = world[2]
    with pytest.raises(ValueError, match=r"num_samples=300 must lie in \(0, 300\), below the pool's size"):
        pool_flow_risks(pool, num_samples=300, time=1.0)
    with pytest.raises(ValueError, match="time=-1 must be >= 0"):
        pool_flow_risks(pool, num_samples=30, time=-1.0)
    with pytest.raises(ValueError, match="contour nodes"):
        pool_flow_risks(pool, num_samples=30, time=1e9)
