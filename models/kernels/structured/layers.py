"""A layer's gradient as a sum over positions: ``d out_c / d [W, b] = sum_s d_c(s) (x) a(s)``.

The positions s are the pixels of a convolution (a is then the patch under the kernel), the tokens of a linear
layer, and the uses of a layer that is called more than once; a plain dense layer has one. With scales and
bias put into a, every supported layer looks the same to the contraction. A convolution is itself run from its
patches, as ``[W, b] a``, so that they are cut once.

Axes: n inputs, s positions, k entries of a (fan-in, and one for a bias), o entries of d (fan-out), c outputs.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.grad import conv2d_input, conv2d_weight

from ridgescope.models.kernels.checks import require_matrix
from ridgescope.models.layers import ScaledConv2d, ScaledLinear
from ridgescope.models.patches import Geometry

Supported = nn.Linear | nn.Conv2d


@dataclass
class Use:
    """One call of a layer: what entered it, its output, and what the network went on with, that or a copy."""

    layer: Supported
    entered: Tensor  # with its graph
    output: Tensor = field(init=False)
    passed_on: Tensor = field(init=False)

    @property
    def input(self) -> Tensor:
        return self.entered.detach()

    @cached_property
    def inputs(self) -> Tensor:
        """``a``, shape (n, s, k)."""
        return layer_inputs(self.layer, self.input)

    def is_outcome(self, outputs: Tensor) -> bool:
        """Whether the network returned this very tensor, and nothing wrote into it."""
        return outputs is self.passed_on and outputs._version == 0


Uses = dict[str, list[Use]]


def supported_layers(model: nn.Module) -> dict[str, Supported]:
    """Layers whose gradient has the form above; types must match exactly, as a subclass may do anything."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Supported)
        and _known(module)
        and "forward" not in vars(module)  # replaced on this very object
        and all(owners[id(parameter)] == 1 for parameter in module.parameters())  # no weights tied across layers
    }


def _known(module: Supported) -> bool:
    if isinstance(module, nn.Linear):
        return type(module) in (nn.Linear, ScaledLinear)
    plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    return type(module) in (nn.Conv2d, ScaledConv2d) and plain and not isinstance(module.padding, str)


@contextmanager
def recorded(layers: Mapping[str, Supported], *, copies: bool) -> Iterator[Uses]:
    """Collect every call of the layers; what they return stays differentiable from their outputs on.

    ``copies``: the network goes on with copies of the preactivations, which an in-place activation may overwrite.
    """
    uses: Uses = {name: [] for name in layers}

    def call(name: str, layer: Supported, x: Tensor) -> Tensor:
        use = Use(layer, x)
        if layer.weight.requires_grad:
            use.output = type(layer).forward(layer, x)  # type: ignore[arg-type]
        elif isinstance(layer, nn.Conv2d) and runs_from_patches(x):
            use.output = _convolve(layer, x, use.inputs)
        elif isinstance(layer, ScaledLinear):
            use.output = _apply(layer, x)
        else:
            use.output = type(layer).forward(layer, x)  # type: ignore[arg-type]
        if not use.output.requires_grad:
            use.output.requires_grad_()
        use.passed_on = use.output.clone() if copies else use.output
        uses[name].append(use)
        return use.passed_on

    for name, layer in layers.items():
        layer.forward = partial(call, name, layer)  # type: ignore[method-assign]
    try:
        yield uses
    finally:
        for layer in layers.values():
            del layer.forward


def run_recorded(
    model: nn.Module, params: Mapping[str, Tensor], layers: Mapping[str, Supported], x: Tensor, *, copies: bool = True
) -> tuple[Tensor, Uses]:
    """Outputs ``(n, c)`` with their graph, and what each layer saw.

    Without ``copies`` an output that the network wrote into has another version than 0 afterwards.
    """
    with torch.enable_grad(), recorded(layers, copies=copies) as uses:
        outputs = functional_call(model, dict(params), (x,))
        require_matrix(outputs, len(x))
        return outputs, uses


def layer_inputs(layer: Supported, x: Tensor) -> Tensor:
    """``a``: inputs or patches, scaled and with the bias's entry, shape (n, s, k)."""
    scale, bias_scale = getattr(layer, "weight_scale", 1.0), getattr(layer, "bias_scale", 1.0)
    if isinstance(layer, nn.Linear):
        rows = scale * x.reshape(len(x), -1, x.shape[-1])
        return rows if layer.bias is None else F.pad(rows, (0, 1), value=bias_scale)
    windows = Geometry.of(layer).windows(scale * x)
    fan_in, positions = windows.shape[1:4].numel(), windows.shape[4:].numel()
    a = x.new_empty(len(x), fan_in + (layer.bias is not None), positions)
    a[:, :fan_in].view(windows.shape).copy_(windows)
    a[:, fan_in:] = bias_scale
    return a.transpose(1, 2)


def stacked_inputs(uses: list[Use]) -> Tensor:
    """``a`` over all uses, shape (n, s, k)."""
    return torch.cat([use.inputs for use in uses], dim=1) if len(uses) > 1 else uses[0].inputs


def stacked_sizes(uses: list[Use]) -> tuple[int, int]:
    """s and k of `stacked_inputs`."""
    layer = uses[0].layer
    outputs = [use.output[0].numel() for use in uses]
    return sum(outputs) // layer.weight.shape[0], layer.weight[0].numel() + (layer.bias is not None)


def _convolve(layer: nn.Conv2d, x: Tensor, a: Tensor) -> Tensor:
    weight = layer.weight.detach()
    rows = weight.flatten(1)
    stacked = rows if layer.bias is None else torch.cat([rows, layer.bias.detach()[:, None]], dim=1)
    scaled = getattr(layer, "weight_scale", 1.0) * weight
    return _Convolution.apply(x, a.transpose(1, 2), stacked, scaled, Geometry.of(layer))


def _apply(layer: ScaledLinear, x: Tensor) -> Tensor:
    """In an order whose backward pass has the weight on the right: on its left it takes 17 times as long for a few
    inputs (MKL, 2 columns)."""
    output = layer.weight_scale * (x @ layer.weight.mT)
    return output if layer.bias is None else output + layer.bias_scale * layer.bias


class _Convolution(torch.autograd.Function):
    """``[W, b] a`` for patches a of an image that are there already, differentiable in the image."""

    @staticmethod
    def forward(ctx, image, patches, stacked, weight, geometry):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.shape = geometry, image.shape
        return (stacked @ patches).unflatten(2, geometry.positions(*image.shape[2:]))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (weight,) = ctx.saved_tensors
        geometry = ctx.geometry
        image = conv2d_input(ctx.shape, weight, gradient, geometry.stride, geometry.padding)
        return image, None, None, None, None


def put_gradients(out: Tensor, uses: list[Use], gradients: list[Tensor]) -> None:
    """``sum_s d(s) (x) a(s)`` of each output and input into ``out``, shape (c, n, o, k), from (c, n, ...)."""
    layer = uses[0].layer
    if len(uses) == 1 and isinstance(layer, nn.Conv2d) and not cuts_patches(uses[0]):
        fan_in = layer.weight[0].numel()
        weights = _grouped_gradients(layer, uses[0].input, gradients[0])
        torch.mul(weights, getattr(layer, "weight_scale", 1.0), out=out[..., :fan_in])
        if layer.bias is not None:
            torch.mul(gradients[0].sum((3, 4)), getattr(layer, "bias_scale", 1.0), out=out[..., -1])
        return
    a = stacked_inputs(uses)
    for one, d in zip(out, layer_cotangents(layer, gradients), strict=True):
        if one.dtype == a.dtype:
            torch.bmm(d.transpose(1, 2), a, out=one)
        else:
            one.copy_(torch.bmm(d.transpose(1, 2), a))


def runs_from_patches(x: Tensor) -> bool:
    """On a CPU torch convolves quickly in single precision only."""
    return x.dtype == torch.float64 and x.device.type == "cpu"


def cuts_patches(use: Use) -> bool:
    """Whether a convolution's gradients are made from patches. In single precision on a CPU torch's grouped
    convolution is faster, unless images are small or have a few channels."""
    x, layer = use.input, use.layer
    grouped = x.dtype == torch.float32 and x.device.type == "cpu" and use.output.shape[2:].numel() >= 400
    return not (grouped and layer.weight.shape[1] >= 8)


def _grouped_gradients(layer: nn.Conv2d, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradients in the weight for each output and image, (c, n, o, k): images are groups of one convolution, and
    outputs further channels."""
    assert not isinstance(layer.padding, str)
    c, n, o, *size = gradient.shape
    shape = (n * c * o, *layer.weight.shape[1:])
    stacked = (x.reshape(1, -1, *x.shape[2:]), gradient.transpose(0, 1).reshape(1, -1, *size))
    weights = conv2d_weight(stacked[0], shape, stacked[1], layer.stride, layer.padding, layer.dilation, groups=n)
    return weights.view(n, c, o, -1).transpose(0, 1)


def cotangents_of(outputs: Tensor, rows: Sequence[int], uses: list[Use]) -> list[Tensor]:
    """``d out_c / d output`` of each use, (c, n, ...), for the outputs c in ``rows``; the graph is kept."""
    if not uses:
        return []
    tensors = [use.output for use in uses]
    if len(rows) == 1:
        return [one[None] for one in _one_by_one(outputs, rows[0], tensors)]
    seeds = outputs.new_zeros(len(rows), *outputs.shape)
    for seed, row in zip(seeds, rows, strict=True):
        seed[:, row] = 1
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap without a batching rule
            found = torch.autograd.grad(
                outputs, tensors, seeds, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a backward pass that vmap cannot follow
        return [torch.stack(some) for some in zip(*(_one_by_one(outputs, row, tensors) for row in rows), strict=True)]
    return [
        seeds.new_zeros(()).expand(len(rows), *tensor.shape) if one is None else one
        for one, tensor in zip(found, tensors, strict=True)
    ]


def _one_by_one(outputs: Tensor, row: int, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs[:, row].sum(), tensors, retain_graph=True, materialize_grads=True)


def layer_cotangents(layer: Supported, gradients: list[Tensor]) -> Tensor:
    """``d`` over all uses, shape (c, n, s, o) from (c, n, *z); a view where the layer is used once."""
    if isinstance(layer, nn.Conv2d):
        parts = [g.flatten(3).transpose(2, 3) for g in gradients]
    else:
        parts = [g.reshape(*g.shape[:2], -1, g.shape[-1]) for g in gradients]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
