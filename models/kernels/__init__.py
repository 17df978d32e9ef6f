"""Kernels that belong to a network: tangent, conjugate, infinite width, and predictions with them."""

from ridgescope.models.kernels.conjugate import conjugate_kernel
from ridgescope.models.kernels.empirical import empirical_ntk, module_ntks, ntk_diagonal
from ridgescope.models.kernels.infinite import InfiniteKernels, infinite_ntk
from ridgescope.models.kernels.layerwise import LayerKernels, layer_kernels
from ridgescope.models.kernels.linearise import linearised_predict
from ridgescope.models.kernels.products import NTKProducts
from ridgescope.models.kernels.store import KernelStore

__all__ = [
    "InfiniteKernels",
    "KernelStore",
    "LayerKernels",
    "NTKProducts",
    "conjugate_kernel",
    "empirical_ntk",
    "infinite_ntk",
    "layer_kernels",
    "linearised_predict",
    "module_ntks",
    "ntk_diagonal",
]
