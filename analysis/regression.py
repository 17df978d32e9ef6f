"""Kernel ridge regression with a full C x C kernel, and what its training kernel says by itself.

Letters: P samples, C outputs, K the (P C) x (P C) Gram matrix with output-major rows (c P + mu), lam the ridge
(P lam is added to K), R = (K/P + lam)^-1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory import Resolvent, Resolvents


@dataclass(frozen=True)
class FullKernelRidge:
    """``dual`` (P C,): the predictor is ``K(x, X) dual``. Risks are summed over outputs, mean over samples.

    ``kappa`` = 1/mean diagonal of R; ``df1`` = P (1 - lam/kappa), degrees of freedom per output; ``gcv`` and
    ``loo`` estimate the test risk from the training set (loo leaves out a sample with all its outputs).
    """

    dual: Float64[Tensor, " rows"]
    train: float
    gcv: float
    loo: float
    kappa: float
    df1: float


def full_kernel_ridge(
    gram: Float64[Tensor, "rows rows"], targets: Float64[Tensor, "samples outputs"], ridge: float
) -> FullKernelRidge:
    """Fit ``gram + P ridge``: about (P C)^3 multiply-adds and three matrices of memory.

    Raises ``ValueError`` where the kernel cannot carry the ridge.
    """
    return full_kernel_ridge_fit(Resolvents(gram / len(targets)).at(ridge), targets)


def full_kernel_ridge_fit(resolvent: Resolvent, targets: Float64[Tensor, "samples outputs"]) -> FullKernelRidge:
    """Regression with a kernel whose resolvent R is at hand: (P C)^2 operations.

    GCV: Jacot et al. 2020, arXiv:2006.09796, with the trace over outputs and samples. Leave-one-out with C
    coupled outputs: the left-out residual is ``R_mm^-1 (R y)_m`` with the C x C block ``R_mm`` of a sample.
    """
    samples, outputs = targets.shape
    solution = resolvent.times(targets.T.reshape(-1, 1))[:, 0]  # R y, output-major
    kappa = 1 / resolvent.mean()
    power = float(solution.square().sum()) / samples
    left_out = torch.linalg.solve(resolvent.blocks(outputs), solution.view(outputs, samples).T)
    return FullKernelRidge(
        dual=solution / samples,
        train=resolvent.ridge**2 * power,
        gcv=kappa**2 * power,
        loo=float(left_out.square().sum()) / samples,
        kappa=kappa,
        df1=samples * (1 - resolvent.ridge / kappa),
    )


def squared_error(predictions: Float64[Tensor, "n c"], targets: Float64[Tensor, "n c"]) -> float:
    """Mean over points of the squared error summed over outputs."""
    return float((predictions - targets).square().sum() / len(targets))
