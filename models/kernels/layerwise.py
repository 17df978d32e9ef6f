"""What each hidden layer of an infinitely wide MLP contributes: the limits of its neurons' second moments.

Letters: n inputs; K_l covariance of layer l's preactivations, D dual of the activation, D' its derivative.
"""

from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor, nn

from ridgescope.models.kernels.checks import require_finite
from ridgescope.models.kernels.duals import DUALS
from ridgescope.models.mlp import MLP


@dataclass(frozen=True)
class LayerKernels:
    """Per hidden layer, each (n, n) float64: ``values[l] = E[phi(z) phi(z')]``, ``slopes[l] = E[phi'(z) phi'(z')]``.

    ``products`` (n, n) are the inner products of the inputs.
    """

    products: Float64[Tensor, "n n"]
    values: list[Float64[Tensor, "n n"]]
    slopes: list[Float64[Tensor, "n n"]]


def layer_kernels(model: nn.Module, x: Float[Tensor, " n *shape"]) -> LayerKernels:
    """Second moments of single neurons in the limit of infinite width below them, for an MLP's architecture.

    Cost: the dual of n^2 pairs per layer. Raises ``ValueError`` for other models and for inputs that do not fit.
    """
    if not isinstance(model, MLP):
        raise ValueError(
            f"layer kernels exist for MLP, got {type(model).__name__}; a convolution's neurons share their pixels"
        )
    require_finite(x)
    model.require_input(x)
    flat = x.flatten(1).double()
    products = flat @ flat.T
    dual = DUALS[model.activation]
    values: list[Tensor] = []
    slopes: list[Tensor] = []
    below = products
    for layer in model.layers[:-1]:
        fan_in = 1 if not values else layer.fan_in  # products are sums over inputs, values are means over neurons
        covariance = fan_in * (layer.weight_scale * layer.weight_std) ** 2 * below
        covariance = covariance + (layer.bias_scale * layer.bias_std) ** 2
        variance = covariance.diagonal()
        value, slope = dual(covariance, variance[:, None], variance[None, :])
        values.append((value + value.T) / 2)
        slopes.append((slope + slope.T) / 2)
        below = values[-1]
    return LayerKernels(products, values, slopes)
