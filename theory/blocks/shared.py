"""Several training sets, one network: the covariance over initialisations of its predictors on any two.

At one training set the variance over networks is ``(1/N) u^T Psi u`` (`ridgescope.theory.blocks.law`). The same
blocks seen through two training sets A and B, with resolvents G_A and G_B, polarise every step of it:

    Cov(f_A(x), f_B(x)) = (1/N) sum_b u_A(x)^T (gate_b o (J_b eta_b J_b^T)) u_B(x),      u_A(x) = delta_x - G_A k_A(x)
    eta = Phi_AB (J^T (alpha_A alpha_B^T o gate) J + M_AB eta)
    Phi_AB X = E r^2 (1 + r Q_A)^-1 X (1 + r Q_B)^-1,      M_AB X = J^T ((G_A (gate o (J X J^T)) G_B) o gate) J / N

Averaged over pairs of training sets this is the initialisation variance of the risk, and A = B its sum with the
interaction. Letters: P points of A, S points of B, T evaluation points, C outputs, r columns of J, N width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Real
from ridgescope.theory.blocks.families import BlockFamily, PointKernel
from ridgescope.theory.blocks.fixed_point import Orders, mean_inverse, solve
from ridgescope.theory.blocks.law import BlockKernel, checked_problem, checked_width, require_distinct

TOLERANCE = 1e-9  # change of eta in one iteration, relative


@dataclass(frozen=True)
class SharedNetwork:
    """One random network, regressed on S training sets of its own. ``predictors`` (S, T, C) are means over networks."""

    predictors: Float64[Tensor, "s t c"]
    families: Sequence[BlockFamily] = field(repr=False)
    sides: "Sequence[_Side]" = field(repr=False)
    width: Float64[Tensor, ""] = field(repr=False)

    def covariance(self, a: int, b: int) -> Float64[Tensor, " t"]:
        """Over networks, of the predictors on two of the sets, summed over outputs; their variance where both are the
        same. Cost: some ten to a hundred products of the size of one iteration of the fixed point.

        Raises ``RuntimeError`` where its iteration does not settle.
        """
        one, second = self.sides[a], self.sides[b]
        eta = _field(self.families, one, second, self.width)
        covariance = torch.zeros(self.predictors.shape[1], dtype=torch.float64)
        for family, weight in zip(self.families, eta, strict=True):
            near, far = family.features[one.index], family.features[second.index]
            seen = family.features_eval @ weight
            gates = family.gate.train[one.index][:, second.index]
            covariance += family.gate.own * (seen * family.features_eval).sum(1)
            covariance -= (second.reach * family.gate.cross[:, second.index] * (seen @ far.T)).sum(1)
            back = family.features_eval @ (near @ weight).T
            covariance -= (one.reach * family.gate.cross[:, one.index] * back).sum(1)
            covariance += ((one.reach @ (gates * (near @ weight @ far.T))) * second.reach).sum(1)
        return covariance / self.width


def shared_network(
    kernel: BlockKernel,
    targets: Float64[Tensor, "n c"],
    sets: Sequence[Tensor],
    *,
    width: Real,
    ridge: Real,
) -> SharedNetwork:
    """Regression on several training sets with the same random kernel.

    ``kernel`` and ``targets`` are of the union of the sets and the evaluation points; ``sets`` are index tensors into
    the union, which may overlap. The variance on one set is that of `block_law`. Cost: a fixed point for each set.

    Raises ``ValueError`` and ``RuntimeError`` as `block_law`.
    """
    require_distinct(kernel.limit().train)
    width = checked_width(width)
    sides = [_Side(kernel, targets, index, width, ridge) for index in sets]
    return SharedNetwork(torch.stack([side.predictor for side in sides]), kernel.families, sides, width)


class _Side:
    """The law at one training set: G, alpha, Q of each family, the predictor, and k(x)^T G."""

    def __init__(self, kernel: BlockKernel, targets: Tensor, index: Tensor, width: Tensor, ridge: Real) -> None:
        self.index = index
        families = [_part(family, index) for family in kernel.families]
        targets, weights, ridge = checked_problem(targets[index], None, ridge, len(index))
        base = torch.diag(len(index) * ridge / weights)
        if kernel.fixed is not None:
            base = base + kernel.fixed.train[index][:, index]
        self.orders: Orders = solve(families, base, width).orders
        self.inverse = mean_inverse(families, base, self.orders)
        self.alpha = self.inverse @ targets
        parts = [f.cross(f.scales.shrink(order)) for f, order in zip(families, self.orders, strict=True)]
        cross = torch.stack(parts).sum(0)
        if kernel.fixed is not None:
            cross = cross + kernel.fixed.cross[:, index]
        self.reach = cross @ self.inverse
        self.predictor = cross @ self.alpha
        self.bases = [torch.linalg.eigh(order) for order in self.orders]


def _part(family: BlockFamily, index: Tensor) -> BlockFamily:
    gate = PointKernel(family.gate.train[index][:, index], family.gate.cross[:, index], family.gate.own)
    return BlockFamily(gate, family.features[index], family.features_eval, family.scales)


def _field(families: Sequence[BlockFamily], one: _Side, other: _Side, width: Tensor) -> Orders:
    """eta, by iterating its equation: a contraction, for a source dies out where the fixed point is stable."""
    probe = one.alpha @ other.alpha.T

    def seen(family: BlockFamily, matrix: Tensor) -> Tensor:
        gates = family.gate.train[one.index][:, other.index]
        return family.features[one.index].T @ (matrix * gates) @ family.features[other.index]

    def respond(i: int, change: Tensor) -> Tensor:
        scales, ((p, u), (q, v)) = families[i].scales, (one.bases[i], other.bases[i])
        left, right = (scales.nodes[:, None] / (1 + scales.nodes[:, None] * values.clamp_min(0)) for values in (p, q))
        table = left.T @ (scales.weights[:, None] * right)
        return u @ (table * (u.T @ change @ v)) @ v.T

    sources = [seen(family, probe) for family in families]
    eta = [respond(i, source) for i, source in enumerate(sources)]
    for _ in range(2000):
        total = torch.zeros_like(probe)
        for family, weight in zip(families, eta, strict=True):
            gates = family.gate.train[one.index][:, other.index]
            total += gates * (family.features[one.index] @ weight @ family.features[other.index].T)
        inside = one.inverse @ total @ other.inverse
        new = [respond(i, sources[i] + seen(family, inside) / width) for i, family in enumerate(families)]
        change = max(float((a - b).norm() / a.norm().clamp_min(1e-300)) for a, b in zip(new, eta, strict=True))
        eta = new
        if change <= TOLERANCE:
            return eta
    raise RuntimeError(
        f"the covariance of two training sets did not settle (last change {change:.1e}); use a larger ridge"
    )
