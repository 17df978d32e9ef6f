"""Infinite-width kernels against wide finite networks with their own errors, and against hand calculations."""

import math

import pytest
import torch
from torch import nn

from ridgescope.models import CNN, MLP, conjugate_kernel, empirical_ntk, infinite_ntk
from ridgescope.models.activations import ACTIVATIONS
from ridgescope.models.kernels.duals import DUALS
from ridgescope.models.kernels.infinite import dense, images, layered, limits

DRAWS = 24


def mlp(generator, **options):
    return MLP((36,), 2, **{"width": 256, "depth": 2, "bias_std": 0.3, "generator": generator, **options})


def cnn(generator, **options):
    options = {"width": 64, "depth": 3, "strides": (1, 2, 1), "bias_std": 0.3, "generator": generator, **options}
    return CNN((1, 6, 6), 2, **options)


def pooled(generator, **options):
    return cnn(generator, **{"readout": "pool", "depth": 2, "strides": (1, 2), **options})


def similar_inputs(inputs):
    """Five inputs, of which two are close and two are equal."""
    x = inputs(5, 36)
    x[1] = x[0] + 0.3 * x[1]
    x[2] = x[0]
    return x


def assert_is_the_limit(draws, limit, width):
    draws = torch.stack(draws)
    error = draws.std(0) / math.sqrt(DRAWS)
    # 4 s.e. for 25 entries; and the mean itself is off by O(1/width), of the size of the kernel
    assert ((draws.mean(0) - limit).abs() <= 4 * error + 2 * limit.diagonal().max() / width).all()


@pytest.mark.parametrize("parameterisation", ["ntk", "mup", "standard"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make", [mlp, cnn, pooled])
def test_wide_networks_approach_the_limit(generator, inputs, make, activation, parameterisation):
    x = similar_inputs(inputs)
    options = {"activation": activation, "parameterisation": parameterisation}
    nets = [make(generator, **options) for _ in range(DRAWS)]
    limit = infinite_ntk(nets[0], x)
    tangent = [empirical_ntk(net, None, x, form="trace") / net.kernel_scale for net in nets]
    assert_is_the_limit(tangent, limit.ntk, nets[0].width)
    # given the features, the outputs' covariance is this; mup's is 1/width of the ntk's, and so is its scale
    readout, share = nets[0].readout, nets[0].kernel_scale if parameterisation == "mup" else 1.0
    covariance = [
        readout.weight_std**2 * readout.weight_scale**2 * net.features(x) @ net.features(x).T / share
        + (readout.bias_scale * readout.bias_std) ** 2 / share
        for net in nets
    ]
    assert_is_the_limit([one.detach() for one in covariance], limit.nngp, nets[0].width)


@pytest.mark.parametrize("make", [mlp, cnn, pooled])
def test_squared_deviations_from_the_limit_fall_as_one_over_width(generator, inputs, make):
    x, draws, widths = inputs(3, 36), 40, (8, 64)
    means, errors = [], []
    for width in widths:
        nets = [make(generator, width=width, activation="erf") for _ in range(draws)]
        limit = infinite_ntk(nets[0], x).ntk
        deviations = torch.stack([empirical_ntk(net, None, x, form="trace") / net.kernel_scale - limit for net in nets])
        squares = deviations.square().mean((1, 2))
        means.append(squares.mean())
        errors.append(squares.std() / squares.mean() / math.sqrt(draws))
    exponent = math.log(means[0] / means[1]) / math.log(widths[1] / widths[0])
    error = math.hypot(*errors) / math.log(widths[1] / widths[0])
    assert error < 0.25  # so that four of them tell 1 from 0 and from 2
    assert abs(exponent - 1) < 4 * error


def window_means(values, height, width, stride):
    """Mean over the nine pixels of a window, one pixel pair at a time; pixels outside count as zero."""
    return {
        (i // stride, j // stride): sum(values.get((i + di, j + dj), 0.0) / 9 for di in (-1, 0, 1) for dj in (-1, 0, 1))
        for i in range(0, height, stride)
        for j in range(0, width, stride)
    }


def slow_cnn_kernels(net, x, y, bias_std):
    """The recursion for the ntk parameterisation, pixel by pixel, with variances from each image with itself."""
    height, width = net.in_shape[1:]
    dual, gain = DUALS[net.activation], ACTIVATIONS[net.activation].gain
    pairs = [(x, x), (y, y), (x, y)]
    images = [[one.view(-1, *net.in_shape) for one in pair] for pair in pairs]
    values = [
        {(i, j): a[:, :, i, j] @ b[:, :, i, j].T / net.in_shape[0] for i in range(height) for j in range(width)}
        for a, b in images
    ]
    slopes = {pixel: torch.zeros_like(value) for pixel, value in values[2].items()}
    for layer, stride in enumerate(net.strides):
        s2 = 1.0 if layer == 0 else gain**2
        xx, yy, xy = [
            {pixel: s2 * mean + bias_std**2 for pixel, mean in window_means(value, height, width, stride).items()}
            for value in values
        ]
        passed = window_means(slopes, height, width, stride)
        height, width = math.ceil(height / stride), math.ceil(width / stride)
        values, slopes = [{}, {}, {}], {}
        for pixel in xy:
            qx, qy = xx[pixel].diagonal(), yy[pixel].diagonal()
            values[0][pixel] = dual(xx[pixel], qx[:, None], qx)[0]
            values[1][pixel] = dual(yy[pixel], qy[:, None], qy)[0]
            values[2][pixel], slope = dual(xy[pixel], qx[:, None], qy)
            slopes[pixel] = slope * (xy[pixel] + s2 * passed[pixel])
    nngp = gain**2 * sum(values[2].values()) / (height * width) + bias_std**2
    return nngp, nngp + gain**2 * sum(slopes.values()) / (height * width)


@pytest.mark.parametrize("strides", [(1, 1), (1, 2), (2, 2), (3, 1, 2)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_cnn_recursion_pixel_by_pixel(generator, inputs, activation, strides):
    x, y = inputs(4, 70), inputs(3, 70)
    options = {"strides": strides, "depth": len(strides), "activation": activation, "bias_std": 0.3}
    net = CNN((2, 5, 7), 1, width=3, generator=generator, **options)
    kernels = infinite_ntk(net, x, y)
    nngp, ntk = slow_cnn_kernels(net, x, y, bias_std=0.3)
    torch.testing.assert_close(kernels.nngp, nngp, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(kernels.ntk, ntk, rtol=1e-12, atol=1e-13)


def shifted_means(values, stride):
    """``mean_d v[s + d, t + d]`` over the nine offsets, for an array (n, m, rows, columns, rows, columns)."""
    padded = torch.nn.functional.pad(values, (1, 1) * 4)
    rows, columns = values.shape[2:4]
    windows = [
        padded[:, :, i : i + rows : stride, j : j + columns : stride, i : i + rows : stride, j : j + columns : stride]
        for i in range(3)
        for j in range(3)
    ]
    return sum(windows) / 9


def slow_pooled_kernels(net, x, y, bias_std):
    """The recursion over all pairs of pixels at once, with variances from each image with itself."""
    dual, gain = DUALS[net.activation], ACTIVATIONS[net.activation].gain
    images = [one.view(-1, *net.in_shape) for one in (x, y)]
    pairs = [(images[0], images[0]), (images[1], images[1]), images]
    values = [torch.einsum("ncij,mckl->nmijkl", a, b) / net.in_shape[0] for a, b in pairs]
    slopes = torch.zeros_like(values[2])
    for layer, stride in enumerate(net.strides):
        s2 = 1.0 if layer == 0 else gain**2
        xx, yy, xy = (s2 * shifted_means(value, stride) + bias_std**2 for value in values)
        passed = shifted_means(slopes, stride)
        qx, qy = (torch.einsum("nnijij->nij", v) for v in (xx, yy))
        values = [
            dual(k, q1[:, None, :, :, None, None], q2[None, :, None, None, :, :])[0]
            for k, q1, q2 in [(xx, qx, qx), (yy, qy, qy)]
        ]
        value, slope = dual(xy, qx[:, None, :, :, None, None], qy[None, :, None, None, :, :])
        values.append(value)
        slopes = slope * (xy + s2 * passed)
    nngp = gain**2 * values[2].mean((2, 3, 4, 5)) + bias_std**2
    return nngp, nngp + gain**2 * slopes.mean((2, 3, 4, 5))


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 3, 2)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pooled_recursion_over_all_pairs_of_pixels(generator, inputs, activation, strides):
    x, y = inputs(3, 70), inputs(2, 70)
    y[0] = x[1]
    options = {"strides": strides, "depth": len(strides), "activation": activation, "bias_std": 0.3}
    net = CNN((2, 5, 7), 1, width=3, readout="pool", generator=generator, **options)
    kernels = infinite_ntk(net, x, y)
    nngp, ntk = slow_pooled_kernels(net, x, y, bias_std=0.3)
    torch.testing.assert_close(kernels.nngp, nngp, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(kernels.ntk, ntk, rtol=1e-11, atol=1e-12)


def test_without_an_input_bias_the_first_layer_of_one_pixel_is_the_mlp(generator, inputs):
    # on 1x1 images the window holds one pixel of nine: a CNN with weights three times as large is an MLP
    x = inputs(4, 5)
    narrow = {"width": 3, "depth": 1, "activation": "erf", "generator": generator}
    ours = infinite_ntk(CNN((5, 1, 1), 1, **narrow), x)
    theirs = infinite_ntk(MLP((5,), 1, **narrow), x / 3)
    torch.testing.assert_close(ours.nngp, theirs.nngp)
    torch.testing.assert_close(ours.ntk, theirs.ntk)


def test_one_hidden_relu_layer_is_arc_cosine(generator, inputs):
    x = inputs(6, 36)
    cosine = (x @ x.T / 36).clamp(-1, 1)
    angle = torch.acos(cosine.fill_diagonal_(1))
    k1 = (angle.sin() + (math.pi - angle) * angle.cos()) / math.pi
    k0 = (math.pi - angle) / math.pi
    kernels = infinite_ntk(MLP((36,), 1, width=2, depth=1, generator=generator), x)
    torch.testing.assert_close(kernels.nngp, k1, rtol=0, atol=1e-14)
    torch.testing.assert_close(kernels.ntk, k1 + k0 * cosine, rtol=0, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_unit_variance_is_kept_through_any_depth(generator, inputs, activation):
    net = MLP((36,), 1, width=2, depth=20, activation=activation, generator=generator)
    diagonal = infinite_ntk(net, inputs(3, 36)).nngp.diagonal()
    # for tanh and erf the fixed point is unstable in no direction: rounding only adds up
    torch.testing.assert_close(diagonal, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-11)


def test_mup_and_ntk_have_the_same_limit(generator, inputs):
    x = inputs(4, 36)
    one, other = (infinite_ntk(cnn(generator, parameterisation=p, width=7), x) for p in ("ntk", "mup"))
    torch.testing.assert_close(one.ntk, other.ntk)
    torch.testing.assert_close(one.nngp, other.nngp)


@pytest.mark.parametrize("make", [mlp, cnn, pooled])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tiles_and_cross_blocks_give_the_same_numbers(monkeypatch, generator, inputs, make, activation):
    x = similar_inputs(inputs)
    net = make(generator, activation=activation, width=4)
    whole = infinite_ntk(net, x)
    assert torch.equal(whole.ntk, whole.ntk.T)
    # tiles of two by two pairs, one row left over; of convolutions, strips of one row and parts of one block
    monkeypatch.setattr(layered, "TILE_NUMBERS", 4 * (1 if make is mlp else math.prod(net.pixels[0])))
    monkeypatch.setattr(dense, "SIDE", 2)
    monkeypatch.setattr(images, "STRIP_NUMBERS", 1)
    monkeypatch.setattr(images, "PART_NUMBERS", 1)
    tiled, cross = infinite_ntk(net, x), infinite_ntk(net, x[1:], x[:3])
    for name in ("nngp", "ntk"):
        ours = getattr(whole, name)
        torch.testing.assert_close(getattr(tiled, name), ours, rtol=1e-12, atol=0)
        torch.testing.assert_close(getattr(cross, name), ours[1:, :3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 1, 7), (1, 4, 1)])
@pytest.mark.parametrize("options", [{}, {"strides": (2, 1, 1)}, {"strides": (1, 3, 2)}, {"strides": 4, "depth": 1}])
@pytest.mark.parametrize("readout", ["flatten", "pool", None])
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu"])
def test_compiled_sweeps_agree_with_layers_in_torch(
    monkeypatch, generator, inputs, activation, readout, options, shape
):
    x, y = inputs(11, math.prod(shape)), inputs(2, math.prod(shape))
    y[0] = x[10]
    common = {"width": 3, "activation": activation, "bias_std": 0.2, "generator": generator}
    if readout is None:
        net = MLP((x.shape[1],), 1, depth=3, **common)
    else:
        net = CNN(shape, 1, readout=readout, **{"depth": 3, **options, **common})
    kernels = [infinite_ntk(net, x), infinite_ntk(net, x, y)]
    monkeypatch.setattr(limits, "_way", lambda *_: layered.fill)
    for ours, slow in zip(kernels, [infinite_ntk(net, x), infinite_ntk(net, x, y)], strict=True):
        torch.testing.assert_close(ours.nngp, slow.nngp, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ours.ntk, slow.ntk, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make", [mlp, cnn, pooled])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, generator, inputs, make, activation):
    monkeypatch.setattr(dense, "SIDE", 16)
    monkeypatch.setattr(layered, "TILE_NUMBERS", 400)
    monkeypatch.setattr(images, "PART_NUMBERS", 1)
    net, x = make(generator, activation=activation, width=4), inputs(21, 36)
    threads, kernels = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            kernels.append(infinite_ntk(net, x))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    for other in kernels[1:]:
        assert torch.equal(kernels[0].ntk, other.ntk)
        assert torch.equal(kernels[0].nngp, other.nngp)


def test_an_interruption_ends_all_threads_and_gives_torch_its_own_back(monkeypatch, generator, inputs):
    monkeypatch.setattr(dense, "SIDE", 1)
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > 4:
            raise KeyboardInterrupt

    net, x, threads = mlp(generator), inputs(30, 36), torch.get_num_threads()
    monkeypatch.setattr(dense, "layers", interrupted)
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            infinite_ntk(net, x)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert len(calls) < 9  # of 465 tiles


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernels_are_positive(generator, inputs, activation):
    kernels = infinite_ntk(cnn(generator, activation=activation, width=4), inputs(20, 36))
    for kernel in (kernels.nngp, kernels.ntk):
        eigenvalues = torch.linalg.eigvalsh(kernel)
        assert eigenvalues[0] > -20 * 2.3e-16 * eigenvalues[-1]  # rounding of a 20 x 20 matrix


def test_repeated_inputs_have_equal_rows_across_blocks(generator, inputs):
    # 3072 products of a long input round differently in each block; ReLU must not amplify that to 1e-8
    x = inputs(40, 3072)
    net = MLP((3072,), 1, width=2, depth=3, generator=generator)
    kernel = infinite_ntk(net, x).ntk
    copies = infinite_ntk(net, x, x.clone()).ntk
    torch.testing.assert_close(copies.diagonal(), kernel.diagonal(), rtol=1e-12, atol=0)


def test_float32_inputs_give_float64_kernels(generator, inputs):
    x = inputs(3, 36)
    kernels = infinite_ntk(mlp(generator, dtype=torch.float32), x.float())
    assert kernels.ntk.dtype == torch.float64
    torch.testing.assert_close(kernels.ntk, infinite_ntk(mlp(generator), x.float().double()).ntk)


def test_conjugate_kernel_is_the_features_gram(generator, inputs):
    x, y = inputs(5, 36), inputs(3, 36)
    for net in (mlp(generator), cnn(generator, readout="pool", parameterisation="mup")):
        scale, bias = net.readout.weight_scale**2, net.readout.bias_scale**2
        expected = (scale * net.features(x) @ net.features(y).T + bias).detach()
        torch.testing.assert_close(conjugate_kernel(net, None, x, y, batch=2), expected)
        square = conjugate_kernel(net, None, x)
        assert torch.equal(square, square.T)
        torch.testing.assert_close(square, (scale * net.features(x) @ net.features(x).T + bias).detach())


def test_conjugate_kernel_is_what_the_readout_adds_to_the_ntk(generator, inputs):
    x = inputs(5, 36)
    net = mlp(generator)
    params = list(net.readout.parameters())
    rows = torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(out, params, retain_graph=True)])
        for out in net(x)[:, 0]
    ])  # fmt: skip
    torch.testing.assert_close(conjugate_kernel(net, None, x), rows @ rows.T)


def test_a_kernel_that_takes_too_long_is_refused_with_its_hours(generator, inputs):
    with pytest.raises(ValueError, match=r"5 x 5 inputs would take about .* hours, more than max_hours=1e-09"):
        infinite_ntk(pooled(generator), inputs(5, 36), max_hours=1e-9)


def test_models_without_these_kernels_are_refused(generator, inputs):
    x = inputs(3, 36)
    with pytest.raises(ValueError, match="exist for MLP and CNN, got Linear; use empirical_ntk"):
        infinite_ntk(nn.Linear(36, 1), x)
    with pytest.raises(ValueError, match=r"shape \(3, 36\) do not fit in_shape=\(5,\)"):
        infinite_ntk(MLP((5,), 1, width=2, depth=1, generator=generator), x)
    with pytest.raises(ValueError, match="inputs hold NaN"):
        infinite_ntk(mlp(generator), x / 0)
    with pytest.raises(ValueError, match="end it in a linear layer"):
        conjugate_kernel(nn.Sequential(nn.Linear(36, 3), nn.ReLU()).double(), None, x)
