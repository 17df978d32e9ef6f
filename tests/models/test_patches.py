"""Cutting patches, folding them back, and the derivative that joins both."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vmap

from ridgescope.models.patches import Geometry, Patches

GEOMETRIES = [
    Geometry((3, 3), (1, 1), (1, 1)),
    Geometry((3, 3), (2, 3), (1, 1)),
    Geometry((5, 2), (2, 1), (2, 0)),
    Geometry((3, 2), (1, 2), (2, 1), (2, 3)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_convolution_is_a_product_with_patches(generator, geometry):
    x = torch.randn(3, 2, 8, 9, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 2, *geometry.kernel, generator=generator, dtype=torch.float64)
    expected = F.conv2d(x, weight, None, geometry.stride, geometry.padding, geometry.dilation)
    product = weight.flatten(1) @ geometry.patches(x)
    torch.testing.assert_close(product.unflatten(2, geometry.positions(8, 9)), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_derivatives_in_both_directions_and_under_vmap(generator, geometry):
    x, v = (torch.randn(3, 2, 8, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    probe = torch.randn(geometry.patches(x).shape, generator=generator, dtype=torch.float64)

    def score(images):
        return (Patches.apply(images, geometry) * probe[: len(images)]).sum()

    # score is linear: its derivative is the transpose of cutting, its directional derivative the score itself
    torch.testing.assert_close((grad(score)(x) * v).sum(), score(v))
    torch.testing.assert_close(jvp(score, (x,), (v,))[1], score(v))
    each = vmap(grad(lambda one: score(one[None])))(x)
    torch.testing.assert_close(each[0], grad(score)(x)[0])
