"""Learning curves at finite width from a pool of points: averages over networks and over training sets.

At a fixed network the pool estimator of `ridgescope.theory.pool` needs three readings of the pool at a "pool ridge"
k: degrees of freedom d1, their slope, and the leave-one-out risk. The block law gives their means over networks,
with the pool as training set:

    d1 = M (1 - k/kappa_1),  kappa(k) = kappa_1,  gamma_M = 1 - 1/(d kappa_1/dk),  G(k) = leave-one-out (or GCV) risk

and, since kappa_1 belongs to data and networks at any P, ``lam = kappa_1 (1 - d1/P)`` fixes k and

    E_test = G(k) (1 - gamma_M)/(1 - gamma_P),      gamma_P = gamma_M M/P.

The mean over networks is itself regression, with the deterministic kernel K_eff of the law, so the same two lines with
its own leave-one-out risk and its own gamma_2 give the risk of the mean predictor, and with it the terms of the risk.

Letters: M pool points, P training points, lam ridge, N width.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float64
from scipy.optimize import brentq
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.blocks.fixed_point import Orders
from ridgescope.theory.blocks.law import BlockKernel, BlockPrediction, block_kappa, block_law
from ridgescope.theory.pool import PairRisks

TOLERANCE = 1e-11  # relative accuracy of the solved ridge, as good as the law's own fixed point


@dataclass(frozen=True)
class BlockPoolPrediction(PairRisks):
    """Means over networks of width N and training sets of P points: kappa_1, df1, gamma_1, risks over outputs.

    ``limited`` is the risk at infinite data of single networks, ``bias`` that of their mean predictor, which is fitted
    with ``gamma2``; `cross_risk` combines them.
    ``kappa_features`` is the ridge at which the infinite-width kernel has df1 on the *pool*, not on P points.
    ``at_pool`` is the law at the pool ridge, whose ``orders`` warm-start the next prediction.
    """

    kappa1: float
    kappa_features: float
    df1: float
    gamma1: float
    gamma2: float
    test: float
    train: float
    limited: float
    bias: float
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
    "gcv" it is `PoolEstimator.predict` at that width. Cost: the law at M points once, and about ten times its fixed
    point, warm-started.

    Raises ``ValueError`` for ``num_samples`` outside (0, M], and as `block_law` does.
    """
    size = pool.sizes[0]
    if not 0 < num_samples <= size:
        raise ValueError(f"num_samples={num_samples:g} must lie in (0, {size}], the pool size; enlarge the pool")
    if not (math.isfinite(ridge) and ridge > 0):
        raise ValueError(f"ridge={ridge:g} must be finite and > 0; pass the lam of the loss")
    k, orders = _pool_ridge(pool, num_samples / size, float(width), float(ridge), start)
    law = block_law(pool, targets, width=width, ridge=k, start=orders)
    gamma1, gamma2 = float(law.gamma1), _gamma_of_mean(law)
    risk = float(law.loo if form == "loo" else law.gcv)
    of_mean = float(law.loo_bias) if form == "loo" else risk * float(law.train_bias / law.train)
    limited, bias = risk * (1 - gamma1), of_mean * (1 - gamma2)
    test = limited / (1 - gamma1 * size / num_samples)
    return BlockPoolPrediction(
        kappa1=float(law.kappa1),
        kappa_features=float(law.kappa_features),
        df1=float(law.df1),
        gamma1=gamma1 * size / num_samples,
        gamma2=gamma2 * size / num_samples,
        test=test,
        train=(float(ridge) / float(law.kappa1)) ** 2 * test,
        limited=limited,
        bias=bias,
        pool_ridge=k,
        at_pool=law,
    )


def _gamma_of_mean(law: BlockPrediction) -> float:
    """gamma_2 of the pool: 1 - (tr G)^2/(M tr G^2), as of a kernel that does not fluctuate."""
    resolvent = law.resolvent
    return 1 - float(resolvent.trace().square() / (len(resolvent) * resolvent.square().sum()))


def _pool_ridge(
    pool: BlockKernel, share: float, width: float, ridge: float, start: Orders | None
) -> tuple[float, Orders | None]:
    """The root k >= lam of ``lam = kappa_1(k) (1 - d1/P)``, share = P/M, and the orders of the last fixed point."""
    if share == 1:
        return ridge, start

    def spare(log_k: float) -> float:
        """``(kappa_1 (1 - d1/P) - lam)/k``: rises through its root, and is below it where d1 > P."""
        nonlocal start
        k = math.exp(log_k)
        kappa, start = block_kappa(pool, width=width, ridge=k, start=start)
        return kappa / k * (1 - 1 / share) + 1 / share - ridge / k

    low = high = math.log(ridge)
    while spare(high) < 0:
        low, high = high, high + 2.0
        if high > 700:
            raise RuntimeError(f"no pool ridge found for P/M={share:g}, ridge={ridge:g}; use a larger ridge")
    root = low if low == high else float(brentq(spare, low, high, xtol=TOLERANCE))
    return math.exp(root), start
