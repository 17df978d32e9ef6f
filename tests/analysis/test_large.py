"""Regression without a kernel matrix is regression with it."""

import torch

from ridgescope.analysis.large import large_kernel_ridge
from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.models import MLP, empirical_ntk
from ridgescope.theory import resolvent_estimate


def test_equal_to_the_explicit_regression(generator: torch.Generator) -> None:
    model = MLP((8,), 2, width=32, depth=2, activation="erf", generator=generator)
    x = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    y = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    gram = empirical_ntk(model, None, x) / model.kernel_scale
    exact = full_kernel_ridge(gram, y, 1e-2)
    found = large_kernel_ridge(
        model, None, x, y, 1e-2, kernel_scale=model.kernel_scale, rank=40, tolerance=1e-10, generator=generator
    )
    torch.testing.assert_close(found.dual, exact.dual, rtol=1e-6, atol=1e-8)
    assert abs(found.train / exact.train - 1) < 1e-6
    truth = resolvent_estimate(torch.linalg.eigvalsh(gram / 60), ridge=1e-2, num_samples=60)
    assert found.resolvent.kappa.low < truth.kappa < found.resolvent.kappa.high
    assert found.resolvent.df1.low < truth.df1 < found.resolvent.df1.high
