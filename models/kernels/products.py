"""Products ``K v`` with the full empirical NTK of n inputs, for n where K itself fits nowhere.

``K v = J (J^T v)``: the factors of every layer (`ridgescope.models.kernels.structured.factors`) turn the vectors into
directions in parameter space, summed over all inputs, and these back into n C numbers. No second-order pass is needed,
and a layer that left its structure keeps its exact Jacobian, as in `empirical_ntk`.

Axes: n inputs, s positions, k fan-in, o fan-out, c outputs, b vectors.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ridgescope.models.kernels.checks import Parameters, checked_parameters
from ridgescope.models.kernels.memory import budget
from ridgescope.models.kernels.structured.factors import layer_factors, settle
from ridgescope.models.kernels.structured.forms import Common, Diagonal, Explicit, Factor, Gated, Scaled, Spatial
from ridgescope.models.kernels.structured.plan import Plan, make_plan

WORK = 2**20  # numbers in the largest temporary array: 8 MB in float64


class NTKProducts:
    """The map ``v -> K(x, x) v`` for matrices v (n C, b), rows output-major as in `empirical_ntk`.

    Cost per call: 4 products per vector, input and weight. Where the factors of all inputs (see `empirical_ntk`) fit
    into half of ``memory`` they are computed once; otherwise every call passes all inputs through the network
    twice, so pass many vectors at once. Vectors are taken together as far as their directions in parameter space, one
    set of parameters each, fit into a quarter.

    Raises ``ValueError`` as `empirical_ntk` does, and for a v of another shape or dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Parameters | None,
        x: Shaped[Tensor, " n *shape"],
        *,
        memory: str | int | float | None = None,
    ) -> None:
        params = checked_parameters(model, params, x)
        plan = make_plan(model, params, x, None, trace=False)
        self.num_outputs = plan.num_outputs
        self._x, self.dtype = x, next(iter(params.values())).dtype
        size, room = self.dtype.itemsize, budget(memory, 0, x.device)
        weights = size * sum(value.numel() for value in params.values())
        self._vectors = int(room / 4 / weights)

        def sizes(plan: Plan) -> tuple[int, int]:
            held, working = size * plan.numbers_per_input, plan.working_bytes_per_input
            self._chunk, self._block = min(256, int(room / 4 / working)), min(len(x), int(room / 2 / held))
            if min(self._vectors, self._chunk, self._block) < 1:
                raise ValueError(
                    f"memory={memory!r} cannot hold one direction and one input of this network; pass at "
                    f"least {max(4 * weights, 4 * working, 2 * held):.2g}"
                )
            return self._block if self._block == len(x) else 0, self._chunk

        self._plan, first = settle(plan, x, sizes)
        self._kept = [(slice(0, len(x)), first)] if first else None

    def __len__(self) -> int:
        """Rows ``n C`` of K."""
        return len(self._x) * self.num_outputs

    def __call__(self, v: Float[Tensor, "rows b"]) -> Float[Tensor, "rows b"]:
        """``K v``."""
        if v.ndim != 2 or len(v) != len(self) or v.dtype != self.dtype:
            raise ValueError(
                f"v has shape {tuple(v.shape)} and {v.dtype}; expected ({len(self)}, vectors) in {self.dtype}"
            )
        return torch.cat([self._product(part) for part in v.split(self._vectors, dim=1)], dim=1)

    def _product(self, v: Tensor) -> Tensor:
        grid = v.unflatten(0, (self.num_outputs, len(self._x)))
        directions: list[Tensor] = []
        for rows, factors in self._factors():
            shares = [_pull(factor, grid[:, rows]) for factor in factors]
            directions = [a + b for a, b in zip(directions, shares, strict=True)] if directions else shares
        result = v.new_empty(grid.shape)
        for rows, factors in self._factors():
            result[:, rows] = sum(
                _push(factor, g, self.num_outputs) for factor, g in zip(factors, directions, strict=True)
            )
        return result.flatten(0, 1)

    def _factors(self) -> Iterator[tuple[slice, list[Factor]]]:
        return iter(self._kept) if self._kept is not None else self._compute()

    def _compute(self) -> Iterator[tuple[slice, list[Factor]]]:
        for start in range(0, len(self._x), self._block):
            rows = slice(start, start + self._block)
            yield rows, layer_factors(self._plan, self._x[rows], self._chunk)


def _pull(factor: Factor, v: Tensor) -> Tensor:
    """``J^T v`` of one layer for v (c, n, b): directions (b, entries), or (b o, k) where they are matrices."""
    c, n, b = v.shape
    if isinstance(factor, Common):
        mixed = torch.einsum("cnb,co->bon", v, factor.weights)
        return (
            torch.bmm(mixed.transpose(0, 1).contiguous(), factor.gradients.transpose(0, 1)).transpose(0, 1).flatten(1)
        )
    if isinstance(factor, Explicit):
        return v.reshape(c * n, b).T @ factor.gradients.flatten(0, 1)
    if isinstance(factor, Diagonal):
        return v.permute(2, 0, 1).reshape(b * c, n) @ factor.inputs
    assert not isinstance(factor, Scaled)  # of the trace form
    a, d = _positions(factor)
    total = a.new_zeros(b * d.shape[3], a.shape[2])
    for rows in _slices(n, b * a.shape[1] * d.shape[3]):
        mixed = v[:, rows].permute(1, 2, 0) @ d[:, rows].permute(1, 0, 2, 3).flatten(2)  # (n, b, s o)
        mixed = mixed.unflatten(2, d.shape[2:]).permute(1, 3, 0, 2).flatten(2).flatten(0, 1)  # (b o, n s)
        total.addmm_(mixed, a[rows].flatten(0, 1))
    return total


def _push(factor: Factor, direction: Tensor, num_outputs: int) -> Tensor:
    """``J g`` of one layer, (c, n, b)."""
    if isinstance(factor, Common):
        along = direction.view(len(direction), *factor.gradients.shape[1:])
        shares = torch.bmm(factor.gradients.transpose(0, 1), along.permute(1, 2, 0))  # (o, n, b)
        return torch.tensordot(factor.weights, shares, 1)
    if isinstance(factor, Explicit):
        return factor.gradients @ direction.T
    if isinstance(factor, Diagonal):
        return (factor.inputs @ direction.T).unflatten(1, (-1, num_outputs)).permute(2, 0, 1)
    assert not isinstance(factor, Scaled)
    a, d = _positions(factor)
    c, n, s, o = d.shape
    b = len(direction) // o
    result = a.new_empty(c, n, b)
    for rows in _slices(n, b * s * o):
        moved = (a[rows].flatten(0, 1) @ direction.T).view(-1, s, b, o)
        moved = moved.transpose(1, 2).flatten(2)  # (n, b, s o)
        result[:, rows] = (d[:, rows].permute(1, 0, 2, 3).flatten(2) @ moved.transpose(1, 2)).transpose(0, 1)
    return result


def _positions(factor: Gated | Spatial) -> tuple[Tensor, Tensor]:
    """a (n, s, k) and d (c, n, s, o)."""
    if isinstance(factor, Gated):
        return factor.inputs[:, None], factor.cotangents[:, :, None]
    return factor.inputs, factor.cotangents


def _slices(n: int, numbers: int) -> Iterator[slice]:
    side = max(1, WORK // numbers)
    for start in range(0, n, side):
        yield slice(start, start + side)
