"""Learning curves at finite width from a pool of points: averages over networks and over training sets.

At a fixed network the pool estimator of `ridgescope.theory.pool` needs three readings of the pool at a "pool ridge"
k: degrees of freedom d1, their slope, and the leave-one-out risk. The block law gives their means over networks,
with the pool as training set:

    d1 = M (1 - k/kappa_1),  kappa(k) = kappa_1,  gamma_M = 1 - 1/(d kappa_1/dk),  G(k) = leave-one-out (or GCV) risk

and, since kappa_1 belongs to data and networks at any P, ``lam = kappa_1 (1 - d1/P)`` fixes k and

    E_test = G(k) (1 - gamma_M)/(1 - gamma_P),      gamma_P = gamma_M M/P.

Letters: M pool points, P training points, lam ridge, N width.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.blocks.fixed_point import Orders
from ridgescope.theory.blocks.law import BlockKernel, BlockPrediction, block_law

TOLERANCE = 1e-10  # relative accuracy of the solved ridge; the error of what follows is below rounding of the law


@dataclass(frozen=True)
class BlockPoolPrediction:
    """Means over networks of width N and training sets of P points: kappa_1, df1, gamma_1, risks over outputs.

    ``kappa_features`` is the ridge at which the infinite-width kernel has df1 on the *pool*, not on P points.
    ``at_pool`` is the law at the pool ridge, whose ``orders`` warm-start the next prediction.
    """

    kappa1: float
    kappa_features: float
    df1: float
    gamma1: float
    test: float
    train: float
    pool_ridge: float
    at_pool: BlockPrediction


def block_pool_law(
    pool: BlockKernel,
    targets: Float64[Tensor, "m c"],
    *,
    num_samples: Number,
    ridge: Number,
    width: Number,
    form: Literal["loo", "gcv"] = "loo",
    start: Orders | None = None,
) -> BlockPoolPrediction:
    """Predict regression on ``num_samples`` points drawn from ``pool`` (its training points), tested on the others.

    ``form``: the pool risk that enters; "loo" survives non-Gaussian data, "gcv" does not. At rank-one blocks and
    "gcv" it is `PoolEstimator.predict` at that width. Cost: the block law at M points, 4-8 times, warm-started.

    Raises ``ValueError`` for ``num_samples`` outside (0, M], and as `block_law` does.
    """
    size = pool.sizes[0]
    if not 0 < num_samples <= size:
        raise ValueError(f"num_samples={num_samples:g} must lie in (0, {size}], the pool size; enlarge the pool")
    if not (math.isfinite(ridge) and ridge > 0):
        raise ValueError(f"ridge={ridge:g} must be finite and > 0; pass the lam of the loss")
    # At P < M the pool loses fewer degrees of freedom per point, so k >= lam. F(log k) = log k - log lam +
    # log(1 - d1/P) - log(1 - d1/M) rises through its root; where d1 >= P, k is too small.
    law = block_law(pool, targets, width=width, ridge=float(ridge), start=start)
    low, k = float(ridge), float(ridge)
    high = math.inf
    for _ in range(60):
        d1, kappa, slope = float(law.df1), float(law.kappa1), float(law.dkappa1_dridge)
        spare = kappa * (1 - d1 / num_samples)  # the lam that this k answers to
        if abs(spare - ridge) <= TOLERANCE * ridge or num_samples == size:
            break
        if spare < ridge:
            low = k
        else:
            high = k
        # d1 = M (1 - k/kappa): spare = kappa (1 - M/P) + k M/P
        step = k + (ridge - spare) / (slope * (1 - size / num_samples) + size / num_samples)
        k_next = step if low < step < high else (math.sqrt(low * high) if high < math.inf else 4 * k)
        if abs(k_next - k) <= 1e-14 * k:
            break
        k = k_next
        law = block_law(pool, targets, width=width, ridge=k, start=law.orders)
    else:
        raise RuntimeError(f"no pool ridge found for num_samples={num_samples:g}, ridge={ridge:g}; use a larger ridge")
    gamma_pool = float(law.gamma1)
    gamma = gamma_pool * size / num_samples
    risk = float(law.loo if form == "loo" else law.gcv)
    test = risk * (1 - gamma_pool) / (1 - gamma)
    return BlockPoolPrediction(
        kappa1=float(law.kappa1),
        kappa_features=float(law.kappa_features),
        df1=float(law.df1),
        gamma1=gamma,
        test=test,
        train=(float(ridge) / float(law.kappa1)) ** 2 * test,
        pool_ridge=k,
        at_pool=law,
    )
