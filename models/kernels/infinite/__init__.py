"""The kernels of infinitely wide networks: `limits` is the way in.

`tasks` says what is computed, `threads` who works on it; `images` and `dense` are the compiled ways of CNNs and MLPs
(`sweep`, `activated`), `layered` the way of torch, for tanh (`hermite`) and for other devices; `affine` what a layer's
weights and biases make of the averages it reads.
"""

from ridgescope.models.kernels.infinite.limits import InfiniteKernels, infinite_ntk

__all__ = ["InfiniteKernels", "infinite_ntk"]
