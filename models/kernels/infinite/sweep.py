"""The infinite-width recursion of a CNN, all layers, for a block of pairs of images at a time, compiled for the CPU.

Convolutions never mix displacements ``d = t - s`` between a pixel s of one image and t of the other. Displacements
``d`` and ``d - H`` of images with H rows (and likewise columns) fill one image exactly: s runs over all rows, t over
all rows from d on and, past the seam, from the first. So each step is one image of pairs of pixels, whose windows end
at the seam as they do at the border; nothing of size S^2 is held. In an earlier layer, behind strides whose product is
p, the displacement is ``p d``, and ``p H`` may exceed its rows: the rows between belong to no pair.

Pairs of images are lanes, the last axis of everything here, so that a row of pixels is one long vector.
"""

from typing import Any

import numpy as np

from ridgescope.models.kernels.infinite.activated import activate
from ridgescope.models.kernels.infinite.compiled import compiled

Array = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


@compiled
def sweep(
    activation: int,
    lanes: int,
    images1: Array,
    images2: Array,
    pairs: Integers,
    channels: int,
    levels: Integers,
    affine: Array,
    turns: Integers,
    first: int,
    last: int,
    value: Array,
    passed: Array,
) -> None:
    """Sums of the last ``D(K)`` and ``D'(K) T`` over pixels into ``value[turn, pair]``, for units first to last.

    A unit is one block of pairs and one displacement of rows with all displacements of columns.
    ``images``: (n, numbers), the input's channels and the prepared variances of each level, one after the other.
    ``levels``: (L + 1, 4): height, width, stride, step. ``affine``: (L, 5), rows of `Affine` for sums.
    ``turns``: displacements (rows, columns).
    """
    depth = affine.shape[0]
    pooled = turns[0] * turns[1] > 1
    end, row = levels[depth, 1], levels[0, 1] * lanes
    size1, size2 = row, row
    if pooled:
        size1, size2 = 0, 0
        for level in range(depth + 1):
            rows = (channels if level == 0 else 1) * levels[level, 0]
            size1 += rows * levels[level, 1] * lanes
            size2 += rows * (levels[level, 3] * end + levels[level, 1]) * lanes
    left, right = np.empty(size1), np.empty(size2)
    left[:], right[:] = 1.0, 1.0  # where no image is
    k, tangent = np.empty((levels[0, 0], row)), np.empty((levels[0, 0], row))
    ring = np.empty((2, 4, row))  # of sums along rows; the last row stays zero
    ring[:] = 0.0
    total = np.empty((2, end * lanes))
    gathered = -1
    for unit in range(first, last):
        block, down = unit // turns[0], unit % turns[0]
        chosen = pairs[:, block * lanes : (block + 1) * lanes]
        if pooled and block != gathered:
            _gather(lanes, left, right, images1, images2, chosen, channels, levels)
            gathered = block
        total[:] = 0.0
        for along in range(turns[1]):
            _image(
                activation, lanes, left, right, images1, images2, chosen, channels, levels, affine, down, along,
                pooled, k, tangent, ring, total,
            )  # fmt: skip
        here = min(lanes, value.shape[1] - block * lanes)
        for lane in range(here):
            one, two = 0.0, 0.0
            for c in range(end):
                one += total[0, c * lanes + lane]
                two += total[1, c * lanes + lane]
            value[down, block * lanes + lane] = one
            passed[down, block * lanes + lane] = two


@compiled
def _add(total, row):  # type: ignore[no-untyped-def]
    for i in range(total.shape[0]):
        total[i] += row[i]


@compiled
def _gather(lanes, left, right, images1, images2, pairs, channels, levels):  # type: ignore[no-untyped-def]
    """Both images of each pair into lanes; the second's rows twice, one after the other, for all displacements."""
    at1, at2, source = 0, 0, 0
    depth = levels.shape[0] - 1
    for level in range(depth + 1):
        width, wide = levels[level, 1], levels[level, 3] * levels[depth, 1]
        for _row in range((channels if level == 0 else 1) * levels[level, 0]):
            _spread(lanes, left[at1 : at1 + width * lanes], images1, pairs[0], source, width)
            row = right[at2 : at2 + (wide + width) * lanes]
            _spread(lanes, row, images2, pairs[1], source, width)
            again = row[wide * lanes :]
            for x in range(width * lanes):
                again[x] = row[x]
            at1 += width * lanes
            at2 += (wide + width) * lanes
            source += width


@compiled
def _spread(lanes, target, images, chosen, start, width):  # type: ignore[no-untyped-def]
    """A row of every chosen image, eight lanes at a time so that the compiler writes whole vectors."""
    for lane in range(0, lanes, 8):
        here = chosen[lane : lane + 8]
        a = images[here[0], start : start + width]
        shared = True  # neighbouring pairs mostly share their first image
        for x in range(8):
            shared &= here[x] == here[0]
        if shared:
            for c in range(width):
                number = a[c]
                cell = target[c * lanes + lane : c * lanes + lane + 8]
                for x in range(8):
                    cell[x] = number
            continue
        b, d = images[here[1], start : start + width], images[here[2], start : start + width]
        e, f = images[here[3], start : start + width], images[here[4], start : start + width]
        g, h = images[here[5], start : start + width], images[here[6], start : start + width]
        i = images[here[7], start : start + width]
        for c in range(width):
            cell = target[c * lanes + lane : c * lanes + lane + 8]
            cell[0], cell[1], cell[2], cell[3] = a[c], b[c], d[c], e[c]
            cell[4], cell[5], cell[6], cell[7] = f[c], g[c], h[c], i[c]


@compiled
def _image(  # type: ignore[no-untyped-def]
    activation, lanes, left, right, images1, images2, pairs, channels, levels, affine, down, along,
    pooled, k, tangent, ring, total,
):  # fmt: skip
    """Adds the last ``D(K)`` and ``D'(K) T`` of one displacement, summed over rows of pixels, to total.

    What is read of the images is in ``left`` and ``right``; without displacements it is read only once, and brought
    into lanes row by row, so that it stays in the fastest cache.
    """
    depth = affine.shape[0]
    high, wide = levels[depth, 0], levels[depth, 1]
    at1, at2 = 0, 0
    for level in range(depth + 1):
        height, width, stride, step = levels[level, 0], levels[level, 1], levels[level, 2], levels[level, 3]
        after = min(level + 1, depth)
        out_height, out_width, out_step = levels[after, 0], levels[after, 1], levels[after, 3]
        columns = step * wide + width if pooled else width
        # the seam: pixels up to the first number and from the second on have partners
        above, under = height - step * down, min(step * (high - down), height)
        before, behind = width - step * along, min(step * (wide - along), width)
        out_above, out_under = out_height - out_step * down, min(out_step * (high - down), out_height)
        out_before, out_behind = out_width - out_step * along, min(out_step * (wide - along), out_width)
        n, out, done = width * lanes, out_width * lanes, 0
        for u in range(out_height):
            middle = stride * u
            while done < min(middle + 2, height):
                values, slopes = k[done, :n], tangent[done, :n]
                partner = done + step * down
                partner = partner - step * high if partner >= step * high else partner
                partner = partner if partner < height else 0  # of no pair
                if level == 0:
                    values[:] = 0.0
                for channel in range(channels if level == 0 else 1):
                    start = at1 + (channel * height + done) * width
                    one = left[start * lanes : start * lanes + n] if pooled else left[:n]
                    two = right[:n]
                    if pooled:
                        place = (at2 + (channel * height + partner) * columns + step * along) * lanes
                        two = right[place : place + n]
                    else:
                        _spread(lanes, one, images1, pairs[0], start, width)
                        _spread(lanes, two, images2, pairs[1], start, width)
                    if level == 0:
                        _multiply_add(values, one, two)
                    else:
                        activate(activation, values, slopes, one, two)
                for which in range(1 if level == 0 else 2):
                    source = values if which == 0 else slopes
                    if level == depth:
                        _add(total[which], source)
                        continue
                    target = ring[which, done % 3]
                    for part in range(2 if out_behind < out_width else 1):
                        start, stop = (0, before) if part == 0 else (behind, width)
                        out_start, out_stop = (0, out_before) if part == 0 else (out_behind, out_width)
                        here, there = source[start * lanes : stop * lanes], target[out_start * lanes : out_stop * lanes]
                        _windows(lanes, here, there, stride, stride * out_start - start)
                done += 1
            # rows that the windows of row u read are summed, so that it may take the place of one of them
            if level < depth and (u < out_above or u >= out_under):
                up = (middle - 1) % 3 if middle > (0 if u < out_above else under) else 3
                low = (middle + 1) % 3 if middle + 1 < (above if u < out_above else height) else 3
                _affine(ring, up, middle % 3, low, k[u, :out], tangent[u, :out], affine[level], level == 0)
        copies = channels if level == 0 else 1
        at1 += copies * height * width
        at2 += copies * height * columns


@compiled
def _multiply_add(total, one, two):  # type: ignore[no-untyped-def]
    for i in range(total.shape[0]):
        total[i] += one[i] * two[i]


@compiled
def _windows(lanes, source, target, stride, shift):  # type: ignore[no-untyped-def]
    """``target[u] = sum_(d=-1,0,1) source[stride u + shift + d]`` inside the source, for columns of lanes."""
    n, out = source.shape[0] // lanes, target.shape[0] // lanes
    if stride == 1 and n == out and n > 1:
        inner = source.shape[0] - 2 * lanes
        _add2(target[:lanes], source[:lanes], source[lanes : 2 * lanes])
        _add3(target[lanes : lanes + inner], source[:inner], source[lanes : lanes + inner], source[2 * lanes :])
        _add2(target[lanes + inner :], source[inner : inner + lanes], source[inner + lanes :])
        return
    for u in range(out):
        middle = stride * u + shift
        here = target[u * lanes : (u + 1) * lanes]
        here[:] = 0.0
        for c in range(max(0, middle - 1), min(n, middle + 2)):
            _add(here, source[c * lanes : (c + 1) * lanes])


@compiled
def _add2(target, one, two):  # type: ignore[no-untyped-def]
    for i in range(target.shape[0]):
        target[i] = one[i] + two[i]


@compiled
def _add3(target, one, two, three):  # type: ignore[no-untyped-def]
    for i in range(target.shape[0]):
        target[i] = one[i] + two[i] + three[i]


@compiled
def _affine(ring, up, middle, low, k, tangent, affine, first):  # type: ignore[no-untyped-def]
    """Sums of three rows, then what the next layer's weights and biases make of them."""
    weight, bias, slope, own, own_bias = affine[0], affine[1], affine[2], affine[3], affine[4]
    n = k.shape[0]
    a, b, c = ring[0, up, :n], ring[0, middle, :n], ring[0, low, :n]
    for i in range(n):
        value = a[i] + b[i] + c[i]
        k[i] = weight * value + bias
        tangent[i] = own * value + own_bias
    if not first:
        a, b, c = ring[1, up, :n], ring[1, middle, :n], ring[1, low, :n]
        for i in range(n):
            tangent[i] += slope * (a[i] + b[i] + c[i])
