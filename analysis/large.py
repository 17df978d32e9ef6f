"""Kernel ridge regression with a network's full tangent kernel on more inputs than a Gram matrix can serve.

Letters: P training points, C outputs, s kernel scale, lam ridge. The kernel is divided by s.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ridgescope.models import NTKProducts
from ridgescope.theory import StochasticResolvent, conjugate_gradients, nystrom, stochastic_resolvent


@dataclass(frozen=True)
class LargeKernelRidge:
    """``dual`` (P C,) as in `FullKernelRidge`; kappa, df1, df2 with their intervals; the training risk.

    ``linearised_predict(network, params, x, dual / s, x_eval)`` predicts. ``residual`` and ``steps`` are those of the
    conjugate gradients.
    """

    dual: Tensor
    train: float
    resolvent: StochasticResolvent
    residual: float
    steps: int


def large_kernel_ridge(
    network: nn.Module,
    parameters: dict[str, Tensor] | None,
    inputs: Shaped[Tensor, " n *shape"],
    targets: Float[Tensor, "n c"],
    ridge: float,
    *,
    kernel_scale: float = 1.0,
    rank: int = 200,
    probes: int = 32,
    tolerance: float = 1e-6,
    memory: str | int | float | None = None,
    generator: torch.Generator,
) -> LargeKernelRidge:
    """Fit without forming a kernel: ``rank`` products for a preconditioner, then one per step.

    Memory: ``memory`` and ``(3 rank + 5 C + 3 probes) P C`` numbers. Raises as `NTKProducts`,
    `conjugate_gradients` and `stochastic_resolvent` do.
    """
    products = NTKProducts(network, parameters, inputs, memory=memory)
    samples = len(inputs)

    def apply(v: Tensor) -> Tensor:
        return products(v.to(products.dtype)).double() / (kernel_scale * samples)

    sketch = nystrom(apply, len(products), min(rank, len(products)), generator=generator)
    wanted = targets.double().T.reshape(-1, 1)
    solved = conjugate_gradients(apply, wanted, ridge=ridge, preconditioner=sketch, tolerance=tolerance)
    resolvent = stochastic_resolvent(
        apply, len(products), ridge=ridge, num_samples=samples, probes=probes, generator=generator
    )
    power = float(solved.solution.square().sum()) / samples
    return LargeKernelRidge(solved.solution[:, 0] / samples, ridge**2 * power, resolvent, solved.residual, solved.steps)
