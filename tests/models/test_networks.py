"""The networks are their equations, and their parameterisations scale as they say."""

import math

import pytest
import torch
import torch.nn.functional as F

from ridgescope.models import CNN, MLP, ScaledConv2d, empirical_ntk
from ridgescope.models.activations import ACTIVATIONS

PARAMETERISATIONS = ["ntk", "mup", "standard"]


def mlp(width, generator, **options):
    return MLP((64,), 5, width=width, **{"depth": 2, "generator": generator, **options})


def cnn(width, generator, **options):
    return CNN((1, 8, 8), 5, width=width, **{"depth": 2, "strides": (1, 2), "generator": generator, **options})


def test_the_mlp_is_its_equation(generator, inputs):
    net = mlp(16, generator, activation="erf", bias_std=0.3, weight_std=1.5)
    x = inputs(3, 64)
    (w1, b1), (w2, b2), (v, b) = [(layer.weight, layer.bias) for layer in net.layers]
    z1 = x @ w1.T / 8 + 0.3 * b1
    z2 = 1.5 / 4 * torch.erf(z1) @ w2.T + 0.3 * b2
    torch.testing.assert_close(net(x), 1.5 / 4 * torch.erf(z2) @ v.T + 0.3 * b)


@pytest.mark.parametrize("readout", ["flatten", "pool"])
def test_the_cnn_is_its_equation(generator, inputs, readout):
    net = cnn(6, generator, activation="tanh", bias_std=0.3, weight_std=1.5, readout=readout)
    x = inputs(3, 1, 8, 8)
    (w1, b1), (w2, b2), (v, b) = [(layer.weight, layer.bias) for layer in net.layers]
    z1 = F.conv2d(x, w1 / 3, 0.3 * b1, padding=1)
    z2 = F.conv2d(torch.tanh(z1), 1.5 / math.sqrt(54) * w2, 0.3 * b2, padding=1, stride=2)
    a2 = torch.tanh(z2)
    a2 = a2.mean((2, 3)) if readout == "pool" else a2.flatten(1)
    torch.testing.assert_close(net(x), 1.5 / math.sqrt(a2.shape[1]) * a2 @ v.T + 0.3 * b)


def test_mup_is_ntk_with_a_smaller_readout():
    nets = [mlp(16, torch.Generator().manual_seed(1), parameterisation=p, bias_std=0.2) for p in ("ntk", "mup")]
    x = torch.ones(2, 64, dtype=torch.float64)
    torch.testing.assert_close(nets[0](x), 4 * nets[1](x))


def test_standard_is_ntk_with_the_scales_inside_the_weights():
    ntk, standard = [
        cnn(8, torch.Generator().manual_seed(1), parameterisation=p, bias_std=0.2) for p in ("ntk", "standard")
    ]
    x = torch.ones(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ntk(x), standard(x))
    assert {layer.weight_scale for layer in standard.layers} == {1.0}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parameterisation", ["ntk", "standard"])
def test_mlp_output_variance_is_one_at_any_width(generator, inputs, activation, parameterisation):
    x = inputs(1, 64)
    for width in (8, 32, 128):
        options = {"activation": activation, "parameterisation": parameterisation}
        outputs = torch.cat([mlp(width, generator, **options)(x).flatten() for _ in range(200)])
        squares = outputs.detach() ** 2
        # the 5 outputs of a draw share their features, so only the draws are independent: s.e. over 200 means
        means = squares.view(200, 5).mean(1)
        assert abs(means.mean() - 1) < 4 * means.std() / math.sqrt(200)


@pytest.mark.parametrize("readout", ["flatten", "pool"])
def test_cnn_output_variance_is_flat_in_width(generator, inputs, readout):
    x = inputs(1, 1, 8, 8)
    means = []
    for width in (4, 32):
        draws = [cnn(width, generator, readout=readout)(x).detach().square().mean() for _ in range(300)]
        means.append(torch.stack(draws))
    difference = means[0].mean() - means[1].mean()
    error = math.sqrt(sum(float(draws.var()) / 300 for draws in means))
    assert abs(difference) < 4 * error


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("make", [mlp, cnn])
def test_kernel_scale_makes_the_kernel_flat_in_width(generator, inputs, make, parameterisation):
    x = inputs(2, 1, 8, 8)
    means, errors = [], []
    for width in (64, 256):
        nets = [make(width, generator, parameterisation=parameterisation) for _ in range(16)]
        traces = torch.stack([empirical_ntk(net, None, x).trace() / net.kernel_scale for net in nets])
        if parameterisation == "standard":  # an input layer's share is its fan-in / width: no limit of its own
            traces -= torch.stack([input_share(net, x) for net in nets]) / width
        means.append(traces.mean())
        errors.append(traces.std() / 4)
    # 4 s.e., and a 1/width correction of order one
    assert abs(means[0] - means[1]) < 4 * torch.stack(errors).norm() + means[0] / 64


def input_share(net, x):
    """Trace of the first layer's contribution to the NTK."""
    weight = net.layers[0].weight
    outputs = net(x).flatten()
    return sum(torch.autograd.grad(out, weight, retain_graph=True)[0].square().sum() for out in outputs)


def feature_update(net, x, y, steps=5, rate=0.05):
    """Root mean square change of the last features after plain SGD on half the squared error."""
    before = net.features(x).detach()
    for _ in range(steps):
        loss = 0.5 * (net(x) - y).square().sum(1).mean()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= rate * net.learning_rate_scale * gradient
    return (net.features(x).detach() - before).square().mean().sqrt().item()


@pytest.mark.parametrize(("make", "widths"), [(mlp, (32, 512)), (cnn, (16, 128))])
def test_coordinate_check(inputs, generator, make, widths):
    x, y = inputs(16, 1, 8, 8), torch.randn(16, 5, generator=generator, dtype=torch.float64)

    def growth(parameterisation):
        narrow, wide = (
            sum(feature_update(make(w, generator, parameterisation=parameterisation), x, y) for _ in range(4))
            for w in widths
        )
        return wide / narrow

    # mup moves each feature by O(1), ntk by O(1/sqrt(width)); 30 % for 4 draws and for 1/width corrections
    assert growth("mup") == pytest.approx(1, rel=0.3)
    assert growth("ntk") == pytest.approx(math.sqrt(widths[0] / widths[1]), rel=0.3)


def test_draws_come_from_the_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    nets = [cnn(4, torch.Generator().manual_seed(7), bias_std=0.1) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_parameters_have_the_dtype_asked_for(generator, make):
    net = make(4, generator, dtype=torch.float32, bias_std=0.1)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_a_single_stride_serves_every_convolution(generator):
    net = CNN((3, 28, 28), 2, width=4, depth=2, strides=2, generator=generator)
    assert net.pixels == [(14, 14), (7, 7)]
    assert net.readout.in_features == 4 * 49


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (mlp, {"width": 0}, "width=0"),
        (cnn, {"width": -3}, "width=-3"),
        (mlp, {"depth": 0}, "depth=0"),
        (mlp, {"activation": "swish"}, "activation='swish'.*relu, erf, gelu, tanh"),
        (cnn, {"parameterisation": "ntp"}, "parameterisation='ntp'.*ntk, mup, standard"),
        (cnn, {"readout": "mean"}, "readout='mean'.*flatten, pool"),
        (cnn, {"strides": (1, 2, 2)}, r"strides=\(1, 2, 2\) has 3 entries for depth=2"),
        (cnn, {"strides": 0}, "stride=0"),
        (mlp, {"weight_std": 0.0}, "weight_std must be positive and finite, got 0.0"),
        (mlp, {"bias_std": -1.0}, "bias_std must be at least 0 and finite, got -1.0"),
        (mlp, {"dtype": torch.int64}, "floating-point type, got torch.int64"),
    ],
)
def test_bad_arguments_are_named(generator, make, options, message):
    options = {"width": 8, **options}
    with pytest.raises(ValueError, match=message):
        make(generator=generator, **options)


def test_bad_shapes_are_named(generator):
    with pytest.raises(ValueError, match=r"needs in_shape=\(channels, height, width\), got \(64,\)"):
        CNN((64,), 5, width=4, depth=1, generator=generator)
    with pytest.raises(ValueError, match="num_outputs=0"):
        MLP((64,), 0, width=4, depth=1, generator=generator)
    with pytest.raises(ValueError, match=r"sizes of at least 1, got \(0,\)"):
        MLP((0,), 1, width=4, depth=1, generator=generator)
    with pytest.raises(ValueError, match=r"shape \(2, 63\) do not fit in_shape=\(64,\)"):
        mlp(4, generator)(torch.ones(2, 63, dtype=torch.float64))


@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 8), (2, 7), (3, 8)])
def test_the_float64_convolution_is_torchs(generator, stride, size):
    layer = ScaledConv2d(3, 5, 0.7, 0.2, stride=stride, generator=generator)
    x = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64)
    expected = 0.7 * torch.nn.functional.conv2d(x, layer.weight, stride=stride, padding=1)
    torch.testing.assert_close(layer(x), expected + 0.2 * layer.bias[:, None, None])
