"""The finite-width law of two convolutions: the law of the second one given the first, averaged over the first.

Given the first layer, the second convolution and the readout are a network of one convolution on the images that the
first one makes: its channels n bring readout features and filter features, as in
`ridgescope.analysis.finite_width_conv`. Each of them also brings to the weights of the first layer

    f_n(x) = sum_s D_nm(x, s) phi'(z_m(x, s)) p~(x, s)      for each first channel m,

with D_nm the signal that comes back from it, made of the same gates and readout weights as its filter features: one
block, `ridgescope.theory.blocks.linked`. The first layer's filters are drawn, as many as the network has; the rest is
examples. No network is drawn.
"""

from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ridgescope.analysis.finite_width_conv import Channel, normals, trained_patches, with_slopes
from ridgescope.models import CNN, infinite_ntk
from ridgescope.models.activations import ACTIVATIONS
from ridgescope.models.layers import ScaledConv2d
from ridgescope.models.patches import Geometry
from ridgescope.theory.blocks import (
    LinkedFamily,
    LinkedKernel,
    MixedKernel,
    PointKernel,
    SampledFamily,
    SampledKernel,
)

DRAWS = 16  # of the first layer
FEATURES = 1024  # of all examples of the second layer's filters together, for each draw
SIGNALS = 40  # of all examples and outputs together, at least, for each draw: with few, their squares' spread is missed
READOUTS = 1024  # features of the readout


def two_convolutions_kernel(
    network: CNN,
    x_train: Float[Tensor, " p *shape"],
    x_eval: Float[Tensor, " t *shape"],
    *,
    form: Literal["full", "trace"] = "full",
    draws: int = DRAWS,
    features: int = FEATURES,
    seed: int = 0,
) -> MixedKernel:
    """The random kernel ``empirical_ntk / kernel_scale`` of the CNN's architecture; its weights are not read.

    All weights and biases are trained. ``draws`` of the first layer; ``features`` of all examples of filters together,
    for each of them. Memory: four times as many numbers for each point and draw.
    Raises ``ValueError`` for the standard parameterisation and for another number of convolutions.
    """
    if network.depth != 2:
        raise ValueError(f"this law is derived for a CNN with two convolutions, got a CNN of depth {network.depth}")
    if network.parameterisation == "standard":
        raise ValueError(
            "the law of two convolutions is derived for parameterisation='ntk' and 'mup', got 'standard', where the "
            "layers' shares of the kernel depend on the width"
        )
    points, size = torch.cat([x_train, x_eval]).double().reshape(-1, *network.in_shape), len(x_train)
    limit = _limit(network, points, size)
    given = []
    for draw in range(draws):
        first = FirstLayer(network, points, torch.Generator().manual_seed(1000 * seed + draw))
        given.append(_given(first, size, form, features, 1000 * seed + 2 * draw))
    return MixedKernel(given, limit, network.width)


def _given(first: "FirstLayer", size: int, form: str, features: int, seed: int) -> LinkedKernel:
    """The kernel of networks with this first layer; that of the second layer has its infinite-width limit exactly."""
    upper, images = first.rest()
    channel = Channel(upper, images)
    outputs, copies = channel.outputs, min(channel.outputs, channel.rank)
    read = channel.readout_features(normals(READOUTS // channel.rank, channel.entries, seed))
    count = max(-(-SIGNALS // outputs), features // channel.entries)
    normal = normals(count, channel.entries + channel.signals, seed + 1)
    filters, signal = normal.split([channel.entries, channel.signals], 1)
    signal = signal.view(count, outputs, -1)
    if copies < outputs:  # a channel's features reach as many directions of output space as it has readout positions
        signal = torch.linalg.qr(signal).R
    _, slopes = channel.activate(filters)
    gates = channel.gates(signal, slopes)
    own = torch.einsum("mqsn,nks->mkqn", gates, channel.patches) * (copies / outputs) ** 0.5
    families = [SampledFamily(rows[..., :size], rows[..., size:]) for rows in (read, own)]
    kernel = SampledKernel(families).matched(_limit(upper, images, size))
    second = kernel.families[1]
    own = torch.cat([second.features, second.features_eval], 3) * (outputs / copies) ** 0.5
    below = first.features(filters, gates / channel.scale)
    linked = LinkedFamily(own, below[:, :, :, None], outputs)
    if form == "trace":
        unit = outputs**-0.5
        linked = LinkedFamily(own.flatten(1, 2)[:, :, None] * unit, below[..., None, :] * unit, sides=outputs)
    return LinkedKernel(size, linked, kernel.families[:1], kernel.fixed)


def _limit(network: CNN, points: Tensor, size: int) -> PointKernel:
    """Infinite width, among and with the training points: no more is needed."""
    train, others = points[:size], points[size:]
    nothing = torch.full((len(others),), torch.nan, dtype=torch.float64)
    return PointKernel(infinite_ntk(network, train).ntk, infinite_ntk(network, others, train).ntk, nothing)


class FirstLayer:
    """A draw of the first layer: ``filters`` (m, k). Axes: m channels, n points, s positions, k entries of a patch."""

    def __init__(self, network: CNN, points: Tensor, generator: torch.Generator) -> None:
        self.network, self.width = network, network.width
        first, second = network.hidden
        assert isinstance(first, ScaledConv2d)
        assert isinstance(second, ScaledConv2d)
        self.second = second
        geometry, self.above = Geometry.of(first), Geometry.of(self.second)
        self.image = geometry.positions(*points.shape[2:])
        self.patches = trained_patches(first, points)
        self.filters = torch.randn(self.width, self.patches.shape[1], generator=generator, dtype=torch.float64)
        z = torch.einsum("mk,nks->mns", self.filters, self.patches)
        values, self.slopes = with_slopes(ACTIVATIONS[network.activation].function, z)
        self.outputs = values.transpose(0, 1).unflatten(2, self.image)  # (n, m, h, w)

    def rest(self) -> tuple[CNN, Tensor]:
        """The network above, of one convolution, and the images that it sees."""
        network = self.network
        # sigma of a second layer is that of an input layer, 1, on images as much larger
        sigma = self.second.weight_scale * self.second.fan_in**0.5
        upper = CNN(
            (self.width, *self.image),
            network.num_outputs,
            width=self.width,
            depth=1,
            readout="pool" if network.pooled else "flatten",
            strides=network.strides[1],
            activation=network.activation,
            parameterisation=network.parameterisation,
            weight_std=sigma,
            bias_std=self.second.bias_scale,
            generator=torch.Generator(),
        )
        return upper, sigma * self.outputs

    def features(
        self, filters: Float64[Tensor, "e k"], gates: Float64[Tensor, "e q s n"]
    ) -> Float64[Tensor, "e l g q n"]:
        """What second channels with these filters bring to the weights g of first channels l, times N.

        ``gates``: slope times signal at each position of the second layer, before the readout's scale.
        """
        network, second, readout = self.network, self.second, self.network.readout
        scale = readout.weight_scale * network.width / network.kernel_scale**0.5
        if network.pooled:
            scale /= gates.shape[2]
        # slope times patch at each tap of each second filter; summed over the taps, then over its positions
        images = self.slopes.transpose(0, 1)[:, :, None] * self.patches[:, None]  # (n, l, g, s)
        images = images.flatten(1, 2).unflatten(2, self.image)
        seen = self.above.patches(images).unflatten(1, (self.width, self.patches.shape[1], -1))  # (n, l, g, tap, s)
        weights = scale * second.weight_scale * filters[:, : second.fan_in].unflatten(1, (self.width, -1))
        swept = weights.transpose(0, 1) @ seen.permute(1, 3, 2, 4, 0).flatten(2)  # (l, e, g s n)
        swept = swept.unflatten(2, (self.patches.shape[1], seen.shape[4], -1)).transpose(0, 1)  # (e, l, g, s, n)
        found = torch.zeros(*swept.shape[:3], gates.shape[1], swept.shape[4], dtype=torch.float64)
        for position, gate in enumerate(gates.unbind(2)):
            found += swept[:, :, :, None, position] * gate[:, None, None]
        return found
