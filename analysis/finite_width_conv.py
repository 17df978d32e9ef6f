"""The finite-width law of one convolution: examples of what a channel adds to the tangent kernel.

A channel's filter w is one vector, seen by every position s of every image x. With patch p(x, s), trained patch
``p~ = (w_1 p, b_1)`` and preactivation ``z = w_1 w.p + b_1 b`` its features are, for the readout's weights V,

    readout="flatten"   phi(z(x, s)), one for each position;    sum_s V_s phi'(z(x, s)) p~(x, s)
    readout="pool"      mean_s phi(z(x, s));                    V mean_s phi'(z(x, s)) p~(x, s)

of its readout weights and of its filter: two families, independent since their products are odd in V. A filter has
few entries (9 for a grey image) and decides every position, so the Gram matrix of a block does not concentrate, and the
law is that of `ridgescope.theory.blocks.sampled`, from examples. Filters and V are a scrambled Sobol sequence, carried
to the Gaussian; the mean of the examples is then made the infinite-width kernel exactly. No network is drawn.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ridgescope.models import CNN, infinite_ntk
from ridgescope.models.activations import ACTIVATIONS
from ridgescope.models.layers import ScaledConv2d
from ridgescope.models.patches import Geometry
from ridgescope.theory.blocks import SampledFamily, SampledKernel, point_kernel

FEATURES = 8192  # of all examples of a family together; their error is stated in docs/results/finite_width_conv.md
FEWEST = 64  # examples of a family
PIECE = 2**24  # numbers of features made at once


def channel_kernel(
    network: nn.Module,
    x_train: Float[Tensor, " p *shape"],
    x_eval: Float[Tensor, " t *shape"] | None = None,
    *,
    form: Literal["full", "trace"] = "full",
    features: int = FEATURES,
    fewest: int = FEWEST,
    seed: int = 0,
) -> SampledKernel:
    """The random kernel ``empirical_ntk / kernel_scale`` of the CNN's architecture; its weights are not read.

    Its limit of infinite width is exact, see `SampledKernel.matched`.

    All weights and biases are trained. ``form``: the full kernel of all outputs or its trace form. ``features``: of
    all examples and outputs of a family together, ``fewest``: examples of a family where a channel has many features;
    memory: as many numbers for each point, three times.
    Raises ``ValueError`` for an architecture without a law.
    """
    if not isinstance(network, CNN) or network.depth != 1:
        kind = f"{type(network).__name__} of depth {getattr(network, 'depth', '?')}"
        raise ValueError(f"the law is derived for a CNN with one or two convolutions, got {kind}")
    size = len(x_train)
    points = x_train if x_eval is None else torch.cat([x_train, x_eval])
    examples = channel_examples(network, points, size, form=form, features=features, fewest=fewest, seed=seed)
    return examples.matched(point_kernel(infinite_ntk(network, points).ntk, size))


def channel_examples(
    network: CNN,
    points: Float[Tensor, " n *shape"],
    size: int,
    *,
    form: Literal["full", "trace"],
    features: int,
    seed: int,
    fewest: int = FEWEST,
) -> SampledKernel:
    """`channel_kernel` before its limit is made exact; the first ``size`` points are trained on."""
    channel = Channel(network, points)

    def drawn(rank: int, dimension: int, seed: int) -> Sequence[Tensor]:
        """Gaussian vectors for examples of this rank, in pieces."""
        vectors = normals(max(fewest, features // rank), dimension, seed)
        return vectors.split(max(1, PIECE // (rank * len(points))))

    read = [_compressed(channel.readout_features(part), size) for part in drawn(channel.rank, channel.entries, seed)]
    swept = [
        _compressed(channel.filter_features(part, form), size)
        for part in drawn(channel.entries * channel.outputs, channel.entries + channel.signals, seed + 1)
    ]
    families = [
        SampledFamily(rows[..., :size].contiguous(), rows[..., size:].contiguous())
        for rows in (torch.cat(read), torch.cat(swept))
    ]
    if not network.readout.bias_scale:
        return SampledKernel(families)
    bias = torch.full((len(points),) * 2, network.readout.bias_scale**2 / network.kernel_scale, dtype=torch.float64)
    return SampledKernel(families, point_kernel(bias, size))


class Channel:
    """Axes: m examples, n points, s positions, k entries of a trained patch, c outputs."""

    def __init__(self, network: CNN, points: Tensor) -> None:
        first, self.readout = network.hidden[0], network.readout
        assert isinstance(first, ScaledConv2d)
        patches = trained_patches(first, points.double().reshape(-1, *network.in_shape))
        self.patches, self.activation, self.pooled = patches, ACTIVATIONS[network.activation].function, network.pooled
        self.spread = torch.full((patches.shape[1],), first.weight_std, dtype=torch.float64)
        if first.bias_scale:
            self.spread[-1] = first.bias_std
        self.outputs, self.positions = network.num_outputs, patches.shape[2]
        self.rank = 1 if self.pooled else self.positions
        self.entries, self.signals = patches.shape[1], self.outputs * self.rank
        self.scale = self.readout.weight_scale * (network.width / network.kernel_scale) ** 0.5
        if self.pooled:
            self.scale /= self.positions

    def readout_features(self, normal: Float64[Tensor, "m k"]) -> Float64[Tensor, "m r 1 n"]:
        values, _ = self.activate(normal)
        return self.scale * (values.sum(1, keepdim=True) if self.pooled else values)[:, :, None]

    def filter_features(self, normal: Float64[Tensor, "m l"], form: str) -> Float64[Tensor, "m r q n"]:
        """Full form: the outputs are copies of the points. Trace form: each output's features count 1/C."""
        _, slopes = self.activate(normal[:, : self.entries])
        gates = self.gates(normal[:, self.entries :].view(len(normal), self.outputs, -1), slopes)
        rows = torch.einsum("mcsn,nks->mkcn", gates, self.patches)
        return rows if form == "full" else rows.flatten(1, 2)[:, :, None] / self.outputs**0.5

    def gates(self, signal: Float64[Tensor, "m c r"], slopes: Float64[Tensor, "m s n"]) -> Float64[Tensor, "m c s n"]:
        """Derivatives of the outputs in the preactivations, for these readout weights of standard deviation one."""
        weights = self.scale * self.readout.weight_std * signal
        return weights.expand(-1, -1, self.positions)[..., None] * slopes[:, None]

    def activate(self, normal: Tensor) -> tuple[Tensor, Tensor]:
        """``phi(z)`` and ``phi'(z)``, (m, s, n)."""
        return with_slopes(self.activation, torch.einsum("mk,nks->msn", normal * self.spread, self.patches))


def trained_patches(layer: ScaledConv2d, images: Float64[Tensor, "n c h w"]) -> Float64[Tensor, "n k s"]:
    """What the weights and the bias of a convolution multiply, with their scales."""
    patches = layer.weight_scale * Geometry.of(layer).patches(images)
    if not layer.bias_scale:
        return patches
    return torch.cat([patches, torch.full_like(patches[:, :1], layer.bias_scale)], 1)


def with_slopes(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """``phi(z)`` and ``phi'(z)``; ``z`` is a leaf."""
    z.requires_grad_()
    values = function(z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    return values.detach(), slopes


def _compressed(rows: Float64[Tensor, "m r q n"], size: int) -> Tensor:
    """The same kernel among and with the training points from at most q P features: the rest meets no such point."""
    wanted = rows[..., :size].flatten(2)
    if rows.shape[1] <= wanted.shape[2]:
        return rows
    rotation, _ = torch.linalg.qr(wanted)
    return (rotation.mT @ rows.flatten(2)).unflatten(2, rows.shape[2:])


def normals(count: int, dimension: int, seed: int) -> Float64[Tensor, "m dimension"]:
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
    uniform = engine.draw(count, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
