"""Population quantities from a pool of M points of a real kernel, without modelling its noise or its tail.

The pool's own eigenvalues and coefficients are biased, for the pool is itself a sample: the deterministic
equivalent of the pool is inverted instead. Each "pool ridge" k > 0 gives kappa = k/(1 - d1/M) and the
population df1, df2, bias at that kappa; k is then solved for the wanted number of samples, ridge and width.
Derived in docs/theory/pool.md.

Symbols: M pool points, C outputs, P samples, N width; e_i eigenvalues of K/M, q_i^2 = sum_a (V^T Y)_ia^2/M
target power; l_i = e_i/(e_i+k), d1 = sum l_i, dh = sum l_i (1-l_i).
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Number, as_float64, nonnegative
from ridgescope.theory.solver import solve_kappa


class PairRisks:
    """What a pool's prediction says of pairs of predictors, from four of its numbers.

    ``bias`` is b + s2, the squared error of the mean predictor at infinite data; ``limited`` b_F + s2, the risk of one
    network's features there; ``gamma1`` and ``gamma2`` the fitted share of the variance of one network and of the mean.
    """

    bias: float
    limited: float
    gamma1: float
    gamma2: float

    def cross_risk(self, *, same_features: bool, overlap: Number) -> float:
        """E (f - y)(f' - y) of two such predictors that share the features or not, and a share ``overlap`` of data.

        (b_F + s2)/(1 - overlap gamma_1) with the same features, (b + s2)/(1 - overlap gamma_2) with independent
        ones: only shared samples correlate the errors of fitting (the E-ensemble and B-bag laws at overlap 1 and 0).
        Two sets of P points of a pool of M overlap by P/M. Derived in docs/attribution.md.

        Raises ``ValueError`` for an overlap outside [0, 1].
        """
        if not 0 <= overlap <= 1:
            raise ValueError(f"overlap={overlap:g} is a share of the training set; pass 0 <= overlap <= 1")
        risk, gamma = (self.limited, self.gamma1) if same_features else (self.bias, self.gamma2)
        return risk / (1 - overlap * gamma)


@dataclass(frozen=True)
class PoolPrediction(PairRisks):
    """Predicted ridge regression on ``num_samples`` points of the pool (units: kernel, squared target).

    ``kappa1`` is what the training resolvent measures, ``kappa2`` the threshold of the modes (equal at
    infinite width); ``bias`` is b + s2, the squared bias with all unlearnable power; ``limited`` is
    b_F + s2, the risk at infinite data with these features; ``pool_ridge`` is k. Risks are summed over outputs.
    """

    kappa1: float
    kappa2: float
    df1: float
    df2: float
    gamma1: float
    gamma2: float
    test: float
    train: float
    bias: float
    limited: float
    pool_ridge: float


@dataclass(frozen=True)
class PoolEstimator:
    """One eigendecomposition of a pool; each prediction then costs O(M^2 + M C)."""

    eigenvalues: Float[Tensor, " m"]
    target_power: Float[Tensor, " m"]
    vectors: Float[Tensor, "m m"] = field(repr=False)
    projections: Float[Tensor, "m c"] = field(repr=False)

    @property
    def size(self) -> int:
        """Number of points M in the pool."""
        return len(self.eigenvalues)

    def risk(self, pool_ridge: Number, form: Literal["loo", "gcv"] = "loo") -> float:
        """Risk of the whole pool at ridge ``pool_ridge``: exact leave-one-out, or GCV. Summed over
        outputs.
        """
        k, e = pool_ridge, self.eigenvalues
        if form == "gcv":
            missed = k / (e + k)
            return float((self.target_power * missed**2).sum() / missed.mean() ** 2)
        residual = self.vectors @ (self.projections / (e + k)[:, None])
        diagonal = (self.vectors**2) @ (1 / (e + k))
        return float(((residual / diagonal[:, None]) ** 2).sum() / self.size)

    def predict(
        self, num_samples: Number, ridge: Number, width: Number = math.inf, form: Literal["loo", "gcv"] = "loo"
    ) -> PoolPrediction:
        """Test and train risk with ``num_samples`` training points drawn from the pool, ridge and feature
        width.

        ``ridge`` is lam of the loss (1/P) sum (f-y)^2 + lam |w|^2. ``width`` is the number N of random
        features (inf: kernel ridge regression; an estimated 1/N <= 0 means inf). ``form`` is the pool risk
        that enters: "loo" survives non-Gaussian data, "gcv" does not (few per cent against up to 25 % at
        small ridge on images). The test risk holds for the remaining pool points and for fresh ones. At
        ``num_samples = M`` it is the pool's own LOO (GCV) risk. For finite width with "loo" the factor
        LOO/GCV is applied to u + s2 too: a heuristic.

        Errors of prediction: 1-4 % for P <= 3M/4 on image kernels. Cost O(M^2 + M C), no new decomposition.

        Raises ``ValueError`` for ``num_samples`` beyond the pool, ``ridge < 0``, ``width <= 0``, and where
        ``k`` falls below the rounding error of the eigenvalues (ridgeless at P near the rank).
        """
        if not 0 < num_samples <= self.size:
            raise ValueError(
                f"num_samples={num_samples:g} must lie in (0, {self.size}], the pool size; enlarge the pool"
            )
        if not (math.isfinite(ridge) and ridge >= 0):
            raise ValueError(f"ridge={ridge:g} must be finite and >= 0; pass the lam of the loss")
        if not width > 0:
            raise ValueError(f"width={width:g} must be > 0; pass inf where 1/width is not positive")
        if form not in ("loo", "gcv"):
            raise ValueError(f"form={form!r} is unknown; pass 'loo' or 'gcv'")
        return self._evaluate(self._pool_ridge(num_samples, ridge, width), num_samples, width, form)

    def _pool_ridge(self, num_samples: Number, ridge: Number, width: Number) -> float:
        e = self.eigenvalues
        floor = 8 * torch.finfo(e.dtype).eps * float(e[0])
        if num_samples == self.size and width == math.inf:
            k = ridge  # (1 - d1/P) and (1 - d1/M) cancel
        elif num_samples == self.size:  # only the width is left
            k = float(solve_kappa(e, None, e.new_zeros(()), e.new_tensor([ridge]), e.new_tensor([[width]])))
        else:
            sizes = e.new_tensor([[num_samples], [width]])
            pool = e.new_tensor([float(self.size)])
            k = float(solve_kappa(e, None, e.new_zeros(()), e.new_tensor([ridge]), sizes, pool))
        if k <= floor:
            rank = int((e > floor).sum())
            raise ValueError(
                f"pool ridge {k:.1e} for num_samples={num_samples:g}, width={width:g}, ridge={ridge:g} is "
                "below the "
                f"rounding error {floor:.1e} of a pool of rank {rank}; pass a larger ridge or fewer samples"
            )
        return k

    def _evaluate(self, k: Number, p: Number, n: Number, form: Literal["loo", "gcv"]) -> PoolPrediction:
        m, e, q2 = self.size, self.eigenvalues, self.target_power
        learned, missed = e / (e + k), k / (e + k)
        d1, dh = float(learned.sum()), float((learned * missed).sum())
        o_m = float(missed.sum()) / m  # 1 - d1/M without cancellation
        d12 = dh * o_m / (o_m - dh / m)
        df2 = d1 - d12
        pool_risk = self.risk(k, form)
        bias = (o_m + d12 / m) * pool_risk  # (1 - df2/M) G(k)
        unlearned = float((q2 * missed).sum()) / o_m
        if form == "loo":
            unlearned *= pool_risk / self.risk(k, "gcv")
        o_p = o_m if p == m else 1 - d1 / p
        o_n = 1 - d1 / n
        rho = o_n / (o_n + d12 / n)
        risk_at_infinite_data = bias + (1 - rho) * (unlearned - bias)
        test = risk_at_infinite_data / (o_p + rho * d12 / p)
        kappa2 = k / o_m
        gamma1 = (df2 + (1 - rho) * d12) / p
        train = max(o_p, 0.0) ** 2 * test
        limited = risk_at_infinite_data
        return PoolPrediction(kappa2 * o_n, kappa2, d1, df2, gamma1, df2 / p, test, train, bias, limited, k)


def pool_estimator(gram: Float[Tensor, "m n"], targets: Float[Tensor, "rows c"]) -> PoolEstimator:
    """Decompose a pool: ``gram`` (m, m) the unnormalised kernel, ``targets`` (m, c) one row per point (centre
    them
    first).

    Eigenvalues are those of ``gram / M``, descending, clipped at 0. One ``eigh``: about 9 M^3 operations, 2
    M^2 numbers. Mode-wise readings of ``target_power`` are reliable only for eigenvalues well above
    kappa(ridge=0, P=M).

    Raises ``ValueError`` for a gram matrix that is not square, symmetric, finite and float64, or other
    lengths.
    """
    gram, targets = checked_gram(gram), as_float64("targets", targets)
    if len(targets) != len(gram):
        raise ValueError(f"targets has {len(targets)} rows for {len(gram)} pool points; pass one row per point")
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("targets holds nan or inf; drop those points from the pool")
    values, vectors = torch.linalg.eigh(gram / len(gram))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    projections = vectors.T @ targets
    return PoolEstimator(values, projections.square().sum(1) / len(gram), vectors, projections)


def checked_gram(gram: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """``gram`` if it is a finite, symmetric float64 matrix with positive trace."""
    gram = as_float64("gram", gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
        raise ValueError(f"gram has shape {tuple(gram.shape)}; pass a square kernel matrix")
    nonfinite = ~torch.isfinite(gram)
    if bool(nonfinite.any()):
        raise ValueError(f"gram holds {int(nonfinite.sum())} entries that are nan or inf; drop those points")
    scale, skew = float(gram.diagonal().abs().max()), float((gram - gram.T).abs().max())
    if float(gram.diagonal().sum()) <= 0 or skew > 1e-8 * scale:
        raise ValueError(
            f"gram has trace {float(gram.diagonal().sum()):g} and asymmetry {skew:g}; pass a positive "
            "symmetric kernel "
            "matrix, (K + K.T) / 2 if rounding is the cause"
        )
    nonnegative("the diagonal of gram", gram.diagonal())
    return gram
