"""The infinite-width recursion of convolutions and of fully connected layers, compiled by Numba for the CPU.

`ridgescope.models.kernels.duals` says what an activation does; here the same formulas are written so that the compiler
puts neighbouring numbers into the lanes of one vector: no branches, no library calls, one division at most. A
*row* is a row of pixels of one image beside one of the other, for some pairs of images at once, pairs innermost: a
long stretch of memory. All layers of a block of pairs run in one call, in the cache: the first sums over 3x3 windows
replace the patches, three rows of sums are held, and the result of a layer takes the place of what it is made from.

Axes: s pixels; l lanes (pairs of a block, neighbours in memory); r = columns of pixels times l, a row; f what
`Dual.prepare` says of an input's variance (`prepared` adds the inverse). Everything is float64 and contiguous.

One file, since Numba's cache does not see changes in functions that come from another one.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from ridgescope.models.kernels.duals import PARALLEL

NEGLIGIBLE = 1e-18  # products of coefficients that no sum of a hundred of them brings to rounding
LANES = 8  # inputs in one group: one vector of the widest machines
CODES = {"relu": 0, "erf": 1, "gelu": 2, "tanh": 3}

Array = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

# arcsin(sqrt(z)) / sqrt(z) on 0 <= z <= 1/2, lowest degree first: its Chebyshev series, 3e-17 from it
ARCSIN = (
    1.0, 0.16666666666664698, 0.07500000000464965, 0.04464285670805879, 0.030381965879733276, 0.022371516088920858,
    0.017365538221973773, 0.013787393522368912, 0.013339371341015819, -0.003617853254378451, 0.08395286854574689,
    -0.3173198148176277, 1.0687443494526074, -2.6258024403358178, 4.864605144947002, -6.492606744847992,
    5.969206755315709, -3.3818467029693404, 0.912261948607691,
)  # fmt: skip


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # unwrap: a type checker may have wrapped the function at import; numpy's errors: 1/0 is inf and not a branch
    compiler = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
    compiled: Callable[..., Any] = compiler(inspect.unwrap(function))
    return compiled


@_compile
def _angle(cosine, z):  # type: ignore[no-untyped-def]
    """arccos, from the cosine's sign and ``z = (1 - |cosine|)/2``, the squared sine of half the acute angle."""
    ratio = ARCSIN[18]
    for degree in range(17, -1, -1):
        ratio = ratio * z + ARCSIN[degree]
    acute = 2.0 * math.sqrt(z) * ratio
    return math.pi - acute if cosine < 0 else acute


@_compile
def _relu(k, t, norm1, inverse1, norm2, inverse2):  # type: ignore[no-untyped-def]
    """``k <- D(k)``, ``t <- D'(k) t`` for a row (r), as are the norms of the variances and their inverses."""
    for x in range(k.shape[0]):
        cosine = min(max(k[x] * (inverse1[x] * inverse2[x]), -1.0), 1.0)
        z = 0.5 - 0.5 * abs(cosine)
        z = 0.0 if z < 0.25 * PARALLEL else z  # the squared sine is 4 z (1 - z)
        derivative = (math.pi - _angle(cosine, z)) * (0.5 / math.pi)
        sine = math.sqrt(z * (1.0 - z))
        k[x] = norm1[x] * norm2[x] * (cosine * derivative + sine * (1.0 / math.pi))
        t[x] *= derivative


@_compile
def _erf(k, t, inverse1, inverse2):  # type: ignore[no-untyped-def]
    """As `_relu`, with ``1 / sqrt(1 + 2 q)``."""
    for x in range(k.shape[0]):
        inverse = inverse1[x] * inverse2[x]
        cosine = 2.0 * k[x] * inverse
        z = 0.5 - 0.5 * abs(cosine)
        k[x] = 1.0 - _angle(cosine, z) * (2.0 / math.pi)
        t[x] *= (2.0 / math.pi) * inverse / math.sqrt(z * (1.0 - z))


@_compile
def _gelu(k, t, q1, inverse1, q2, inverse2):  # type: ignore[no-untyped-def]
    """As `_relu`, with variances and ``1 / sqrt(1 + q)``; ``arctan(k / r) = arcsin(k / sqrt(volume))``."""
    for x in range(k.shape[0]):
        here, product, inverse = k[x], q1[x] * q2[x], inverse1[x] * inverse2[x]
        cosine, density = here * inverse, inverse * inverse
        z = 0.5 - 0.5 * abs(cosine)
        over_r = 0.5 * inverse / math.sqrt(z * (1.0 - z))
        angle = 0.5 * math.pi - _angle(cosine, z)
        dual = over_r * density * here * here + product * density / over_r + here * angle
        slope = here * over_r * (over_r * over_r + (1.0 - product) * density + 1.0)
        k[x] = 0.25 * here + dual * (0.5 / math.pi)
        t[x] *= 0.25 + (slope + angle) * (0.5 / math.pi)


@_compile
def _hermite(k, t, left, right, start1, start2, plane, degrees, work):  # type: ignore[no-untyped-def]
    """As `_relu`, with square roots of variances and coefficients: rows ``plane`` numbers apart in left and right."""
    size = k.shape[0]
    cosine, square, value, slope = work[0, :size], work[1, :size], work[2, :size], work[3, :size]
    root1, root2 = left[start1 : start1 + size], right[start2 : start2 + size]
    for x in range(size):
        cosine[x] = min(max(k[x] / max(root1[x] * root2[x], 1e-300), -1.0), 1.0)
        square[x], value[x], slope[x] = cosine[x] * cosine[x], 0.0, 0.0
    for j in range(degrees, 0, -1):
        one = left[start1 + j * plane : start1 + j * plane + size]
        two = right[start2 + j * plane : start2 + j * plane + size]
        for x in range(size):
            product = one[x] * two[x]
            value[x] = value[x] * square[x] + product
            slope[x] = slope[x] * square[x] + (2.0 * j - 1.0) * product
    for x in range(size):
        k[x] = cosine[x] * value[x]
        t[x] *= slope[x] / max(root1[x] * root2[x], 1e-300)


@_compile
def _activate(code, k, t, left, right, start1, start2, plane, degrees, work):  # type: ignore[no-untyped-def]
    """One row (r); what its inputs' variances say begins at ``start`` of left and right, in planes."""
    size = k.shape[0]
    one, two = left[start1 : start1 + size], right[start2 : start2 + size]
    if code == 1:
        _erf(k, t, one, two)
    elif code == 3:
        _hermite(k, t, left, right, start1, start2, plane, degrees, work)
    else:
        inverse1 = left[start1 + plane : start1 + plane + size]
        inverse2 = right[start2 + plane : start2 + plane + size]
        if code == 0:
            _relu(k, t, one, inverse1, two, inverse2)
        else:
            _gelu(k, t, one, inverse1, two, inverse2)


@_compile
def _degrees(left, right, count, plane):  # type: ignore[no-untyped-def]
    """How many of the ``count`` Hermite coefficients any product needs."""
    for j in range(count, 1, -1):
        one = np.abs(left[j * plane : (j + 1) * plane]).max()
        two = np.abs(right[j * plane : (j + 1) * plane]).max()
        if one * two * j >= NEGLIGIBLE:
            return j
    return 1


@_compile
def _products(k, left, right, start1, start2, plane, channels):  # type: ignore[no-untyped-def]
    """A row of products of pixels, summed over channels."""
    size = k.shape[0]
    k[:] = 0.0
    for c in range(channels):
        one = left[start1 + c * plane : start1 + c * plane + size]
        two = right[start2 + c * plane : start2 + c * plane + size]
        for x in range(size):
            k[x] += one[x] * two[x]


@_compile
def _across(source, target, columns, out, stride, lanes):  # type: ignore[no-untyped-def]
    """Sums of three neighbouring pixels of a row, zeros outside; every ``stride``-th."""
    if stride == 1 and columns > 1:
        size = columns * lanes
        before, here, after = source[: size - 2 * lanes], source[lanes : size - lanes], source[2 * lanes :]
        inside = target[lanes : size - lanes]
        for x in range(inside.shape[0]):
            inside[x] = before[x] + here[x] + after[x]
        for x in range(lanes):
            target[x] = source[x] + source[lanes + x]
            target[size - lanes + x] = source[size - 2 * lanes + x] + source[size - lanes + x]
    else:
        for v in range(out):
            middle = v * stride * lanes
            total = target[v * lanes : (v + 1) * lanes]
            total[:] = source[middle : middle + lanes]
            if v * stride > 0:
                before = source[middle - lanes : middle]
                for x in range(lanes):
                    total[x] += before[x]
            if v * stride + 1 < columns:
                after = source[middle + lanes : middle + 2 * lanes]
                for x in range(lanes):
                    total[x] += after[x]


@_compile
def _layer(k, t, sums, passed, first, last, weights):  # type: ignore[no-untyped-def]
    """A row of the next layer from the ``first`` to the ``last`` row of sums, three at most, kept in rows modulo 3 of
    four; the fourth is zero. weights (5,) as in `recursion.Step`."""
    size = k.shape[0]
    from_sum, bias, from_value, from_passed, bias_passed = weights
    one, two, three = first % 3, (first + 1) % 3 if last > first else 3, last % 3 if last > first + 1 else 3
    a, b, c = sums[one, :size], sums[two, :size], sums[three, :size]
    for x in range(size):
        k[x] = a[x] + b[x] + c[x]
    a, b, c = passed[one, :size], passed[two, :size], passed[three, :size]
    for x in range(size):
        t[x] = from_value * k[x] + from_passed * (a[x] + b[x] + c[x]) + bias_passed
    for x in range(size):
        k[x] = from_sum * k[x] + bias


@_compile
def _spread(images, groups, chosen, left, right):  # type: ignore[no-untyped-def]
    """Numbers of the chosen (image, group) pairs, (q, l): the image's in all lanes, and those of the group's inputs."""
    for unit in range(chosen.shape[0]):
        image, group = images[chosen[unit, 0]], groups[chosen[unit, 1]]
        for q in range(left.shape[0]):
            number, one, two = image[q], left[q], right[q]
            for x in range(LANES):
                one[unit * LANES + x] = number
                two[unit * LANES + x] = group[q, x]


@_compile
def _moved(code, left, right, begins, degrees, shapes, strides, channels, move, weights, room, totals, slopes):  # type: ignore[no-untyped-def]
    """Adds to totals and slopes (l) the sums over pixels s whose t = s + move is a pixel of the last image too.

    Convolutions never mix displacements: those of one in the last image stem from its multiples by the strides in the
    earlier ones, so that a rectangle of every image is seen, and the same rectangle moved.
    """
    depth, lanes = strides.shape[0], totals.shape[0]
    k, t, sums, passed, work = room
    down, along = move
    for i in range(depth - 1, -1, -1):
        down, along = down * strides[i], along * strides[i]
    for i in range(depth + 1):
        height, width = shapes[i]
        rows, columns = height - abs(down), width - abs(along)
        size, plane = columns * lanes, height * width * lanes
        start1 = begins[i] + (max(0, -down) * width + max(0, -along)) * lanes
        start2 = begins[i] + (max(0, down) * width + max(0, along)) * lanes
        if i == depth:
            for row in range(rows):
                one, two = k[row * size : (row + 1) * size], t[row * size : (row + 1) * size]
                at = row * width * lanes
                _activate(code, one, two, left, right, start1 + at, start2 + at, plane, degrees[i], work)
                for v in range(columns):
                    value, slope = one[v * lanes : (v + 1) * lanes], two[v * lanes : (v + 1) * lanes]
                    for x in range(lanes):
                        totals[x] += value[x]
                    for x in range(lanes):
                        slopes[x] += slope[x]
            return
        stride = strides[i]
        down, along = down // stride, along // stride
        below, beside = shapes[i + 1, 0] - abs(down), shapes[i + 1, 1] - abs(along)
        done = 0  # rows that are summed
        for u in range(below):
            first, last = max(0, u * stride - 1), min(rows - 1, u * stride + 1)
            for row in range(max(done, first), last + 1):
                one, two = k[row * size : (row + 1) * size], t[row * size : (row + 1) * size]
                at = row * width * lanes
                if i == 0:
                    _products(one, left, right, start1 + at, start2 + at, plane, channels)
                    passed[row % 3, : beside * lanes] = 0.0
                else:
                    _activate(code, one, two, left, right, start1 + at, start2 + at, plane, degrees[i], work)
                    _across(two, passed[row % 3], columns, beside, stride, lanes)
                _across(one, sums[row % 3], columns, beside, stride, lanes)
            done = last + 1
            # rows up to ``last`` are read: row u of the next layer may take the place of one of them
            here = slice(u * beside * lanes, (u + 1) * beside * lanes)
            _layer(k[here], t[here], sums, passed, first, last, weights[i])


@_compile
def convolutions(code, images, groups, chosen, units, shapes, strides, planes, moves, weights, values, slopes):  # type: ignore[no-untyped-def]
    """Sums over pixels s of the last layer's ``D(K)`` and ``D'(K) T``, images at s and groups at s + each of moves.

    images (n, q), groups (g, q, 8): pixels, then what is prepared of every layer's variances; chosen (c, 2) pairs of
    both, ``units`` of them in a block; shapes (1 + depth, 2) of the input and of every layer; strides (depth,);
    planes (1 + depth,) how many numbers of a pixel each has in q; moves (d, 2) of the last layer's pixels; weights
    (depth, 5) of `recursion.Step`; values, slopes (c, 8), overwritten.
    """
    depth, total, most = strides.shape[0], images.shape[1], 0
    for i in range(depth + 1):
        most = max(most, shapes[i, 1] * LANES)
    begins, degrees = np.zeros(depth + 2, np.int64), np.zeros(depth + 1, np.int64)
    for begin in range(0, chosen.shape[0], units):
        block = slice(begin, min(begin + units, chosen.shape[0]))
        many = block.stop - begin
        lanes = many * LANES
        if begin == 0 or many < units:
            pixels = shapes[0, 0] * shapes[0, 1] * lanes
            sums, passed = np.zeros((4, most * many)), np.zeros((4, most * many))
            room = np.empty(pixels), np.zeros(pixels), sums, passed, np.empty((4, most * many))
            one, two = np.empty((total, lanes)), np.empty((total, lanes))
            left, right = one.reshape(-1), two.reshape(-1)
        _spread(images, groups, chosen[block], one, two)
        for i in range(depth + 1):
            plane = shapes[i, 0] * shapes[i, 1] * lanes
            begins[i + 1] = begins[i] + planes[i] * plane
            if code == 3 and i > 0:
                here = slice(begins[i], begins[i + 1])
                degrees[i] = _degrees(left[here], right[here], planes[i] - 1, plane)
        value, slope = values[block].reshape(-1), slopes[block].reshape(-1)
        value[:] = 0.0
        slope[:] = 0.0
        for d in range(moves.shape[0]):
            move = moves[d, 0], moves[d, 1]
            _moved(code, left, right, begins, degrees, shapes, strides, planes[0], move, weights, room, value, slope)


@_compile
def fully_connected(code, k, t, images, groups, planes, weights):  # type: ignore[no-untyped-def]
    """In place: products of inputs ``k`` (n, m) become the last layer's ``D(K)``, and ``t`` its ``D'(K) T``.

    images (n, f) and groups (f, m): what is prepared of every hidden layer's variances; planes (depth,) numbers of
    each layer in f; weights (depth, 5) of `_layer`.
    """
    columns = k.shape[1]
    left, work = np.empty((images.shape[1], columns)), np.empty((4, columns))
    flat, right = left.reshape(-1), groups.reshape(-1)
    for p in range(k.shape[0]):
        one, two = k[p], t[p]
        for q in range(images.shape[1]):
            left[q] = images[p, q]
        two[:] = 0.0
        begin = 0
        for i in range(planes.shape[0]):
            from_sum, bias, from_value, from_passed, bias_passed = weights[i]
            for x in range(columns):
                value = one[x]
                one[x] = from_sum * value + bias
                two[x] = from_value * value + from_passed * two[x] + bias_passed
            end = begin + planes[i] * columns
            degrees = _degrees(flat[begin:end], right[begin:end], planes[i] - 1, columns) if code == 3 else 0
            _activate(code, one, two, flat, right, begin, begin, columns, degrees, work)
            begin = end
