"""The finite-width law of two convolutions: the law of the second one given the first, averaged over the first.

Given the first layer, the second convolution and the readout are a network of one convolution on the images that the
first one makes, and `channel_kernel` applies to them as it is. What is left are the first layer's own weights: channel
m adds the block

    F_m(x) = sum_s D_m(x, s) phi'(z_m(x, s)) p~(x, s)

with D_m the signal that comes back from the second layer, a sum over its channels. Signals of different m count as
independent of each other and of the second layer's blocks. The first layer's filters are drawn, as many as the network
has; the rest is examples. No network is drawn.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ridgescope.analysis.finite_width_conv import channel_kernel, trained_patches, with_slopes
from ridgescope.models import CNN, infinite_ntk
from ridgescope.models.activations import ACTIVATIONS
from ridgescope.models.layers import ScaledConv2d
from ridgescope.models.patches import Geometry
from ridgescope.theory.blocks import MixedKernel, PointKernel, SampledFamily, SampledKernel

DRAWS = 16  # of the first layer
FEATURES = 2048  # of all examples of a family together, for each draw
FEWEST = 16  # examples of a family
SIGNALS = 128  # channels of the second layer from which examples of signals are put together
PIECE = 16  # of them at once


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

    All weights and biases are trained. ``draws`` of the first layer; ``features`` of all examples and outputs of a
    family together, for each of them. Memory: as many numbers for each point and draw, three times.
    Raises ``ValueError`` for the standard parameterisation and for another number of convolutions.
    """
    if network.depth != 2:
        raise ValueError(f"this law is derived for a CNN with two convolutions, got a CNN of depth {network.depth}")
    if network.parameterisation == "standard":
        raise ValueError(
            "the law of two convolutions is derived for parameterisation='ntk' and 'mup', got 'standard', where the "
            "layers' shares of the kernel depend on the width"
        )
    limit = PointKernel(
        infinite_ntk(network, x_train).ntk,
        infinite_ntk(network, x_eval, x_train).ntk,
        torch.full((len(x_eval),), torch.nan, dtype=torch.float64),
    )
    points = torch.cat([x_train, x_eval]).double().reshape(-1, *network.in_shape)
    given = []
    for draw in range(draws):
        first = _First(network, points, torch.Generator().manual_seed(1000 * seed + draw))
        upper, images = first.rest()
        size = len(x_train)
        kernel = channel_kernel(
            upper,
            images[:size],
            images[size:],
            form=form,
            features=features,
            fewest=max(FEWEST, features // size),
            seed=1000 * seed + 2 * draw,
        )
        rows = first.features(form, features)
        family = SampledFamily(rows[..., :size].contiguous(), rows[..., size:].contiguous())
        given.append(SampledKernel([*kernel.families, family], kernel.fixed))
    return MixedKernel(given, limit, network.width)


class _First:
    """A draw of the first layer. Axes: m channels, n points, s positions, k entries of a trained patch, c outputs."""

    def __init__(self, network: CNN, points: Tensor, generator: torch.Generator) -> None:
        self.network, self.generator, self.width = network, generator, network.width
        first, second = network.hidden
        assert isinstance(first, ScaledConv2d)
        assert isinstance(second, ScaledConv2d)
        self.second = second
        geometry, self.above = Geometry.of(first), Geometry.of(self.second)
        self.image = geometry.positions(*points.shape[2:])
        self.patches = trained_patches(first, points)
        values, self.slopes = self._activate(self._normal(self.width, self.patches.shape[1]), self.patches)
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

    def features(self, form: str, count: int) -> Float64[Tensor, "r k c n"]:
        """Examples of the first layer's blocks; of each channel as many."""
        found = torch.cat(list(self._examples()), 1)  # (m, e, c, k, n)
        rows = found.shape[3] * (1 if form == "full" else self.network.num_outputs)
        wanted = max(1, count // (self.width * rows))
        chosen = torch.rand(self.width, wanted, len(found[0]), generator=self.generator).argsort(2)[..., : self.width]
        signs = torch.randint(2, chosen.shape, generator=self.generator).double() * 2 - 1
        mixing = torch.zeros(self.width, wanted, found.shape[1], dtype=torch.float64)
        mixing.scatter_(2, chosen, signs)
        sums = torch.einsum("mae,meckn->mackn", mixing, found).flatten(0, 1)
        if form == "full":
            return sums.transpose(1, 2)
        return sums.flatten(1, 2)[:, :, None] / self.network.num_outputs**0.5

    def _examples(self) -> Iterator[Float64[Tensor, "m e c k n"]]:
        """What single channels of the second layer bring to the first one's features."""
        network, second, readout = self.network, self.second, self.network.readout
        patches = trained_patches(second, self.outputs)
        positions, outputs = patches.shape[2], network.num_outputs
        scale = readout.weight_std * readout.weight_scale * (network.width / network.kernel_scale) ** 0.5
        if network.pooled:
            scale /= positions
        for _ in range(0, max(SIGNALS, 2 * self.width), PIECE):
            filters = self._normal(PIECE, patches.shape[1])
            _, slopes = self._activate(filters, patches)
            signal = scale * self._normal(PIECE * outputs, 1 if network.pooled else positions).view(PIECE, outputs, -1)
            gates = signal.expand(-1, -1, positions)[:, :, None] * slopes[:, None]  # (e, c, n, s)
            weights = second.weight_scale * filters[:, : second.fan_in]
            back = torch.einsum("ek,ecns->ecnks", weights, gates).flatten(0, 2)
            images = self.above.fold(back, *self.image).view(*gates.shape[:3], self.width, -1)
            yield torch.einsum("ecnms,mns,nks->meckn", images, self.slopes, self.patches)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def _activate(self, filters: Float64[Tensor, "m k"], patches: Float64[Tensor, "n k s"]) -> tuple[Tensor, Tensor]:
        """``phi(z)`` and ``phi'(z)``, (m, n, s)."""
        z = torch.einsum("mk,nks->mns", filters, patches)
        return with_slopes(ACTIVATIONS[self.network.activation].function, z)
