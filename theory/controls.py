"""Pools of Gaussian points that stand in for a real one: what the theory says where its assumption is true.

Symbols: M points, C outputs; e_i eigenvalues of the real pool's K/M, c_ia = (v_i . Y_a)/sqrt(M) its target
coefficients, z_i ~ N(0, 1). The control has the kernel sum_i e_i z_i z_i' and the target sum_i c_ia z_i.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import as_float64, positive
from ridgescope.theory.pool import PoolEstimator


def control_pool(
    pool: PoolEstimator, generator: torch.Generator, norms: Float[Tensor, " m"] | None = None
) -> tuple[Float[Tensor, "m m"], Float[Tensor, "m c"]]:
    """Gram matrix and targets of as many Gaussian points, with the pool's spectrum and target coefficients.

    Without ``norms`` the Gaussian control: what fails on the pool but not here is a failure of Gaussian universality;
    what fails here too is arithmetic, or a pool too small. With ``norms`` (m,), the diagonal of the real Gram matrix,
    the elliptical control: each point is scaled by the norm of its real counterpart over the root mean square one (its
    labels are not), which tells what unequal norms alone do; with equal norms it is a Gaussian control. 2 m^3
    operations.

    Raises ``ValueError`` for norms that are not positive or not one per point.
    """
    m = pool.size
    z = torch.randn(m, m, generator=generator, dtype=torch.float64)
    targets = z @ (pool.projections / math.sqrt(m))
    features = z * pool.eigenvalues.sqrt()
    if norms is not None:
        norms = positive("norms", as_float64("norms", norms))
        if norms.shape != (m,):
            raise ValueError(f"norms has shape {tuple(norms.shape)}; pass K(x, x) of the {m} points of the pool")
        features = features * (norms / norms.mean()).sqrt()[:, None]
    return features @ features.T, targets
