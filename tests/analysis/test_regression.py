"""Regression with a full C x C kernel against its definitions."""

import pytest
import torch

from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.theory import kernel_ridge

P, C, RIDGE = 12, 3, 1e-2


def random_kernel(size: int, generator: torch.Generator) -> torch.Tensor:
    factors = torch.randn(size, 2 * size, generator=generator, dtype=torch.float64)
    return factors @ factors.T / size


def targets(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(P, C, generator=generator, dtype=torch.float64)


def test_equal_blocks_give_the_regression_of_one_output(generator: torch.Generator) -> None:
    gram, y = random_kernel(P, generator), targets(generator)
    full = full_kernel_ridge(torch.block_diag(*[gram] * C), y, RIDGE)
    one = kernel_ridge(gram, y, RIDGE)
    torch.testing.assert_close(full.dual.view(C, P).T, one.dual)
    assert (full.train, full.gcv, full.loo) == pytest.approx((one.train, one.gcv, one.loo), rel=1e-10)


def test_leave_one_out_is_refitting_without_the_sample(generator: torch.Generator) -> None:
    gram, y = random_kernel(P * C, generator), targets(generator)
    system = gram + P * RIDGE * torch.eye(P * C, dtype=gram.dtype)
    errors = []
    for left in range(P):
        keep = torch.tensor([c * P + mu for c in range(C) for mu in range(P) if mu != left])
        out = torch.tensor([c * P + left for c in range(C)])
        dual = torch.linalg.solve(system[keep][:, keep], y.T.flatten()[keep])
        errors.append((gram[out][:, keep] @ dual - y[left]).square().sum())
    assert full_kernel_ridge(gram, y, RIDGE).loo == pytest.approx(float(torch.stack(errors).mean()), rel=1e-9)


def test_training_risk_and_kappa_by_their_definitions(generator: torch.Generator) -> None:
    gram, y = random_kernel(P * C, generator), targets(generator)
    fit = full_kernel_ridge(gram, y, RIDGE)
    residual = gram @ fit.dual - y.T.flatten()
    assert fit.train == pytest.approx(float(residual.square().sum()) / P, rel=1e-9)
    resolvent = torch.linalg.inv(gram / P + RIDGE * torch.eye(P * C, dtype=gram.dtype))
    assert fit.kappa == pytest.approx(P * C / float(resolvent.trace()), rel=1e-9)
    freedom = float((gram / P @ resolvent).trace()) / C
    assert fit.df1 == pytest.approx(freedom, rel=1e-9)


def test_a_singular_kernel_without_a_ridge_is_refused(generator: torch.Generator) -> None:
    gram = torch.ones(P * C, P * C, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"cannot carry ridge=0: .* raise the ridge to"):
        full_kernel_ridge(gram, targets(generator), 0.0)
