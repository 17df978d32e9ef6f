"""Kernel ridge regression with a full C x C kernel, and what its training kernel says by itself.

Letters: P samples, C outputs, K the (P C) x (P C) Gram matrix with output-major rows (c P + mu), lam the ridge
(P lam is added to K), R = (K/P + lam)^-1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor


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
    """Fit by one Cholesky factorisation and its inverse: (P C)^3 multiply-adds and two matrices of memory.

    GCV: Jacot et al. 2020, arXiv:2006.09796, with the trace over outputs and samples. Leave-one-out with C
    coupled outputs: the left-out residual is ``R_mm^-1 (R y)_m`` with the C x C block ``R_mm`` of a sample.

    Raises ``ValueError`` where ``K + P lam`` is not positive definite in float64.
    """
    samples, outputs = targets.shape
    factor, info = torch.linalg.cholesky_ex(_shifted(gram / samples, ridge))
    if int(info) != 0:
        raise ValueError(
            f"the kernel with ridge={ridge:g} is not positive definite in float64 ({samples} samples, {outputs} "
            f"outputs); use a ridge above {1e-14 * float(gram.diagonal().sum()) / samples:.1e}"
        )
    resolvent = torch.cholesky_inverse(factor)
    solution = resolvent @ targets.T.flatten()  # R y, output-major
    kappa = float(1 / resolvent.diagonal().mean())
    power = float(solution.square().sum()) / samples
    blocks = resolvent.view(outputs, samples, outputs, samples).diagonal(dim1=1, dim2=3).permute(2, 0, 1)
    left_out = torch.linalg.solve(blocks, solution.view(outputs, samples).T)
    return FullKernelRidge(
        dual=solution / samples,
        train=ridge**2 * power,
        gcv=kappa**2 * power,
        loo=float(left_out.square().sum()) / samples,
        kappa=kappa,
        df1=samples * (1 - ridge / kappa),
    )


def _shifted(matrix: Tensor, ridge: float) -> Tensor:
    matrix.diagonal().add_(ridge)
    return matrix


def squared_error(predictions: Float64[Tensor, "n c"], targets: Float64[Tensor, "n c"]) -> float:
    """Mean over points of the squared error summed over outputs."""
    return float((predictions - targets).square().sum() / len(targets))
