"""Risk attribution for kernels of any network: no infinite-width kernel is known, so the average over seeds stands in.

With S seeds of width N, the mean kernel has the fluctuations of width S N. Measured against the mean of the *others*,
of width (S-1) N, a kernel shows 1/N_hat = 1/N - 1/((S-1) N); relative to the mean of all, which takes the place of
infinite width, its width is 1/N' = 1/N - 1/(S N) = (S-1)^2/(S (S-2)) 1/N_hat.

Letters: S seeds, D draws, M points, T of them for testing, P samples.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.analysis.attribution import attribute, predicted_cross_risks
from ridgescope.theory import effective_width, kernel_ridge, pool_estimator, resolvent_estimate
from ridgescope.train.errors import UserError


def attribute_kernels(
    grams: Sequence[Float64[Tensor, "m m"]],
    targets: Float64[Tensor, "m c"],
    *,
    size: int,
    ridge: float,
    num_draws: int,
    seed: int = 0,
    tolerance: float = 0.15,
) -> list[dict[str, Any]]:
    """The terms of the risk of kernel ridge regression over seeds (one Gram matrix each) and draws of P = ``size``.

    A third of the points is the test set, the rest the pool. Rows as of ``attribution.attribute``; the theory's value
    is missing where no effective width can be had. S D Cholesky factorisations of P points, S D eigendecompositions.

    Raises ``UserError`` with fewer than three seeds or draws, or too few points.
    """
    num_seeds, m = len(grams), len(targets)
    if num_seeds < 3 or num_draws < 3:
        raise UserError(
            f"{num_seeds} seeds and {num_draws} draws cannot be split into terms; use at least num_seeds=3 num_draws=3"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(m, generator=generator)
    test, pool = order[: m // 3], order[m // 3 :]
    if size > len(pool):
        raise UserError(f"size={size} exceeds the {len(pool)} points that {m} leave for training; pass more points")
    draws = [pool[torch.randperm(len(pool), generator=generator)[:size]] for _ in range(num_draws)]
    mean = sum(grams[1:], start=grams[0]) / num_seeds
    residuals, inverse_widths = [], []
    for gram in grams:
        others = (num_seeds * mean - gram) / (num_seeds - 1)
        for train in draws:
            fit = kernel_ridge(gram[train][:, train], targets[train], ridge)
            residuals.append(gram[test][:, train] @ fit.dual - targets[test])
            inverse_widths.append(_inverse_width(gram, others, train, ridge))
    labels = [(s, d) for s in range(num_seeds) for d in range(num_draws)]
    known = [value for value in inverse_widths if value is not None]
    predicted = None
    if len(known) > len(inverse_widths) / 2:
        relative = (num_seeds - 1) ** 2 / (num_seeds * (num_seeds - 2)) * sum(known) / len(known)
        estimator = pool_estimator(mean[pool][:, pool], targets[pool])
        predicted = predicted_cross_risks(estimator, size, ridge, relative)
    return attribute(
        torch.stack(residuals),
        [s for s, _ in labels],
        [d for _, d in labels],
        predicted=predicted,
        tolerance=tolerance,
        seed=seed,
    )


def _inverse_width(gram: Tensor, others: Tensor, train: Tensor, ridge: float) -> float | None:
    own = torch.linalg.eigvalsh(gram[train][:, train] / len(train)).clamp_min(0)
    limit = torch.linalg.eigvalsh(others[train][:, train] / len(train)).clamp_min(0)
    try:
        return effective_width(limit, resolvent_estimate(own, ridge=ridge).df1, ridge).inverse_width
    except ValueError:  # more degrees of freedom than the others' mean has
        return None
