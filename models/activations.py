"""The pointwise nonlinearities, each with the weight scale that keeps a Gaussian's variance.

A preactivation ``z ~ N(0, 1)`` followed by ``phi`` and weights of standard deviation ``gain / sqrt(fan_in)``
has unit variance again, where ``gain^-2 = E[phi(z)^2]``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """``function`` acts entry by entry; ``gain = E[function(z)^2]^(-1/2)`` for ``z ~ N(0, 1)``."""

    name: str
    function: Callable[[Tensor], Tensor]
    gain: float


def gaussian_nodes(step: float = 0.1, cutoff: float = 12.0) -> tuple[Tensor, Tensor]:
    """Nodes ``z`` and weights ``w`` (float64) with ``E[f(z)] = sum_k w_k f(z_k)`` for ``z ~ N(0, 1)``.

    The trapezoidal rule: for ``f`` analytic in ``|Im z| < a`` its error is ``exp(-2 pi a / step)``, that is
    below rounding for tanh (a = pi/2), where Gauss-Hermite needs hundreds of nodes.
    Source: Trefethen and Weideman 2014, SIAM Review 56, section 5.
    """
    count = math.ceil(cutoff / step)
    nodes = step * torch.arange(-count, count + 1, dtype=torch.float64)
    weights = torch.exp(-(nodes**2) / 2)
    return nodes, weights / weights.sum()


def _gain(function: Callable[[Tensor], Tensor]) -> float:
    nodes, weights = gaussian_nodes()
    return float(weights @ function(nodes) ** 2) ** -0.5


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("relu", torch.relu, math.sqrt(2.0)),
    "erf": Activation("erf", torch.erf, _gain(torch.erf)),
    "gelu": Activation("gelu", F.gelu, _gain(F.gelu)),
    "tanh": Activation("tanh", torch.tanh, _gain(torch.tanh)),
}
