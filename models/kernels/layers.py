"""A layer's gradient as a sum over positions: ``d out_c / d [W, b] = sum_s d_c(s) (x) a(s)``.

The positions s are the pixels of a convolution (a is then the patch under the kernel), the tokens of a linear
layer, and the uses of a layer that is called more than once; a plain dense layer has one. With scales and
bias put into a, every supported layer looks the same to the contraction. A convolution is itself run from its
patches, as ``[W, b] a``, so that they are cut once.

Axes: n inputs, s positions, k entries of a (fan-in, and one for a bias), o entries of d (fan-out), c outputs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.grad import conv2d_input, conv2d_weight

from ridgescope.models.layers import ScaledConv2d, ScaledLinear
from ridgescope.models.patches import Geometry

Supported = nn.Linear | nn.Conv2d


@dataclass
class Use:
    """One call of a layer: its input, its output, and the copy that the network went on with."""

    layer: Supported
    input: Tensor
    output: Tensor = field(init=False)
    passed_on: Tensor = field(init=False)

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
def recorded(layers: Mapping[str, Supported]) -> Iterator[Uses]:
    """Collect every call of the layers; what they return stays differentiable from their outputs on."""
    uses: Uses = {name: [] for name in layers}

    def call(name: str, layer: Supported, x: Tensor) -> Tensor:
        use = Use(layer, x.detach())
        # torch convolves quickly in single precision only
        if isinstance(layer, nn.Conv2d) and x.dtype == torch.float64 and x.device.type == "cpu":
            use.output = _convolve(layer, x, use.inputs)
        else:
            use.output = type(layer).forward(layer, x)  # type: ignore[arg-type]
        if not use.output.requires_grad:
            use.output.requires_grad_()
        use.passed_on = use.output.clone()  # an in-place activation would overwrite the recorded preactivation
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
    model: nn.Module, params: Mapping[str, Tensor], layers: Mapping[str, Supported], x: Tensor
) -> tuple[Tensor, Uses]:
    """Outputs ``(n, c)`` with their graph, and what each layer saw."""
    with torch.enable_grad(), recorded(layers) as uses:
        return functional_call(model, dict(params), (x,)), uses


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


def _convolve(layer: nn.Conv2d, x: Tensor, a: Tensor) -> Tensor:
    weight = layer.weight.detach()
    rows = weight.flatten(1)
    stacked = rows if layer.bias is None else torch.cat([rows, layer.bias.detach()[:, None]], dim=1)
    scaled = getattr(layer, "weight_scale", 1.0) * weight
    return _Convolution.apply(x, a.transpose(1, 2), stacked, scaled, Geometry.of(layer))


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
    """``sum_s d(s) (x) a(s)`` of each input into ``out``, shape (n, o, k)."""
    layer, x = uses[0].layer, uses[0].input
    if len(uses) == 1 and isinstance(layer, nn.Conv2d) and _prefers_groups(x, gradients[0]):
        weight = out[..., : layer.weight[0].numel()]
        weight[:] = _grouped_gradients(layer, x, gradients[0]).mul_(getattr(layer, "weight_scale", 1.0))
        if layer.bias is not None:
            torch.mul(gradients[0].sum((2, 3)), getattr(layer, "bias_scale", 1.0), out=out[..., -1])
    else:
        torch.bmm(layer_cotangents(layer, gradients).transpose(1, 2), stacked_inputs(uses), out=out)


def _prefers_groups(x: Tensor, gradient: Tensor) -> bool:
    """In single precision on a CPU torch's grouped convolution beats cutting patches of large images."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and gradient.shape[2:].numel() >= 400


def _grouped_gradients(layer: nn.Conv2d, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the weight for each image: all images as groups of one convolution."""
    assert not isinstance(layer.padding, str)
    n, o, *size = gradient.shape
    shape = (n * o, *layer.weight.shape[1:])
    stacked = (x.reshape(1, -1, *x.shape[2:]), gradient.reshape(1, n * o, *size))
    return conv2d_weight(stacked[0], shape, stacked[1], layer.stride, layer.padding, layer.dilation, groups=n).view(
        n, o, -1
    )


def gradients_of(score: Tensor, uses: list[Use]) -> list[Tensor]:
    """``d score / d output`` of each use; the graph is kept."""
    if not uses:
        return []
    outputs = [use.output for use in uses]
    return list(torch.autograd.grad(score, outputs, retain_graph=True, materialize_grads=True))


def layer_cotangents(layer: Supported, gradients: list[Tensor]) -> Tensor:
    """``d`` of one output over all uses, shape (n, s, o); a view where the layer is used once."""
    if isinstance(layer, nn.Conv2d):
        gradients = [g.flatten(2).transpose(1, 2) for g in gradients]
    parts = [g.reshape(len(g), -1, g.shape[-1]) for g in gradients]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Trial:
    """A few inputs passed through the network: its outputs (n, c), what layers saw, and bytes kept for backward."""

    outputs: Tensor
    uses: Uses
    kept: int


def try_layers(model: nn.Module, params: Mapping[str, Tensor], layers: Mapping[str, Supported], x: Tensor) -> Trial:
    """One recorded pass; parameters themselves are not counted as kept."""
    own = {tensor.untyped_storage().data_ptr() for tensor in params.values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs, uses = run_recorded(model, params, layers, x)
    return Trial(outputs, uses, sum(kept.values()))


def faithful_layers(
    model: nn.Module, params: Mapping[str, Tensor], layers: Mapping[str, Supported], x: Tensor, trial: Trial
) -> dict[str, Supported]:
    """The layers whose gradient for the first input, put together from positions in the ``trial`` of all of x (n > 1),
    is autograd's of that input alone.

    A layer fails that is never called, whose weight is read elsewhere too, or whose batch axis is folded or
    reordered.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        score = _probe(functional_call(model, leaves, (x[:1],)))
        gradients = torch.autograd.grad(score, list(leaves.values()), materialize_grads=True)
    true = dict(zip(leaves, gradients, strict=True))
    outputs, uses = trial.outputs, trial.uses
    used = [name for name in layers if uses[name] and all(len(use.input) == len(x) for use in uses[name])]
    cotangents = iter(gradients_of(_probe(outputs), [use for name in used for use in uses[name]]))
    faithful = {}
    for name in used:
        mine = layer_cotangents(layers[name], [next(cotangents) for _ in uses[name]])[0]
        inputs, gradient = stacked_inputs(uses[name])[0], _stacked(layers[name], name, true)
        left, right = (_generic(gradient, axis) for axis in range(2))
        if _agrees((mine @ left).T @ (inputs @ right), left.T @ gradient @ right):
            faithful[name] = layers[name]
    return faithful


def _generic(matrix: Tensor, axis: int) -> Tensor:
    """Four directions, orthogonal to nothing in particular: gradients that agree along them all are equal."""
    generator = torch.Generator().manual_seed(axis)
    return torch.randn(matrix.shape[axis], 4, generator=generator, dtype=torch.float64).to(matrix)


def _probe(outputs: Tensor) -> Tensor:
    """The first input's outputs with fixed generic weights, so that none cancels another."""
    return outputs[0] @ torch.cos(torch.arange(outputs.shape[1], dtype=outputs.dtype, device=outputs.device))


def _stacked(layer: Supported, name: str, gradients: Mapping[str, Tensor]) -> Tensor:
    """Autograd's ``[dW, db]`` as a matrix (o, k)."""
    prefix = f"{name}." if name else ""
    weight = gradients[prefix + "weight"].flatten(1)
    return weight if layer.bias is None else torch.cat([weight, gradients[prefix + "bias"][:, None]], dim=1)


def _agrees(built: Tensor, true: Tensor) -> bool:
    tolerance = torch.finfo(true.dtype).eps ** 0.5  # far above rounding, far below any structural mistake
    return bool((built - true).norm() <= tolerance * true.norm())
