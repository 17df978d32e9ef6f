"""Families of independent feature blocks: what a kernel ``K_N = fixed + (1/N) sum_n B_n`` is made of.

A block of a family is ``B_n = r_n diag(g_n) J J^T diag(g_n)``: random gates g_n on the points with second moment
``gate = E[g g^T]``, deterministic features J common to all blocks, a random scale r_n of mean 1. One hidden layer
has two families per neuron:

    its activation   gate E[phi phi'],    J = 1 (rank one),     r = 1
    its derivative   gate E[phi' phi'],   J J^T = x.x' + bias,  r = v^2 of the readout

Shapes: P training points, T evaluation points, r columns of J.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory.blocks.scales import Scales, fixed_scale


@dataclass(frozen=True)
class PointKernel:
    """A kernel on training points (P, P), evaluation against training points (T, P), evaluation points (T,)."""

    train: Float64[Tensor, "p p"]
    cross: Float64[Tensor, "t p"]
    own: Float64[Tensor, " t"]

    @property
    def sizes(self) -> tuple[int, int]:
        """(P, T)."""
        return self.train.shape[0], self.cross.shape[0]

    def scaled(self, factor: float) -> "PointKernel":
        return PointKernel(self.train * factor, self.cross * factor, self.own * factor)

    def plus(self, other: "PointKernel") -> "PointKernel":
        return PointKernel(self.train + other.train, self.cross + other.cross, self.own + other.own)


def point_kernel(gram: Float64[Tensor, "n n"], num_train: int) -> PointKernel:
    """Split a kernel on all points, training points first."""
    return PointKernel(
        gram[:num_train, :num_train], gram[num_train:, :num_train], gram.diagonal()[num_train:].contiguous()
    )


@dataclass(frozen=True)
class BlockFamily:
    """``gate`` E[g g'], ``features`` J on training (P, r) and evaluation points (T, r), and the blocks' scales."""

    gate: PointKernel
    features: Float64[Tensor, "p r"]
    features_eval: Float64[Tensor, "t r"]
    scales: Scales

    @property
    def rank(self) -> int:
        return self.features.shape[1]

    def order(self, matrix: Float64[Tensor, "p p"]) -> Float64[Tensor, "r r"]:
        """``J^T (matrix o gate) J``: the mean Gram matrix of a block's features in the metric ``matrix``."""
        if self.rank == 1:
            column = self.features
            return column.T @ ((matrix * self.gate.train) @ column)
        order = self.features.T @ ((matrix * self.gate.train) @ self.features)
        return (order + order.T) / 2

    def train(self, weight: Float64[Tensor, "r r"]) -> Float64[Tensor, "p p"]:
        """``gate o (J weight J^T)`` on the training points."""
        return self.gate.train * (self.features @ weight @ self.features.T)

    def cross(self, weight: Float64[Tensor, "r r"]) -> Float64[Tensor, "t p"]:
        return self.gate.cross * (self.features_eval @ weight @ self.features.T)

    def own(self, weight: Float64[Tensor, "r r"]) -> Float64[Tensor, " t"]:
        return self.gate.own * ((self.features_eval @ weight) * self.features_eval).sum(1)

    def limit(self) -> PointKernel:
        """The family's share of the infinite-width kernel."""
        weight = self.scales.mean * torch.eye(self.rank, dtype=torch.float64, device=self.features.device)
        return PointKernel(self.train(weight), self.cross(weight), self.own(weight))


def shared_features(gram: PointKernel) -> tuple[Tensor, Tensor]:
    """J with ``J J^T = gram`` on the training points, and the evaluation points' J seen from there (P, r), (T, r).

    r is the rank of the training Gram matrix: what evaluation points have beyond its span meets no training point
    and enters no prediction.
    """
    values, vectors = torch.linalg.eigh(gram.train)
    keep = values > 1e-13 * float(values[-1])
    values, vectors = values[keep], vectors[:, keep]
    return vectors * values.sqrt(), gram.cross @ vectors / values.sqrt()


def activation_family(gate: PointKernel) -> BlockFamily:
    """One random feature per neuron: ``gate`` is its second moment on the points."""
    (train, evaluation), one = gate.sizes, torch.ones
    ones = one(train, 1, dtype=torch.float64), one(evaluation, 1, dtype=torch.float64)
    return BlockFamily(gate, *ones, fixed_scale())


def gradient_family(gate: PointKernel, below: PointKernel, scales: Scales) -> BlockFamily:
    """The weights into a neuron: ``gate`` E[phi' phi'], ``below`` the kernel of what these weights multiply."""
    return BlockFamily(gate, *shared_features(below), scales)
