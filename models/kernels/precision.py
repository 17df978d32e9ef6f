"""Kernels are computed in the precision of their numbers, whatever the process has switched on to train faster."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 on a GPU, no bfloat16 products on a CPU, no autocast; what was set before is set again afterwards.

    TF32 keeps 10 bits of a number: small eigenvalues of a kernel drown. torch convolves with it by default.
    """
    backends = torch.backends
    places: tuple[Any, ...] = (
        backends.cuda.matmul,
        backends.cudnn.conv,  # type: ignore[attr-defined]
        backends.cudnn.rnn,
        backends.mkldnn.matmul,  # type: ignore[attr-defined]
        backends.mkldnn.conv,  # type: ignore[attr-defined]
    )
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        with torch.autocast(device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False):
            yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
