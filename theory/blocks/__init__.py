"""The finite-width law: kernels made of independent random feature blocks, to all orders of the matrix inverse."""

from ridgescope.theory.blocks.deep import DeepKernel, HiddenLayer
from ridgescope.theory.blocks.deep_law import deep_law
from ridgescope.theory.blocks.families import (
    BlockFamily,
    PointKernel,
    activation_family,
    gradient_family,
    point_kernel,
)
from ridgescope.theory.blocks.law import BlockKernel, BlockPrediction, block_law
from ridgescope.theory.blocks.linked import LinkedFamily, LinkedKernel
from ridgescope.theory.blocks.mixture import MixedKernel, mixed_law
from ridgescope.theory.blocks.pool import BlockPoolPrediction, block_pool_law
from ridgescope.theory.blocks.sampled import SampledFamily, SampledKernel, sampled_law
from ridgescope.theory.blocks.scales import Scales, fixed_scale, squared_readout
from ridgescope.theory.blocks.shared import SharedNetwork, shared_network

__all__ = [
    "BlockFamily",
    "BlockKernel",
    "BlockPoolPrediction",
    "BlockPrediction",
    "DeepKernel",
    "HiddenLayer",
    "LinkedFamily",
    "LinkedKernel",
    "MixedKernel",
    "PointKernel",
    "SampledFamily",
    "SampledKernel",
    "Scales",
    "SharedNetwork",
    "activation_family",
    "block_law",
    "block_pool_law",
    "deep_law",
    "fixed_scale",
    "gradient_family",
    "mixed_law",
    "point_kernel",
    "sampled_law",
    "shared_network",
    "squared_readout",
]
