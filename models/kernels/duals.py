"""What an activation makes of a Gaussian's covariance.

For ``(u, v)`` Gaussian with covariance ``[[q1, k], [k, q2]]`` the *dual* is ``E[phi(u) phi(v)]``, and its
derivative in k is ``E[phi'(u) phi'(v)]`` (Price's theorem). Closed forms for ReLU, erf and GELU; for tanh the
Hermite series, which any smooth activation has. All in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ridgescope.models.activations import gaussian_nodes

# arccos(1 - x) turns rounding x into an angle sqrt(2 x), so squared sines below this count as zero. For two
# inputs that really are so close the derivative is then off by at most sqrt(1e-14) / (2 pi) = 2e-8.
PARALLEL = 1e-14


@dataclass(frozen=True)
class Dual:
    """``pair(k, prepare(q1, q), prepare(q2, q))`` is the dual and its derivative, entry by entry, broadcast.

    ``prepare`` does once per input what would otherwise be repeated for every pair, and may put axes in
    front; ``q`` is the largest variance on either side.
    """

    prepare: Callable[[Tensor, float], Tensor]
    pair: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

    def __call__(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        largest = max(float(q1.max()), float(q2.max()))
        return self.pair(k, self.prepare(q1, largest), self.prepare(q2, largest))


def _relu_norm(q: Tensor, _: float) -> Tensor:
    # a dead pixel has q = k = 0; the floor makes its cosine 0 instead of NaN
    return q.clamp_min(torch.finfo(q.dtype).tiny).sqrt()


def _relu_pair(k: Tensor, norm1: Tensor, norm2: Tensor) -> tuple[Tensor, Tensor]:
    """``norm1 norm2 (sin t + (pi - t) cos t) / (2 pi)`` and ``(pi - t) / (2 pi)`` at the angle t.

    Source: Cho and Saul 2009, the arc-cosine kernels of degree 1 and 0.
    """
    norm = norm1 * norm2
    cosine = k / norm
    sine = F.threshold(1 - cosine * cosine, PARALLEL, 0.0, inplace=True).sqrt_()
    derivative = torch.atan2(sine, -cosine).mul_(1 / (2 * math.pi))  # pi - t is the angle at -cos t
    dual = cosine.mul_(derivative).add_(sine, alpha=1 / (2 * math.pi)).mul_(norm)
    return dual, derivative


def _erf_pair(k: Tensor, volume1: Tensor, volume2: Tensor) -> tuple[Tensor, Tensor]:
    """``(2/pi) arcsin(2 k / sqrt((1 + 2 q1)(1 + 2 q2)))`` and its derivative.

    Source: Williams 1997, Computing with infinite networks, equation 11.
    """
    volume = volume1 * volume2
    dual = torch.asin(2 * k / volume.sqrt()).mul_(2 / math.pi)
    return dual, (volume - 4 * k * k).rsqrt_().mul_(4 / math.pi)


def _gelu_pair(k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """Dual of ``z Phi(z)``, with ``r^2 = (1 + q1)(1 + q2) - k^2`` and ``t = arctan(k / r)``.

    Source: Tsuchida et al. 2020, arXiv:2002.08517; the derivative is that of the expression.
    """
    volume, product = (1 + q1) * (1 + q2), q1 * q2
    r2 = volume - k * k
    r = r2.sqrt()
    angle = torch.atan2(k, r)
    dual = k / 4 + ((k * k + product * r2) / (volume * r) + k * angle) / (2 * math.pi)
    slope = k / r * (1 / r2 + (1 - product) / volume + 1)
    return dual, 0.25 + (slope + angle) / (2 * math.pi)


def hermite_dual(function: Callable[[Tensor], Tensor]) -> Dual:
    """The dual of a smooth odd function as ``sum_j a_j(q1) a_j(q2) c^j``, odd j, ``c = k / sqrt(q1 q2)``.

    ``a_j(q) = E[function(sqrt(q) z) h_j(z)]`` with orthonormal Hermite polynomials ``h_j``. For poles at
    ``+- i pi / 2`` (tanh) a_j decays as ``exp(-(pi/2) sqrt(j / q))``: degree ``140 max(q)`` reaches rounding.
    Cost: 350 max(q) operations per entry, and per q about 130 sqrt(max(q)) evaluations of the function.
    """
    return Dual(lambda q, largest: _hermite_coefficients(function, q, largest), _hermite_pair)


def _hermite_pair(k: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    norm = (left[0] * right[0]).clamp_min_(torch.finfo(k.dtype).tiny)
    cosine = (k / norm).clamp_(-1.0, 1.0)
    square = cosine * cosine
    value, slope = torch.zeros_like(cosine), torch.zeros_like(cosine)
    # Horner in c^2 for value / c and d value / d c, where i stands for j = 2 i - 1
    for i in reversed(range(1, len(left))):
        product = left[i] * right[i]
        value.mul_(square).add_(product)
        slope.mul_(square).add_(product, alpha=2 * i - 1)
    return value.mul_(cosine), slope.div_(norm)


def _hermite_coefficients(function: Callable[[Tensor], Tensor], q: Tensor, largest: float) -> Tensor:
    """``sqrt(q)``, then ``a_1(q), a_3(q), ...``, stacked in front of q's axes."""
    largest = max(largest, 1.0)
    degree = 10 + math.ceil(140 * largest)
    # w(z) |h_j(z)| < exp(-z^2 / 4) for all j: below rounding at 13. Poles at pi / (2 sqrt(q)) ask for the step
    nodes, weights = gaussian_nodes(0.1 / math.sqrt(largest), cutoff=13.0)
    nodes, weights = nodes[nodes > 0], 2 * weights[nodes > 0]  # the integrand is even
    polynomials = [torch.ones_like(nodes), nodes]
    for j in range(1, degree - 1):
        polynomials.append((nodes * polynomials[j] - math.sqrt(j) * polynomials[j - 1]) / math.sqrt(j + 1))
    basis = (torch.stack(polynomials[1::2]) * weights).to(q.device)
    nodes = nodes.to(q.device)
    scales = q.sqrt().flatten()
    coefficients = [basis @ function(nodes[:, None] * some) for some in scales.split(4096)]
    return torch.cat([scales[None], torch.cat(coefficients, dim=1)]).view(-1, *q.shape)


DUALS: dict[str, Dual] = {
    "relu": Dual(_relu_norm, _relu_pair),
    "erf": Dual(lambda q, _: 1 + 2 * q, _erf_pair),
    "gelu": Dual(lambda q, _: q, _gelu_pair),
    "tanh": hermite_dual(torch.tanh),
}
