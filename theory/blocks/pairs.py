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
    omega: Float64[Tensor, "n n"], metric: Float64[Tensor, "n n"], scales: Scales, share: float, weighted: int
) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, "n n"]]:
    """``V, W`` at x = ``share``; differentiable once.

    ``weighted``: metric is zero beyond the first so many points (its derivative is still that of all entries). Cost: a
    Cholesky factor of size n, an eigendecomposition of size ``weighted``. Raises ``ValueError`` where ``omega`` is not
    positive.
    """
    return _Pair.apply(omega[None], metric, share * scales.nodes, scales.nodes * scales.weights, weighted, True)


def shrunk_alone(
    omega: Float64[Tensor, "b n n"], metric: Float64[Tensor, "bn bn"], scales: Scales, share: float, weighted: int
) -> Float64[Tensor, "bn bn"]:
    """V alone, of ``torch.block_diag(*omega)``; ``weighted`` counts points in each of the b blocks of metric."""
    return _Pair.apply(omega, metric, share * scales.nodes, scales.nodes * scales.weights, weighted, False)


def symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


class _Pair(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, omega: Tensor, metric: Tensor, rates: Tensor, masses: Tensor, weighted: int, both: bool
    ) -> Any:
        blocks, size, _ = omega.shape
        shifted = (omega + omega.mT) / 2
        diagonal = shifted.diagonal(dim1=1, dim2=2)
        diagonal.add_(FLOOR * diagonal.mean())
        root, info = torch.linalg.cholesky_ex(shifted)
        if bool(info.any()):
            raise ValueError("a layer's kernel is not positive in float64; use a larger ridge or a wider network")
        # the factor is triangular, so that T^T metric T is zero where metric is
        inner = root[:, :weighted, :weighted]
        kernel = metric.view(blocks, size, blocks, size)[:, :weighted, :, :weighted].permute(0, 2, 1, 3)
        gram = (inner.mT[:, None] @ kernel @ inner).permute(0, 2, 1, 3).reshape(blocks * weighted, -1)
        values, vectors = torch.linalg.eigh(symmetric(gram))
        q, rotation = _extended(values.clamp_min(0), vectors, blocks, size)
        frame = (root @ rotation).flatten(0, 1)
        phi = (masses[:, None] / (1 + rates[:, None] * q)).sum(0)
        shrunk = symmetric((frame * phi) @ frame.T)
        if not both and not any(ctx.needs_input_grad):
            return shrunk
        coframe = torch.linalg.solve_triangular(root.mT, rotation, upper=True).flatten(0, 1)
        ctx.save_for_backward(frame, coframe, q, rates, masses)
        ctx.shape = omega.shape
        ctx.set_materialize_grads(False)
        return (shrunk, symmetric((coframe * (q * phi)) @ coframe.T)) if both else shrunk

    @staticmethod
    def backward(ctx: Any, grad_v: Tensor | None, grad_w: Tensor | None = None) -> Any:
        frame, coframe, q, rates, masses = ctx.saved_tensors
        reach = 1 / (1 + rates[:, None] * q)
        kept = reach.T @ (masses[:, None] * reach)
        lost = reach.T @ ((masses * rates)[:, None] * reach)
        of_omega, of_metric = torch.zeros_like(kept), torch.zeros_like(kept)
        if grad_v is not None:
            left = frame.T @ symmetric(grad_v) @ frame
            of_omega, of_metric = kept * left, -lost * left
        if grad_w is not None:
            right = coframe.T @ symmetric(grad_w) @ coframe
            of_omega, of_metric = of_omega - q[:, None] * lost * q * right, of_metric + kept * right
        rows = coframe.view(*ctx.shape[:2], -1)
        return rows @ of_omega @ rows.mT, frame @ of_metric @ frame.T, None, None, None, None


def _extended(values: Tensor, vectors: Tensor, blocks: int, size: int) -> tuple[Tensor, Tensor]:
    """q (bn,) and the rotation (b, n, bn), the identity on points without weight."""
    weighted = len(values) // blocks
    if weighted == size:
        return values, vectors.view(blocks, size, -1)
    q = values.new_zeros(blocks, size)
    q[:, :weighted] = values.view(blocks, weighted)
    rotation = torch.eye(blocks * size, dtype=torch.float64).view(blocks, size, blocks, size)
    rotation[:, :weighted, :, :weighted] = vectors.view(blocks, weighted, blocks, weighted)
    return q.flatten(), rotation.view(blocks, size, -1)
