"""Input checks shared by the theory: every message names the value and the fix."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Number = float | int  # spelled out: type checkers at run time do not count int as float
Real = Number | Tensor


def as_float64(name: str, value: Real | Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """``value`` as a float64 tensor; single precision is refused because digits are already lost."""
    if hasattr(value, "dtype"):  # arrays keep their precision, so that single precision is noticed
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dtype != torch.float64:
            raise ValueError(f"{name} has dtype {value.dtype}, which loses digits; build it in torch.float64")
        return value if value.dtype == torch.float64 else value.to(torch.float64)
    return torch.tensor(value, dtype=torch.float64)


def nonnegative(name: str, value: Tensor, fix: str = "clip or drop such entries") -> Tensor:
    """``value`` if every entry is finite and >= 0."""
    bad = ~(torch.isfinite(value) & (value >= 0))
    if bool(bad.any()):
        worst = value.detach()[bad].reshape(-1)[0].item()
        raise ValueError(f"{name} must be finite and >= 0, got {worst:g}; {fix}")
    return value


def positive(name: str, value: Tensor, *, allow_infinite: bool = False) -> Tensor:
    """``value`` if every entry is > 0 (and finite, unless ``allow_infinite``)."""
    good = (value > 0) & (torch.isfinite(value) | (value == math.inf) & allow_infinite)
    if not bool(good.all()):
        worst = value.detach()[~good].reshape(-1)[0].item()
        extra = " (inf is allowed)" if allow_infinite else " and finite"
        raise ValueError(f"{name} must be > 0{extra}, got {worst:g}; pass a positive number")
    return value


def same_length(name: str, value: Tensor, reference: str, length: int) -> Tensor:
    """``value`` if it holds one number per entry of ``reference``."""
    if value.ndim != 1 or value.shape[0] != length:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but {reference} has {length} entries; pass one number per entry"
        )
    return value
