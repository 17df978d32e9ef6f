"""Where a readout sees each channel of the last layer apart from the others, outputs share their cotangents.

With features ``h[n,o]`` that depend on the image ``z[n,o]`` of channel o alone, as a pooled readout's do,
``d out_c / d z[n,s,o] = w[c,o] psi[n,s,o]`` with the readout's weights w: the positions' sum that makes a gradient is
needed once and not for every output. Of a dense layer, whose z[n,o] is a number, the trace form needs one product of
``sqrt(sum_c w[c,o]^2) psi[n,o]`` where it has C otherwise.
"""

import torch
from torch import Tensor

from ridgescope.models.kernels.structured.layers import Uses
from ridgescope.models.kernels.structured.plan import Plan

ROUNDING = 100  # times eps: a few steps from the image to its features


def common_cotangents(plan: Plan, uses: Uses) -> Tensor | None:
    """``psi`` (n, o, *image) of the last layer for this batch, None where channels mix.

    The features' sum with weights of one goes back as psi, with generic weights r as ``r psi`` if and, but for a set of
    r of measure zero, only if no feature depends on another's channel.
    """
    if plan.channel_readout is None:
        return None
    (last,), readout = uses[plan.channel_readout.last], uses[plan.channel_readout.readout][0]
    image, features = last.output, readout.entered
    if features.ndim != 2 or not features.requires_grad:
        return None
    generator = torch.Generator().manual_seed(0)
    generic = torch.randn(features.shape[1], generator=generator, dtype=torch.float64).to(features)
    psi, mixed = (
        torch.autograd.grad(
            features @ weights, image, torch.ones_like(features[:, 0]), retain_graph=True, allow_unused=True
        )[0]
        for weights in (torch.ones_like(generic), generic)
    )
    if psi is None or mixed is None:
        return None
    expected = psi * generic.view(-1, *[1] * (psi.ndim - 2))
    tolerance = ROUNDING * torch.finfo(psi.dtype).eps
    return psi if bool((mixed - expected).norm() <= tolerance * mixed.norm()) else None


def readout_weights(plan: Plan) -> Tensor:
    """w (c, o) of the outputs asked for."""
    assert plan.channel_readout is not None
    layer = plan.layers[plan.channel_readout.readout].layer
    prefix = f"{plan.channel_readout.readout}." if plan.channel_readout.readout else ""
    return getattr(layer, "weight_scale", 1.0) * plan.params[prefix + "weight"][list(plan.outputs)]
