"""Gradient flow instead of ridge: exact on a kernel matrix, and its deterministic equivalent on a spectrum.

Flow dw/dt = -(1/P) X^T (X w - y) from w = 0: the gradient of (1/2P) sum of squares (for the loss without the
1/2 pass 2t). On K/P with eigenpairs (s_i, u_i) the train residual decays as exp(-t s_i). Ridge has the filter
1/(s + lam) in place of (1 - exp(-t s))/s, so t behaves like 1/lam; the risk of flow is at most 1.69 times
that of ridge at lam = 1/t (arXiv:1810.10082). The population risks are contour integrals over z = -lam of the
two-point ridge equivalent (derived in docs/theory/gradient_flow.md).

Symbols: P samples, C outputs, t time, kappa(z) continued from the positive root at z = -1.5/t, w(z) =
-exp(-tz) dz/(2 pi i). Shapes: contour nodes (Z), modes (D).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ridgescope.theory._checks import Number, as_float64
from ridgescope.theory.pool import checked_gram
from ridgescope.theory.solver import solve_kappa
from ridgescope.theory.spectra import Spectrum, Target


@dataclass(frozen=True)
class KernelFlow:
    """Gradient flow on one kernel matrix, at any time: eigenvalues s of K/P, eigenvectors, ``targets`` (p,
    c).
    """

    eigenvalues: Float[Tensor, " p"]
    vectors: Float[Tensor, "p p"]
    targets: Float[Tensor, "p c"]

    def dual(self, time: Number) -> Float[Tensor, "p c"]:
        """Coefficients of f(x) = k(x) @ dual at ``time`` (inf: minimum-norm interpolation). O(p^2 c)."""
        s, t = self.eigenvalues, _checked_time(time, allow_infinite=True)
        live = s > 0
        safe = torch.where(live, s, 1.0)
        g = torch.where(live, -torch.expm1(-t * safe) / safe, 0.0 if math.isinf(t) else t)
        return self.vectors @ (g[:, None] * (self.vectors.T @ self.targets)) / len(s)

    def train(self, time: Number) -> float:
        """Mean squared train error at ``time``, summed over outputs. O(p^2 c)."""
        decay = torch.exp(-_checked_time(time) * self.eigenvalues)
        return float((decay[:, None] * (self.vectors.T @ self.targets)).square().sum()) / len(decay)


def kernel_flow(gram: Float[Tensor, "p n"], targets: Float[Tensor, "rows c"]) -> KernelFlow:
    """Prepare gradient flow on an unnormalised kernel matrix (p, p) and targets (p, c): one ``eigh``, 9
    p^3.
    """
    gram, targets = checked_gram(gram), as_float64("targets", targets)
    if targets.ndim != 2 or len(targets) != len(gram):
        raise ValueError(f"targets has shape {tuple(targets.shape)}; pass one row for each of {len(gram)} samples")
    values, vectors = torch.linalg.eigh(gram / len(gram))
    return KernelFlow(values.clamp_min(0), vectors, targets)


def _checked_time(time: Number, allow_infinite: bool = False) -> float:
    if not (time >= 0 and (allow_infinite or math.isfinite(time))):
        raise ValueError(f"time={time:g} must be >= 0 and finite; use ridge 0 for the end of the flow")
    return float(time)


@dataclass(frozen=True)
class FlowRisks:
    """Test (with noise) and train risk of gradient flow at one time; ``signal`` and ``noise`` add up to test
    - s2.
    """

    test: float
    train: float
    signal: float
    noise: float


def flow_risks(spectrum: Spectrum, target: Target, *, num_samples: Number, time: Number) -> FlowRisks:
    """Risks of gradient flow stopped at ``time`` (units 1/eigenvalue) on ``num_samples`` samples.

    Accurate to 1e-10 as a deterministic equivalent; that is within 0.5 % of simulation at P = 100-250. Cost:
    Z Newton solves and a Z x D x Z product, Z about 20 sqrt(t eta_max) nodes (at most 6000). No gradient.

    Raises ``ValueError`` for a bulk, bad inputs, and times beyond the node limit.

    >>> from ridgescope.theory import power_law, power_law_target
    >>> spectrum, target = power_law(50, 1.2), power_law_target(50, 2.0, noise=0.1)
    >>> early = flow_risks(spectrum, target, num_samples=30, time=1e-6)
    >>> bool(abs(early.test - float(target.c2.sum()) - 0.1) < 1e-5)
    True
    """
    target.matches(spectrum)
    if float(spectrum.bulk_trace) > 0:
        raise ValueError("gradient flow needs listed modes, got a bulk; list it as one block with multiplicity")
    if not (num_samples > 0 and math.isfinite(num_samples)):
        raise ValueError(f"num_samples={num_samples:g} must be positive and finite; pass the training set's size")
    if _checked_time(time) == 0:
        total = float(target.c2.sum())
        return FlowRisks(total + float(target.s2), total + float(target.s2), total, 0.0)
    eta, c2 = spectrum.eta.detach(), target.c2.detach()
    m = torch.ones_like(eta) if spectrum.counts is None else spectrum.counts.detach()
    edge = float(eta.max()) * (1 + math.sqrt(float(m.sum()) / num_samples)) ** 2
    z, dz = contour(edge, time)
    kappa = continued_kappa(eta, m, num_samples, z)
    return _integrate(eta, m, c2, float(target.s2), num_samples, time, z, dz, kappa)


def contour(edge: Number, time: Number) -> tuple[Complex[Tensor, " z"], Complex[Tensor, " z"]]:
    """Upper half of the ellipse with foci 0 and the bulk's ``edge``, which passes -1.5/t: nodes and dz per
    node.
    """
    # z = edge/2 (1 + cosh(mu + i theta)) is analytic up to the foci: the midpoint rule converges like exp(-n
    # mu)
    mu = math.acosh(1 + 3 / (time * edge))
    half = max(100, math.ceil(16 / mu))
    if half > 3000:
        raise ValueError(f"time={time:g} needs {2 * half} contour nodes (limit 6000); pass a ridge of 1/time instead")
    # from -1.5/t to the upper edge, clockwise: the weights below are for z running back to -1.5/t
    theta = math.pi * (1 - (torch.arange(half, dtype=torch.float64) + 0.5) / half)
    w = torch.complex(torch.full_like(theta, mu), theta)
    return edge / 2 * (1 + torch.cosh(w)), edge / 2 * torch.sinh(w) * 1j * (math.pi / half)


def continued_kappa(
    eta: Tensor, m: Tensor, p: Number, z: Complex[Tensor, " z"], pool: Number = math.inf
) -> Complex[Tensor, " z"]:
    """kappa (1 - df1(kappa)/P)/(1 - df1(kappa)/M) = -z, by Newton from node to node; the first is the positive root.

    M = ``pool``: infinite for a population's spectrum, the number of points where ``eta`` is that of a pool.
    """
    points = None if math.isinf(pool) else eta.new_tensor([pool])
    start = solve_kappa(eta, m, eta.new_zeros(()), -z[:1].real, eta.new_tensor([[p]]), points)
    k, previous = complex(float(start), 0.0), complex(float(z[0].real), 0.0)
    roots = []
    for node in z.tolist():
        k = _follow(eta, m, (p, pool), k, previous, node, 0)
        roots.append(k)
        previous = node
    return torch.tensor(roots, dtype=torch.complex128)


def _follow(
    eta: Tensor, m: Tensor, sizes: tuple[Number, Number], k: complex, start: complex, end: complex, depth: int
) -> complex:
    """The root at ``end`` on the branch of the root ``k`` at ``start``; the way is halved until Newton is
    tame.
    """
    _, slope = _equation(eta, m, sizes, k, start)
    guess = k - (end - start) / slope
    root, first = guess, math.inf
    for _ in range(30):
        value, slope = _equation(eta, m, sizes, root, end)
        step = value / slope
        root -= step
        first = min(first, abs(step) / abs(root)) if math.isinf(first) else first
        if abs(step) < 1e-15 * abs(root):
            break
    # a corrector step below a tenth keeps the branch: Im kappa has one sign, and roots repel at square-root
    # points
    if first < 0.1 and abs(step) < 1e-12 * abs(root):
        return root
    if depth > 40:
        raise RuntimeError(f"gradient flow: kappa(z) lost at z = {end:.3e}; please report this spectrum")
    middle = (start + end) / 2
    halfway = _follow(eta, m, sizes, k, start, middle, depth + 1)
    return _follow(eta, m, sizes, halfway, middle, end, depth + 1)


def _equation(eta: Tensor, m: Tensor, sizes: tuple[Number, Number], k: complex, z: complex) -> tuple[complex, complex]:
    """k (1 - d1/P) + z (1 - d1/M) and its derivative in k."""
    p, pool = sizes
    share = 1 / pool  # complex numbers over an infinite one are not zero but NaN
    learned = eta / (eta + k)
    d1, d2 = complex((m * learned).sum()), complex((m * learned**2).sum())
    return k * (1 - d1 / p) + z * (1 - d1 * share), 1 - d2 / p + z * (d1 - d2) / k * share


def _integrate(
    eta: Tensor, m: Tensor, c2: Tensor, s2: Number, p: Number, t: Number, z: Tensor, dz: Tensor, kappa: Tensor
) -> FlowRisks:
    # the lower half is the mirror image: append it for the double sum
    weight = -torch.exp(-t * z) * dz / (2j * math.pi)
    inverse = 1 / (eta + kappa[:, None])
    full = torch.cat([inverse, inverse.conj()])
    factor = torch.cat([weight * kappa / -z, (weight * kappa / -z).conj()])
    gamma = (full * (m * eta**2)) @ full.T / p
    two_point = (full * c2) @ full.T / (1 - gamma)
    signal = float((factor @ two_point @ factor).real)
    ratio = kappa / -z
    learned = (inverse * (m * eta)).sum(1)
    noise = 2 * s2 / p * float((-dz / (2j * math.pi) * torch.expm1(-t * z) ** 2 / z * ratio * learned).sum().real)
    density = (inverse * c2).sum(1) + s2 / p * ratio * (inverse * m).sum(1)
    train = 2 * float((-torch.exp(-2 * t * z) * dz / (2j * math.pi) * density).sum().real)
    train += s2 * (p - float(m.sum())) / p
    return FlowRisks(signal + noise + s2, train, signal, noise)
