"""The random scale of a block, and the shrinkage of a block as a function of its own Gram matrix.

A block of weight r and features J answers to the others through ``r (1 + r Q)^-1``, Q = J^T G J / N (r, r).
Averaged over r this is ``phi(Q)``, a spectral function that falls from E[r] to 0, with derivative
``-Phi(Q)[X] = -E[r^2 (1 + r Q)^-1 X (1 + r Q)^-1]``.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Scales:
    """``phi(Q) = sum_i weights_i nodes_i / (1 + nodes_i Q)``: nodes r_i > 0, weights > 0, both (k,)."""

    nodes: Float64[Tensor, " k"]
    weights: Float64[Tensor, " k"]

    @property
    def mean(self) -> float:
        """phi(0), the weight of a block when nothing else competes with it."""
        return float(self.weights @ self.nodes)

    def shrink(self, gram: Float64[Tensor, "r r"]) -> Float64[Tensor, "r r"]:
        """``phi(gram)``; differentiable once in gram."""
        return _Shrink.apply(gram, self.nodes, self.weights)

    def respond(self, gram: Float64[Tensor, "r r"], change: Float64[Tensor, "r r"]) -> Float64[Tensor, "r r"]:
        """``Phi(gram)[change]``, minus the derivative of `shrink`; differentiable once in both."""
        return _Respond.apply(gram, change, self.nodes, self.weights)

    def responder(self, gram: Float64[Tensor, "r r"]) -> "Responder":
        """``change -> Phi(gram)[change]`` for many changes at one gram."""
        return Responder(gram, self.nodes, self.weights)


def fixed_scale() -> Scales:
    """Every block has weight 1."""
    one = torch.ones(1, dtype=torch.float64)
    return Scales(one, one)


def squared_readout(outputs: int = 1, *, trace: bool = False) -> Scales:
    """Weights |v|^2 of C = ``outputs`` independent N(0, 1) readout weights.

    A hidden neuron's block in the full C x C kernel is ``v v^T`` times its features: one direction of output
    space, of weight |v|^2, of which each output owns 1/C on average. ``trace``: the kernel averaged over outputs,
    whose block has weight |v|^2/C. Both equal v^2 for one output, and have mean weight 1.

    The trapezoidal rule in log |v|^2, whose error exp(-pi^2/step) is below rounding.
    """
    if outputs < 1:
        raise ValueError(f"outputs={outputs} must be at least 1; pass the number of outputs of the network")
    step = 0.25
    # the integrand is log |v|^2's density times |v|^2, about exp((C/2 + 1) t) on the left, exp(-e^t/2) on the right
    lowest, highest = math.log(outputs) - 90 / (outputs + 2) - 3, math.log(outputs + 100.0) + 1
    t = torch.arange(math.floor(lowest / step), math.ceil(highest / step), dtype=torch.float64) * step
    log_density = outputs / 2 * (t - math.log(2)) - t.exp() / 2 - math.lgamma(outputs / 2)
    nodes, weights = t.exp(), step * log_density.exp()
    keep = weights * nodes > 1e-19 * float((weights * nodes).max())
    nodes, weights = nodes[keep], weights[keep]
    if trace:
        return Scales(nodes / outputs, weights)
    return Scales(nodes, weights / outputs)


class Responder:
    """One eigendecomposition, then two products per change."""

    def __init__(self, gram: Tensor, nodes: Tensor, weights: Tensor) -> None:
        values, self.vectors = torch.linalg.eigh(gram)
        values = values.clamp_min(0)
        reach = nodes[:, None] / (1 + nodes[:, None] * values)
        self.table = reach.T @ (weights[:, None] * reach)
        self.reach, self.weights = reach, weights

    def __call__(self, change: Tensor) -> Tensor:
        return self.vectors @ (self.table * (self.vectors.T @ change @ self.vectors)) @ self.vectors.T


class _Shrink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gram: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(gram)
        shrunk = (weights[:, None] * nodes[:, None] / (1 + nodes[:, None] * values.clamp_min(0))).sum(0)
        ctx.save_for_backward(gram, nodes, weights)
        return (vectors * shrunk) @ vectors.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gram, nodes, weights = ctx.saved_tensors
        return -Responder(gram, nodes, weights)((grad + grad.T) / 2), None, None


class _Respond(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gram: Tensor, change: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(gram, change, nodes, weights)
        return Responder(gram, nodes, weights)(change)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gram, change, nodes, weights = ctx.saved_tensors
        respond = Responder(gram, nodes, weights)
        grad = (grad + grad.T) / 2
        left, right = (respond.vectors.T @ m @ respond.vectors for m in (grad, (change + change.T) / 2))
        inner = torch.zeros_like(left)
        for weight, reach in zip(respond.weights, respond.reach, strict=True):
            inner += weight * reach[:, None] * ((left * reach) @ right) * reach
        inner = respond.vectors @ inner @ respond.vectors.T
        return -(inner + inner.T), respond(grad), None, None
