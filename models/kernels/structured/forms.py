"""The forms in which a layer's part of the Jacobian is kept (axes as in `ridgescope.models.kernels.structured.layers`;
c is 1 in the trace form, where the outputs are merged into o):

    Gated      one position: K[c,p;e,q] += (d[c,p].d[e,q]) (a[p].a[q])
    Diagonal   the readout, whose d[c] is the c-th unit vector: K[c,p;c,q] += a[p].a[q]
    Explicit   the gradients themselves, K[c,p;e,q] += g[c,p].g[e,q]
    Common     gradients that differ between outputs by one factor for each channel: g[c,p] = w[c,o] g[p]
    Scaled     in the trace form, one position whose d differ so: K[p;q] += (sum_co w[c,o]^2 d[p,o] d[q,o]) (a[p].a[q])
    Spatial    several positions, kept as (a, d) because the gradients would be larger
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gated:
    inputs: Tensor  # (n, k)
    cotangents: Tensor  # (c, n, o)


@dataclass(frozen=True)
class Diagonal:
    inputs: Tensor  # (n, k)
    repeats: int  # c in the trace form, else 1


@dataclass(frozen=True)
class Explicit:
    gradients: Tensor  # (c, n, entries)


@dataclass(frozen=True)
class Common:
    gradients: Tensor  # (n, o, k)
    weights: Tensor  # (outputs, o)
    trace: bool

    def explicit(self) -> Explicit:
        return Explicit(expanded(self.gradients, self.weights, self.trace))


@dataclass(frozen=True)
class Scaled:
    inputs: Tensor  # (n, k)
    cotangents: Tensor  # (n, o)
    weights: Tensor  # (outputs, o)

    def gated(self) -> Gated:
        return Gated(self.inputs, expanded(self.cotangents[:, :, None], self.weights, trace=True))


@dataclass(frozen=True)
class Spatial:
    inputs: Tensor  # (n, s, k)
    cotangents: Tensor  # (c, n, s, o)


Factor = Gated | Diagonal | Explicit | Common | Scaled | Spatial


def expanded(gradients: Tensor, weights: Tensor, trace: bool) -> Tensor:
    """``w[c,o] g[n,o,k]`` as `Explicit` keeps it."""
    if trace:
        return (weights[:, :, None] * gradients[:, None]).flatten(1)[None]
    return (weights[:, None, :, None] * gradients).flatten(2)


def cut(factor: Factor, rows: slice) -> Factor:
    """The factor of some of its inputs, as views."""
    if isinstance(factor, Diagonal):
        return Diagonal(factor.inputs[rows], factor.repeats)
    if isinstance(factor, Explicit):
        return Explicit(factor.gradients[:, rows])
    if isinstance(factor, Common):
        return Common(factor.gradients[rows], factor.weights, factor.trace)
    if isinstance(factor, Scaled):
        return Scaled(factor.inputs[rows], factor.cotangents[rows], factor.weights)
    return type(factor)(factor.inputs[rows], factor.cotangents[:, rows])


# The spatial products run at about half the speed of one large matrix product (benchmarks/kernel_entk.py)
SPATIAL_PENALTY = 2


def prefers_spatial(positions: int, fan_in: int, fan_out: int, num_outputs: int, trace: bool) -> bool:
    """Whether products over pairs of positions need less time than explicit gradients, per pair of inputs."""
    s, c = positions, num_outputs
    if trace:
        return SPATIAL_PENALTY * s * s * (fan_in + c * fan_out) < c * fan_out * fan_in
    spatial = s * s * fan_in + (s * s * c + c * c * s) * fan_out
    return SPATIAL_PENALTY * spatial < c * c * fan_out * fan_in
