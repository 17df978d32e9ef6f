"""What the weights of a convolution see at each position, and the way back to the image.

Axes: n images, c channels, i and j rows and columns of the kernel, s = (u, v) positions of the output.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves over an image; each entry is for (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "Geometry":
        assert not isinstance(layer.padding, str)
        (kernel_h, kernel_w), (stride_h, stride_w) = layer.kernel_size, layer.stride
        (pad_h, pad_w), (dilation_h, dilation_w) = layer.padding, layer.dilation
        return cls((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for an image of this size."""
        sizes = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((size + 2 * pad - (k - 1) * gap - 1) // step + 1 for size, k, step, pad, gap in sizes)
        return rows, columns

    def windows(self, images: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, c, i, j, u, v)``, a view of the padded images."""
        pad_h, pad_w = self.padding
        view = F.pad(images, (pad_w, pad_w, pad_h, pad_h))
        for axis in (0, 1):
            reach = (self.kernel[axis] - 1) * self.dilation[axis] + 1
            view = view.unfold(2 + axis, reach, self.stride[axis])[..., :: self.dilation[axis]]
        return view.permute(0, 1, 4, 5, 2, 3)

    def patches(self, images: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, c i j, u v)`` in the order of ``weight.flatten(1)``; one copy."""
        return self.windows(images).flatten(4).flatten(1, 3)

    def fold(self, patches: Tensor, height: int, width: int) -> Tensor:
        """The transpose of `patches`: sums ``(n, c i j, u v)`` into images of this size."""
        return F.fold(patches, (height, width), self.kernel, self.dilation, self.padding, self.stride)


class Patches(torch.autograd.Function):
    """`Geometry.patches` with `Geometry.fold` as derivative: autograd through the view takes three times as long."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, geometry: Geometry) -> Tensor:
        return geometry.patches(images)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        images, ctx.geometry = inputs
        ctx.size = images.shape[2:]

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return ctx.geometry.fold(gradient, *ctx.size), None

    @staticmethod
    def jvp(ctx, tangent, _):  # type: ignore[no-untyped-def]
        return ctx.geometry.patches(tangent)
