"""Ridge regression with a deep network's tangent kernel, averaged over initialisations: the fixed point and the risk.

The risk is the first derivative of the loss in the weight of a test point (`ridgescope.theory.blocks.law`). A point of
small weight adds ``e u u^T`` to G, u(x) = delta_x - G k(x), so with ``Psi`` the derivative of ``y^T G y`` in G through
the fixed point (an adjoint solve),

    E (y - f(x))^2 = (y - k(x)^T G y)^2 + u(x)^T Psi u(x)

and a training point has P lam/w in place of 1. Letters: P training points, T evaluation points, C outputs.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.blocks.deep import DeepKernel, DeepMap, State
from ridgescope.theory.blocks.fixed_point import HISTORY, mix
from ridgescope.theory.blocks.law import (
    BlockPrediction,
    assembled,
    checked_problem,
    checked_width,
    require_distinct,
)
from ridgescope.theory.blocks.pairs import symmetric

TOLERANCE = 1e-10  # change of every part of the state in one iteration, relative to its size at infinite width
ADJOINT = 10.0  # times as much for the adjoint, in what its parts contribute: relative accuracy of variances
LOST = "the deep law has no positive kernel at width={:g}, ridge={:g}: too narrow for this depth; use a wider network"


def deep_law(
    kernel: DeepKernel,
    targets: Float64[Tensor, "p c"],
    eval_targets: Float64[Tensor, "t c"] | None = None,
    *,
    width: Number,
    ridge: Number,
    weights: Float64[Tensor, " p"] | None = None,
    start: State | None = None,
    tolerance: float = TOLERANCE,
) -> BlockPrediction:
    """Predict regression with ridge ``ridge`` on the tangent kernel of a network of ``width`` neurons per layer.

    ``weights``: w of the loss (1/P) sum w_i e_i^2, default 1. ``start``: the ``orders`` of a neighbouring (width,
    ridge). ``width = inf`` is the infinite-width kernel. Fields as in `BlockPrediction`; results carry no gradient.
    ``tolerance``: change of the state in the last iteration, relative; a looser one takes fewer iterations.

    Cost: per hidden layer and iteration an eigendecomposition of size 2P and two of size P, 5-15 iterations; the
    adjoints as many products of these sizes, 10-20 times each; then one iteration and its derivative at 7P/4 points for
    every 3P/4 evaluation points, whose eigendecompositions stay of the training points' size.

    Raises ``ValueError`` for width < 1, ridge <= 0, equal training points, and where the law has no positive
    kernel; ``RuntimeError`` where the iteration does not converge.
    """
    return _Problem(kernel, targets, width, ridge, weights, tolerance).predict(eval_targets, start)


class _Problem:
    def __init__(
        self,
        kernel: DeepKernel,
        targets: Tensor,
        width: Number,
        ridge: Number,
        weights: Tensor | None,
        tolerance: float,
    ) -> None:
        self.kernel, self.width, self.tolerance = kernel, float(checked_width(width)), tolerance
        self.size = size = kernel.num_train
        self.targets, self.weights, self.ridge = checked_problem(targets, weights, ridge, size)
        self.limit = kernel.limit()[:size, :size]
        require_distinct(self.limit)
        self.map = DeepMap(kernel.at(torch.arange(size)), 1 / self.width)
        self.diagonal = size * self.ridge / self.weights

    def resolvent(self, state: State) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(torch.diag(self.diagonal) + symmetric(state[0]))
        if int(info) != 0:
            raise ValueError(LOST.format(self.width, self.ridge))
        return torch.cholesky_inverse(factor)

    def predict(self, eval_targets: Tensor | None, start: State | None) -> BlockPrediction:
        with torch.no_grad():
            begin = self.map.start()
            state, iterations = iterate(
                lambda s: self.map(s, self.resolvent(s)),
                begin if start is None else start,
                [1 / float(part.norm()) for part in begin],
                _positive,
                tolerance=self.tolerance,
            )
            inverse = self.resolvent(state)
            if int(torch.linalg.cholesky_ex(symmetric(state[0]))[1]) != 0:
                raise ValueError(LOST.format(self.width, self.ridge))
        weights, alpha = self.weights, inverse @ self.targets
        source = inverse @ (inverse / weights[:, None])
        adjoint, fluctuation, slope = self._adjoints(state, inverse, [alpha @ alpha.T, source])
        predictor, variance = self._evaluate(state, inverse, alpha, adjoint)
        return assembled(
            inverse,
            alpha,
            ((inverse @ fluctuation) * inverse).sum(1),
            (source.diagonal() / weights).sum() + (source * slope).sum(),
            predictor,
            variance,
            limit=self.limit,
            weights=weights,
            ridge=self.ridge,
            eval_targets=eval_targets,
            orders=state,
            iterations=iterations,
        )

    def _adjoints(self, state: State, inverse: Tensor, products: list[Tensor]) -> tuple[State, Tensor, Tensor]:
        """Derivatives of ``tr(B G)``, ``G B G`` in ``products``: of the first in the state's own map, of both in G."""
        leaves = [part.detach().requires_grad_() for part in state]
        resolvent = inverse.detach().requires_grad_()
        image = self.map(leaves, resolvent)
        found, responses = [], []
        for source in products:
            seed = [-source, *(torch.zeros_like(part) for part in state[1:])]

            def back(adjoint: State) -> list[Tensor]:
                moving = [(part, a) for part, a in zip(image, adjoint, strict=True) if part.requires_grad]
                parts, weights = zip(*moving, strict=True)
                inner = [*leaves, resolvent]
                return list(torch.autograd.grad(parts, inner, weights, retain_graph=True, materialize_grads=True))

            def pull(adjoint: State, seed: State = seed) -> State:
                *parts, response = back(adjoint)
                parts[0] = parts[0] - inverse @ response @ inverse
                return [s + b for s, b in zip(seed, parts, strict=True)]

            units = [float(part.norm()) for part in state]
            found.append(iterate(pull, seed, units, tolerance=ADJOINT * self.tolerance)[0])
            responses.append(symmetric(back(found[-1])[-1]))
        return found[0], responses[0], responses[1]

    def _evaluate(self, state: State, inverse: Tensor, alpha: Tensor, adjoint: State) -> tuple[Tensor, Tensor]:
        """Mean predictions (T, C) and variances (T,), in pieces."""
        size, total = self.size, len(self.kernel.inputs)
        measures = self.map.measure(state[1:-1], state[-1], inverse)
        predictions, variances = [alpha[:0]], [alpha[:0, 0]]
        for piece in torch.arange(size, total).split(max(64, 3 * size // 4)):
            index = torch.cat([torch.arange(size), piece])
            mapping = DeepMap(self.kernel.at(index), 1 / self.width)
            with torch.no_grad():
                omegas, _ = mapping.tangent_kernels(measures.extended(len(piece)))
            leaf = torch.nn.functional.pad(inverse, (0, len(piece), 0, len(piece))).requires_grad_()
            image = mapping.rebuild(mapping.measure(omegas, state[-1], leaf))
            parts = [part[:size, :size] if part.ndim == 2 else part for part in image]
            reached = torch.stack([(part * weight).sum() for part, weight in zip(parts, adjoint, strict=True)]).sum()
            # of the training points' map, in G at all points
            response = symmetric(torch.autograd.grad(reached, leaf)[0])
            cross = image[0].detach()[size:, :size]
            reach = torch.cat([-(cross @ inverse), torch.eye(len(piece), dtype=torch.float64)], 1)
            predictions.append(cross @ alpha)
            variances.append(((reach @ response) * reach).sum(1))
        return torch.cat(predictions), torch.cat(variances)


def iterate(
    step: Callable[[State], State],
    state: State,
    units: list[float],
    accept: Callable[[State], bool] = lambda _: True,
    *,
    tolerance: float = TOLERANCE,
    limit: int = 200,
) -> tuple[State, int]:
    """The fixed point of ``step`` by Anderson mixing; a mixed state that is not accepted gives way to a plain step.

    ``units`` bring the parts of the state to one scale. Raises ``RuntimeError`` where the fixed point is not found to
    ``tolerance``: nothing unconverged is returned.
    """
    past: list[Tensor] = []
    moves: list[Tensor] = []
    flat = _flatten(state, units)
    change = math.inf
    for iteration in range(1, limit + 1):
        new = step(state)
        image = _flatten(new, units)
        sizes = [part.numel() for part in new]
        pairs = zip((image - flat).split(sizes), image.split(sizes), strict=True)
        moved, size = (max(float(part.norm()) for part in parts) for parts in zip(*pairs, strict=True))
        change = moved / size if size > 0 else 0.0
        if not math.isfinite(moved):
            raise RuntimeError("the law's iteration left the finite numbers; use a wider network or a larger ridge")
        if change <= tolerance:
            return new, iteration
        past, moves = [*past, image][-HISTORY:], [*moves, image - flat][-HISTORY:]
        flat = mix(past, moves)
        state = _unflatten(flat, new, units)
        if not accept(state):
            flat, state = image, new
    raise RuntimeError(
        f"the law did not converge in {limit} iterations (last change {change:.1e}); "
        "use a wider network or a larger ridge"
    )


def _flatten(state: State, units: list[float]) -> Tensor:
    return torch.cat([unit * part.flatten() for part, unit in zip(state, units, strict=True)])


def _unflatten(flat: Tensor, like: State, units: list[float]) -> State:
    parts = zip(flat.split([part.numel() for part in like]), like, units, strict=True)
    return [part.view(shape.shape) / unit for part, shape, unit in parts]


def _positive(state: State) -> bool:
    if not all(bool(torch.isfinite(part).all()) for part in state):
        return False
    matrices = [symmetric(part) for part in state if part.ndim == 2]
    return all(int(torch.linalg.cholesky_ex(m)[1]) == 0 for m in matrices) and bool((state[-1] > 0).all())
