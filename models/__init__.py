"""Networks in a stated parameterisation, and the kernels that belong to them."""

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels import (
    InfiniteKernels,
    KernelStore,
    LayerKernels,
    NTKProducts,
    conjugate_kernel,
    empirical_ntk,
    infinite_ntk,
    layer_kernels,
    linearised_predict,
    module_ntks,
    ntk_diagonal,
)
from ridgescope.models.layers import ScaledConv2d, ScaledLinear
from ridgescope.models.mlp import MLP
from ridgescope.models.network import Network

__all__ = [
    "CNN",
    "MLP",
    "InfiniteKernels",
    "KernelStore",
    "LayerKernels",
    "NTKProducts",
    "Network",
    "ScaledConv2d",
    "ScaledLinear",
    "conjugate_kernel",
    "empirical_ntk",
    "infinite_ntk",
    "layer_kernels",
    "linearised_predict",
    "module_ntks",
    "ntk_diagonal",
]
