"""The finite-width law of a network: which one belongs to its architecture, and the blocks of one hidden layer.

The families' weights follow the network's own layer scales, so every parameterisation is covered: a hidden neuron
contributes ``w_r^2 phi phi'`` through the readout's weights (scale w_r, standard deviation sigma_r) and
``w_r^2 v^2 phi' phi' (w_1^2 x.x' + b_1^2)`` through its own, all divided by the network's ``kernel_scale``.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ridgescope.analysis.finite_width_conv import channel_kernel
from ridgescope.analysis.finite_width_conv2 import DRAWS, two_convolutions_kernel
from ridgescope.analysis.finite_width_depth import deep_kernel, require_roomy
from ridgescope.models import CNN, MLP, Network, layer_kernels
from ridgescope.theory.blocks import (
    BlockKernel,
    BlockPrediction,
    DeepKernel,
    MixedKernel,
    PointKernel,
    SampledKernel,
    activation_family,
    block_law,
    deep_law,
    gradient_family,
    mixed_law,
    point_kernel,
    sampled_law,
    squared_readout,
)

Trained = Literal["all", "hidden", "readout"]
Form = Literal["full", "trace"]
LawKernel = BlockKernel | DeepKernel | SampledKernel | MixedKernel

# df1/P above which a ridge no longer hides that points lack active neurons, and the least number of them to spare, in
# standard deviations; chosen on the grid of docs/results/finite_width.md#near-interpolation
INTERPOLATING, SPARE = 0.7, 3.0


def block_kernel(
    network: nn.Module,
    x_train: Float[Tensor, " p *shape"],
    x_eval: Float[Tensor, " t *shape"] | None = None,
    *,
    trained: Trained = "all",
    form: Form = "full",
) -> BlockKernel:
    """The random kernel ``empirical_ntk / kernel_scale`` of the network's architecture; its weights are not read.

    ``trained``: which weights move (and the biases beside them): all, those into the hidden layer, the readout's.
    ``form``: the full kernel of all outputs or its trace form; they differ by the fluctuation of |v|^2 over neurons.

    Raises ``ValueError`` for an architecture without a law.
    """
    if not isinstance(network, MLP) or network.depth != 1:
        kind = f"{type(network).__name__} of depth {getattr(network, 'depth', '?')}"
        raise ValueError(f"the block law is derived for an MLP with one hidden layer, got {kind}")
    points = x_train if x_eval is None else torch.cat([x_train, x_eval])
    kernels = layer_kernels(network, points)
    (first, readout), scale = network.layers, network.kernel_scale
    size = len(x_train)

    def split(gram: Tensor) -> PointKernel:
        return point_kernel(gram, size)

    per_neuron = network.width * readout.weight_scale**2 / scale
    families = []
    fixed = None
    if trained in ("all", "readout"):
        families.append(activation_family(split(per_neuron * kernels.values[0])))
        if readout.bias_scale:
            fixed = split(torch.full_like(kernels.products, readout.bias_scale**2 / scale))
    if trained in ("all", "hidden"):
        below = first.weight_scale**2 * kernels.products + first.bias_scale**2
        gate = per_neuron * readout.weight_std**2 * kernels.slopes[0]
        scales = squared_readout(network.num_outputs, trace=form == "trace")
        families.append(gradient_family(split(gate), split(below), scales))
    coupled = form == "full" and trained != "readout"
    return BlockKernel(families, fixed, network.num_outputs if coupled else 1)


def require_neurons_to_spare(kernel: BlockKernel, *, width: int, ridge: float, kappa1: float) -> None:
    """``ValueError`` where the points' active neurons are hardly more than the coupled outputs fitted at them.

    A hidden neuron moves a point's C outputs along one direction, if it is active there. A ReLU neuron is at every
    second point: N/2 directions, give or take sqrt(N)/2, for C df1/P numbers. The law knows their mean alone.
    """
    share = 1 - ridge / kappa1  # df1/P
    fitted, active = kernel.outputs * share, width / 2
    if kernel.outputs > 1 and share > INTERPOLATING and active - SPARE * math.sqrt(width) / 2 < fitted:
        raise ValueError(
            f"width={width} is too narrow for the law of {kernel.outputs} coupled outputs at ridge={ridge:g}: "
            f"{fitted:.1f} numbers are fitted at each training point, where some {active:g} neurons are active; use a "
            "larger ridge or a wider network"
        )


def law_kernel(
    network: nn.Module,
    x_train: Float[Tensor, " p *shape"],
    x_eval: Float[Tensor, " t *shape"],
    *,
    form: Form = "full",
    draws: int = DRAWS,
    seed: int = 0,
) -> LawKernel:
    """The random tangent kernel of the architecture at its width, all weights trained, for `law_of`.

    One hidden layer: `block_kernel`. Two and three: `deep_kernel`. One convolution: `channel_kernel`. Two:
    `two_convolutions_kernel`. Raises ``ValueError`` for an architecture without a law, and where a law was not shown to
    hold. ``draws``, ``seed``: of the first of two convolutions.
    """
    if isinstance(network, CNN) and network.depth == 2:
        return two_convolutions_kernel(network, x_train, x_eval, form=form, draws=draws, seed=seed)
    if isinstance(network, CNN):
        return channel_kernel(network, x_train, x_eval, form=form)
    if isinstance(network, MLP) and network.depth > 1:
        deep = deep_kernel(network, x_train, x_eval, form=form)
        require_roomy(network, len(x_train), form)
        return deep
    return block_kernel(network, x_train, x_eval, form=form)


def law_of(
    kernel: LawKernel,
    targets: Float64[Tensor, "p c"],
    eval_targets: Float64[Tensor, "t c"],
    *,
    width: int,
    ridge: float,
    start: list[Tensor] | None = None,
) -> BlockPrediction:
    """The law that belongs to ``kernel``; ``start``: the ``orders`` of a neighbouring width or ridge.

    Raises ``ValueError`` where it was seen to be wrong: near interpolation, with neurons for few more outputs.
    """
    if isinstance(kernel, MixedKernel):
        if width != kernel.width:
            raise ValueError(f"width={width} for a kernel drawn at width {kernel.width}; make one with `law_kernel`")
        return mixed_law(kernel, targets, eval_targets, ridge=ridge, start=start)
    rest: dict[str, Any] = {"width": width, "ridge": ridge, "start": start}
    if isinstance(kernel, SampledKernel):
        return sampled_law(kernel, targets, eval_targets, **rest)
    if isinstance(kernel, DeepKernel):
        return deep_law(kernel, targets, eval_targets, **rest)
    law = block_law(kernel, targets, eval_targets, **rest)
    require_neurons_to_spare(kernel, width=width, ridge=ridge, kappa1=float(law.kappa1))
    return law


def finite_width_law(
    network: Network,
    x_train: Float[Tensor, " p *shape"],
    targets: Float64[Tensor, "p c"],
    x_eval: Float[Tensor, " t *shape"],
    eval_targets: Float64[Tensor, "t c"],
    *,
    ridge: float,
    trained: Trained = "all",
    form: Form = "full",
) -> BlockPrediction:
    """Kernel regression with the network's tangent kernel at initialisation, averaged over initialisations.

    ``trained`` other than "all" needs an MLP with one hidden layer. Raises ``ValueError`` as `law_kernel` and
    `law_of` do.
    """
    if trained == "all":
        kernel = law_kernel(network, x_train, x_eval, form=form)
    elif isinstance(network, MLP) and network.depth == 1:
        kernel = block_kernel(network, x_train, x_eval, trained=trained, form=form)
    else:
        kind = type(network).__name__
        raise ValueError(f"trained='{trained}' has no law for {kind} of depth {network.depth}; pass trained='all'")
    return law_of(kernel, targets, eval_targets, width=network.width, ridge=ridge)
