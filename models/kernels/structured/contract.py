"""From the factors of two batches to their kernel, as matrix products over tiles.

``K`` is held as a four-dimensional view ``K[c, p, e, q]`` of the output-major matrix: blocks of fixed (c, e)
are then ordinary strided matrices. For a batch against itself only tiles with p <= q, and on diagonal tiles
only c <= e, are computed; `mirror` copies the rest, which makes the result symmetric to the last bit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ridgescope.models.kernels.structured.forms import (
    Common,
    Diagonal,
    Explicit,
    Factor,
    Gated,
    Scaled,
    Spatial,
    prefers_spatial,
)

FEWEST = 128  # rows of a matrix product that is fast
TILE = 512  # most rows of one matrix product: 2 MB in float64, which stays in cache until it is added to K
CHUNK = 32e6  # bytes of explicit gradients formed at a time
COLUMNS = 2**16  # numbers in one array h of `_add_by_columns`: 0.5 MB in float64


def add_factor(kernel: Tensor, left: Factor, right: Factor, *, symmetric: bool, memory: int | float) -> None:
    """Add one layer's share to ``kernel`` (c, n, c, m); ``memory`` bounds explicit gradients, in bytes.

    Of a batch against itself (``symmetric``) only the half that `mirror` completes is computed.
    """
    if isinstance(left, Common) and isinstance(right, Common):
        return _add_by_channels(kernel, left, right, symmetric)
    if isinstance(left, Common) or isinstance(right, Common):
        square = right is left
        left = left.explicit() if isinstance(left, Common) else left
        right = left if square else right.explicit() if isinstance(right, Common) else right
    if isinstance(left, Scaled) and isinstance(right, Scaled):
        squares = left.weights.square().sum(0)
        left = Gated(left.inputs, (squares * left.cotangents)[None])
        right = Gated(right.inputs, right.cotangents[None])
    else:
        left = left.gated() if isinstance(left, Scaled) else left
        right = right.gated() if isinstance(right, Scaled) else right
    if isinstance(left, Diagonal) and isinstance(right, Diagonal):
        for p, q in _squares(kernel, symmetric):
            shared = left.inputs[p] @ right.inputs[q].T
            for c in range(len(kernel)):
                kernel[c, p, c, q].add_(shared, alpha=left.repeats)
    elif isinstance(left, Gated) and isinstance(right, Gated):
        _add_products(kernel, left.cotangents, right.cotangents, (left.inputs, right.inputs), symmetric)
    elif isinstance(left, Explicit) and isinstance(right, Explicit):
        _add_products(kernel, left.gradients, right.gradients, None, symmetric)
    elif isinstance(left, Spatial) and isinstance(right, Spatial):
        _add_spatial(kernel, left, right, symmetric, memory)


def mirror(kernel: Tensor) -> None:
    """Complete the half that `add_factor` computed for a batch against itself."""
    for p, q in _squares(kernel, symmetric=True):
        for c, e in _pairs(kernel, p == q):
            block = kernel[c, p, e, q]
            if (p, c) == (q, e):
                block.copy_(block.triu() + block.triu(1).T)
            else:
                kernel[e, q, c, p] = block.T


def _squares(kernel: Tensor, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    outputs, rows, _, columns = kernel.shape
    # about eight a side, counting outputs, or the symmetric half would not be much less than the whole
    side = min(TILE, max(FEWEST, rows * outputs // 8))
    for p in range(0, rows, side):
        for q in range(p if symmetric else 0, columns, side):
            yield slice(p, p + side), slice(q, q + side)


def _pairs(kernel: Tensor, half: bool) -> Iterator[tuple[int, int]]:
    for c in range(len(kernel)):
        for e in range(c if half else 0, len(kernel)):
            yield c, e


def _groups(left: Tensor, right: Tensor) -> list[slice]:
    """Outputs whose blocks go into one matrix product, so that it has rows enough to be fast; one by one where that
    would copy them."""
    outputs, rows, _ = left.shape
    together = all(side.stride(0) == side.shape[1] * side.stride(1) for side in (left, right))
    step = max(1, FEWEST // rows) if together else 1
    return [slice(c, min(c + step, outputs)) for c in range(0, outputs, step)]


def _add_products(
    kernel: Tensor, left: Tensor, right: Tensor, gates: tuple[Tensor, Tensor] | None, symmetric: bool
) -> None:
    """``K[c,p;e,q] += (a[p] . a[q]) (left[c,p] . right[e,q])`` with ``gates`` the two a, or without the gate."""
    for p, q in _squares(kernel, symmetric):
        gate = None if gates is None else (gates[0][p] @ gates[1][q].T)[None, :, None]
        groups = _groups(left[:, p], right[:, q])
        for i, cs in enumerate(groups):
            mine = left[cs, p].flatten(0, 1)
            for es in groups[i if symmetric and p == q else 0 :]:
                block = kernel[cs, p, es, q]
                product = mine @ right[es, q].flatten(0, 1).T
                product = product.view(block.shape)
                if gate is None:
                    block += product
                else:
                    block.addcmul_(product, gate)


def _add_by_channels(kernel: Tensor, left: Common, right: Common, symmetric: bool) -> None:
    """``K[c,p;e,q] += sum_o w[c,o] w[e,o] (g[p,o] . g[q,o])``: one Gram matrix for each channel and not each pair."""
    channels = max(left.gradients.shape[1], kernel[:, 0, :, 0].numel())
    pairs = left.weights[:, None] * left.weights
    weights = pairs.diagonal().sum(1)[None] if left.trace else pairs.flatten(0, 1)  # (c e, o)
    for p, q in _small_tiles(kernel, max(8, int((COLUMNS / channels) ** 0.5)), symmetric):
        grams = torch.bmm(left.gradients[p].transpose(0, 1), right.gradients[q].permute(1, 2, 0))  # (o, p, q)
        block = (weights @ grams.flatten(1)).view(len(kernel), len(kernel), *grams.shape[1:])
        _add_block(kernel, block.permute(0, 2, 1, 3), p, q, symmetric)


def _add_spatial(kernel: Tensor, left: Spatial, right: Spatial, symmetric: bool, memory: int | float) -> None:
    outputs, _, positions, fan_out = left.cotangents.shape
    if outputs == 1:
        spatial = prefers_spatial(positions, left.inputs.shape[2], fan_out, 1, trace=True)
    else:
        spatial = prefers_spatial(positions, left.inputs.shape[2], fan_out, outputs, trace=False)
    if not spatial:
        _add_by_gradients(kernel, left, right, symmetric, memory)
    elif outputs == 1:
        _add_by_pairs(kernel, left, right, symmetric)
    else:
        _add_by_columns(kernel, left, right, symmetric)


def _add_by_gradients(kernel: Tensor, left: Spatial, right: Spatial, symmetric: bool, memory: int | float) -> None:
    """Form the gradients of a few output channels at a time; the whole Jacobian is never held."""
    positions, fan_out = left.cotangents.shape[2:]
    fan_in = left.inputs.shape[2]
    rows = sum(factor.cotangents[..., 0, 0].numel() for factor in {id(left): left, id(right): right}.values())
    # a few large products a chunk are enough, and small chunks reuse their pages
    channels = max(1, int(min(memory, CHUNK) / (rows * (fan_in + positions) * left.inputs.element_size())))
    for start in range(0, fan_out, channels):
        some = slice(start, start + channels)
        mine = _gradients(left, some)
        _add_products(kernel, mine, mine if right is left else _gradients(right, some), None, symmetric)


def _gradients(factor: Spatial, channels: slice) -> Tensor:
    """``sum_s d[c,n,s,o] a[n,s,k]`` as rows (c, n, o k); all outputs in one product, which reads a once."""
    outputs, inputs = factor.cotangents.shape[:2]
    d = factor.cotangents[..., channels].permute(1, 0, 3, 2).flatten(1, 2)
    return torch.bmm(d, factor.inputs).view(inputs, outputs, -1).transpose(0, 1)


def diagonal_of(factor: Factor, num_outputs: int, memory: int | float) -> Tensor:
    """A layer's share of the full kernel's diagonal, (c, n)."""
    if isinstance(factor, Diagonal):
        return factor.inputs.square().sum(1).expand(num_outputs, -1)
    if isinstance(factor, Gated):
        return factor.cotangents.square().sum(2) * factor.inputs.square().sum(1)
    if isinstance(factor, Explicit):
        return factor.gradients.square().sum(2)
    if isinstance(factor, Common):
        return factor.weights.square() @ factor.gradients.square().sum(2).T
    assert not isinstance(factor, Scaled)  # of the trace form
    outputs, inputs, positions, fan_out = factor.cotangents.shape
    numbers = outputs * inputs * (factor.inputs.shape[2] + positions)
    channels = max(1, int(min(memory, CHUNK) / (numbers * factor.inputs.element_size())))
    parts = [_gradients(factor, slice(o, o + channels)).square().sum(2) for o in range(0, fan_out, channels)]
    return torch.stack(parts).sum(0)


def _add_by_pairs(kernel: Tensor, left: Spatial, right: Spatial, symmetric: bool) -> None:
    """One output: ``K[p,q] += sum_st (d[p,s].d[q,t]) (a[p,s].a[q,t])``."""
    positions = left.inputs.shape[1]
    for p, q in _small_tiles(kernel, max(1, TILE // positions), symmetric):
        gate = left.inputs[p].flatten(0, 1) @ right.inputs[q].flatten(0, 1).T
        gate *= left.cotangents[0, p].flatten(0, 1) @ right.cotangents[0, q].flatten(0, 1).T
        block = gate.unflatten(1, (-1, positions)).sum(2).unflatten(0, (-1, positions)).sum(1)
        _add_block(kernel, block[None, :, None, :], p, q, symmetric)


def _add_by_columns(kernel: Tensor, left: Spatial, right: Spatial, symmetric: bool) -> None:
    """Apply J_p to the columns of J_q^T, ``h[q,p,s,o] = sum_t (a[p,s].a[q,t]) d[e,q,t,o]``, never formed.

    Per pair of inputs s^2 k + s^2 c o + c^2 s o products, against c^2 o k with explicit gradients.
    """
    outputs, _, positions, fan_out = left.cotangents.shape
    side = max(4, int((COLUMNS / (positions * fan_out)) ** 0.5))
    for p, q in _small_tiles(kernel, side, symmetric):
        a, b = left.inputs[p], right.inputs[q]
        gate = (b.flatten(0, 1) @ a.flatten(0, 1).T).unflatten(0, (len(b), positions))  # (q, t, p s)
        d = left.cotangents[:, p].flatten(2).transpose(0, 1)  # (p, c, s o)
        block = kernel.new_empty(len(a), outputs, outputs, len(b))
        for e in range(outputs):
            h = torch.bmm(gate.transpose(1, 2), right.cotangents[e, q])  # (q, p s, o)
            block[:, :, e] = torch.bmm(d, h.view(len(b), len(a), -1).permute(1, 2, 0))
        _add_block(kernel, block.transpose(0, 1), p, q, symmetric)


def _small_tiles(kernel: Tensor, side: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    _, rows, _, columns = kernel.shape
    for p in range(0, rows, side):
        for q in range(p if symmetric else 0, columns, side):
            yield slice(p, p + side), slice(q, q + side)


def _add_block(kernel: Tensor, block: Tensor, p: slice, q: slice, symmetric: bool) -> None:
    kernel[:, p, :, q] += block
    if symmetric and p != q:  # a small tile above the diagonal also serves pairs that `mirror` reads below it
        kernel[:, q, :, p] += block.permute(2, 3, 0, 1)
