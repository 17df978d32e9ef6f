"""One network, two training sets: the law at one set, and networks of drawn blocks at two."""

import pytest
import torch

from ridgescope.theory.blocks import (
    BlockKernel,
    activation_family,
    block_law,
    gradient_family,
    point_kernel,
    shared_network,
    squared_readout,
)

P, T, WIDTH, RIDGE = 25, 30, 20, 1e-2


@pytest.fixture
def problem(generator):
    """Points, gates and targets of 45 training points, two sets of 25 that share five, and 30 evaluation points."""
    x = torch.randn(2 * P - 5 + T, 60, generator=generator, dtype=torch.float64)
    x = x * torch.arange(1, 61, dtype=torch.float64) ** -0.8
    gram = x @ x.T
    norms = gram.diagonal().sqrt()
    gate = 0.3 + 0.7 * (gram / norms / norms[:, None]) ** 2
    y = x @ torch.randn(60, 1, generator=generator, dtype=torch.float64)
    size = 2 * P - 5
    kernel = BlockKernel(
        [
            activation_family(point_kernel(gram, size)),
            gradient_family(point_kernel(gate, size), point_kernel(gram, size), squared_readout()),
        ]
    )
    return gram, gate, y, kernel, (torch.arange(P), torch.arange(P - 5, size))


def test_equal_sets_are_the_block_law(problem):
    gram, gate, y, kernel, (first, _) = problem
    found = shared_network(kernel, y[: 2 * P - 5], (first, first), width=WIDTH, ridge=RIDGE)
    index = torch.cat([first, torch.arange(2 * P - 5, len(gram))])
    some, gates = (point_kernel(matrix[index][:, index], P) for matrix in (gram, gate))
    alone = BlockKernel([activation_family(some), gradient_family(gates, some, squared_readout())])
    law = block_law(alone, y[:P], y[-T:], width=WIDTH, ridge=RIDGE)
    torch.testing.assert_close(found.covariance(0, 1), law.variance_points, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(found.predictors[0], law.predictor, rtol=1e-8, atol=1e-10)


def test_two_sets_covary_as_drawn_blocks_do(problem, generator):
    gram, gate, y, kernel, sets = problem
    found = shared_network(kernel, y[: 2 * P - 5], sets, width=WIDTH, ridge=RIDGE)
    values, vectors = torch.linalg.eigh(gram)
    root, gate_root = vectors * values.clamp_min(0).sqrt(), torch.linalg.cholesky(gate + 1e-9 * torch.eye(len(gate)))
    draws = []
    for _ in range(1500):
        phi = root @ torch.randn(len(gram), WIDTH, generator=generator, dtype=torch.float64)
        g = gate_root @ torch.randn(len(gram), WIDTH, generator=generator, dtype=torch.float64)
        v = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
        k = (phi @ phi.T + ((g * v**2) @ g.T) * gram) / WIDTH
        draws.append(
            torch.stack(
                [
                    k[-T:][:, s]
                    @ torch.linalg.solve(k[s][:, s] + P * RIDGE * torch.eye(P, dtype=torch.float64), y[s, 0])
                    for s in sets
                ]
            )
        )
    sample = torch.stack(draws)
    off = sample - sample.mean(0)
    products = (off[:, 0] * off[:, 1]).mean(1)
    own = off.square().mean((0, 2))
    # Gram matrices of single blocks fluctuate on so few points: the law's own variances are 3 to 10 % off here
    expected = float(found.covariance(0, 1).mean())
    assert float(products.mean()) == pytest.approx(expected, rel=0.1, abs=4 * float(products.std()) / 1500**0.5)
    assert expected < 0.8 * float(own.mean())  # or the sets would not matter
