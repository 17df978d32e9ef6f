"""Two kernels that shrink each other: the resolvent of a random kernel whose neurons see another one.

For positive semidefinite ``omega`` and ``metric`` (n, n), r a random scale of mean 1 and x = 1/N,

    V = E r (omega^-1 + x r metric)^-1        omega, as it is left when the others explain part of it
    W = E r (metric^-1 + x r omega)^-1        the metric, as seen from below omega

With ``omega = T T^T`` and ``metric = T^-T q T^-1`` both are diagonal: ``V = T phi(q) T^T``, ``W = T^-T q phi(q) T^-1``,
``phi(q) = E r/(1 + x r q)``; so are their derivatives. ``tr(metric V) = tr(W omega)``.
"""

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory.blocks.scales import Scales

FLOOR = 1e-12  # of omega's mean diagonal: where omega is smaller, V and W do not depend on it to float64's accuracy


def shrunk_pair(
    omega: Float64[Tensor, "n n"], metric: Float64[Tensor, "n n"], scales: Scales, share: float
) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, "n n"]]:
    """``V, W`` at x = ``share``; differentiable once. Cost: a Cholesky and an eigendecomposition of size n.

    Raises ``ValueError`` where ``omega`` is not positive.
    """
    return _Pair.apply(omega, metric, share * scales.nodes, scales.nodes * scales.weights)


def symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


class _Pair(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, omega: Tensor, metric: Tensor, rates: Tensor, masses: Tensor) -> Any:
        shifted = symmetric(omega)
        shifted.diagonal().add_(FLOOR * omega.diagonal().mean())
        root, info = torch.linalg.cholesky_ex(shifted)
        if int(info) != 0:
            raise ValueError("a layer's kernel is not positive in float64; use a larger ridge or a wider network")
        q, rotation = torch.linalg.eigh(symmetric(root.T @ metric @ root))
        q = q.clamp_min(0)
        frame = root @ rotation
        coframe = torch.linalg.solve_triangular(root.T, rotation, upper=True)
        phi = (masses[:, None] / (1 + rates[:, None] * q)).sum(0)
        ctx.save_for_backward(frame, coframe, q, rates, masses)
        return symmetric((frame * phi) @ frame.T), symmetric((coframe * (q * phi)) @ coframe.T)

    @staticmethod
    def backward(ctx: Any, grad_v: Tensor, grad_w: Tensor) -> Any:
        frame, coframe, q, rates, masses = ctx.saved_tensors
        reach = 1 / (1 + rates[:, None] * q)
        kept = reach.T @ (masses[:, None] * reach)
        lost = reach.T @ ((masses * rates)[:, None] * reach)
        left = frame.T @ symmetric(grad_v) @ frame
        right = coframe.T @ symmetric(grad_w) @ coframe
        grad_omega = coframe @ (kept * left - q[:, None] * lost * q * right) @ coframe.T
        grad_metric = frame @ (kept * right - lost * left) @ frame.T
        return grad_omega, grad_metric, None, None
