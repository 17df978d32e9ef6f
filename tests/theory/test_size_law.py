"""Claims about the second-order law of n points at fixed kappa."""

import pytest
import torch
from torch import Tensor

from ridgescope.theory.size_law import Bends, Slopes, bends_of, coefficients


def slopes(c: float, w: float, bends: Bends, z: Tensor) -> Slopes:
    """Of log D and log G in log n, by differences of D = 1/(1 + c z + ..) and G = 1/(1 - w z + ..), z ~ 1/n."""
    z = z.clone().requires_grad_()
    log_d = -(1 + c * z + bends.df1 * c * z**2).log()
    log_g = -(1 - w * z + bends.risk * w * z**2).log()
    gain, fall = (torch.autograd.grad(f.sum(), z)[0] * z for f in (-log_d, log_g))
    return Slopes(gain.detach(), fall.detach())


@pytest.mark.parametrize("bends", [Bends(), Bends(0.14, 0.13), Bends(0.0, -0.2)])
def test_two_sizes_give_back_the_law_that_made_their_slopes(bends: Bends) -> None:
    z = torch.linspace(0.01, 0.45, 12, dtype=torch.float64)
    whole, half = slopes(0.09, 0.6, bends, z), slopes(0.09, 0.6, bends, 2 * z)
    found = bends_of(whole, half, z)
    assert found.df1 == pytest.approx(bends.df1, abs=1e-10)
    assert found.risk == pytest.approx(bends.risk, abs=1e-10)
    c, w = coefficients(whole, found, z)
    torch.testing.assert_close(c, torch.full_like(z, 0.09))
    torch.testing.assert_close(w, torch.full_like(z, 0.6))
