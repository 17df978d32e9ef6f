"""The law of blocks by example where it holds given something else that is random, averaged over draws of that.

Given the first layer of a network of two, the blocks of the second are independent and `sampled_law` applies; G_j, the
resolvent of draw j, has a law of its own. All that a prediction is made of is the mean over draws, but for variances:

    E (y - f)^2 = mean_j E[(y - f)^2 | j],      Var f = mean_j Var[f | j] + Var_j E[f | j]

so that the risk is split at the mean predictor of all networks. Derivation: docs/theory/finite_width_conv.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.blocks.families import PointKernel
from ridgescope.theory.blocks.law import BlockPrediction
from ridgescope.theory.blocks.linked import LinkedKernel, LinkedProblem
from ridgescope.theory.blocks.sampled import Averages

TOLERANCE = 1e-4  # relative change in one iteration: far below the error of a few draws


@dataclass(frozen=True)
class MixedKernel:
    """Equally likely kernels ``given`` each draw of a lower layer of ``width``; ``limit``: the kernel at width inf."""

    given: Sequence[LinkedKernel]
    limit: PointKernel
    width: int


def mixed_law(
    kernel: MixedKernel,
    targets: Float64[Tensor, "p c"],
    eval_targets: Float64[Tensor, "t c"] | None = None,
    *,
    ridge: Number,
    weights: Float64[Tensor, " p"] | None = None,
    start: list[Tensor] | None = None,
) -> BlockPrediction:
    """Predict regression with ridge ``ridge`` on ``kernel``, averaged over its draws and the blocks given each.

    Arguments and fields as in `sampled_law`, at the kernel's own width; ``start`` may be of any width and number of
    draws. ``test`` is unbiased for any number of draws J >= 1; ``test_bias`` is larger, and ``test_variance`` smaller,
    than with infinitely many by 1/J of the variance between draws. Cost: J times `sampled_law`.
    """
    if not kernel.given:
        size = len(kernel.limit.train)
        raise ValueError(f"a mixture of {size} points needs at least one draw of the lower layer, got none")
    problems = [
        LinkedProblem(given, targets, kernel.width, ridge, weights, kernel.limit, TOLERANCE) for given in kernel.given
    ]
    starts = [start[i : i + 2] for i in range(0, len(start), 2)] if start else [None]
    found = [problem.solve(starts[draw % len(starts)]) for draw, problem in enumerate(problems)]
    return _mean(found).prediction(problems[0].checked, kernel.limit.train, eval_targets)


def _mean(found: Sequence[Averages]) -> Averages:
    def mean(name: str) -> Tensor:
        return torch.stack([getattr(one, name) for one in found]).mean(0)

    def between(name: str) -> Tensor:
        """Variance over draws, summed over outputs."""
        return torch.stack([getattr(one, name) for one in found]).var(0, correction=0).sum(1)

    return Averages(
        mean("inverse"),
        mean("alpha"),
        mean("spread") + between("alpha"),
        mean("slope"),
        mean("predictor"),
        mean("variance") + between("predictor"),
        [order for one in found for order in one.orders],
        max(one.iterations for one in found),
    )
