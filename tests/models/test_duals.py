"""Closed forms against quadrature, and the points where rounding bites."""

import math

import pytest
import torch
import torch.nn.functional as F

from ridgescope.models.activations import ACTIVATIONS, gaussian_nodes
from ridgescope.models.kernels.duals import DUALS, hermite_dual

SLOPES = {
    "relu": lambda z: torch.heaviside(z, torch.tensor(0.5**0.5, dtype=torch.float64)),  # its square: 1/2 at 0
    "erf": lambda z: 2 / math.sqrt(math.pi) * torch.exp(-(z**2)),
    "gelu": lambda z: 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi),
    "tanh": lambda z: 1 / torch.cosh(z) ** 2,
}


@pytest.fixture
def covariances(generator):
    """k (6, 5), q1 (6, 1), q2 (1, 5) of random Gaussian pairs, variances 0.1 to 4.6."""
    q1, q2, c = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in [(6, 1), (1, 5), (6, 5)])
    q1, q2 = 0.1 + 4.5 * q1, 0.1 + 3 * q2
    return (2 * c - 1) * (q1 * q2).sqrt(), q1, q2


def gaussian_mean(function, k, q1, q2):
    """E[f(u) f(v)] by the trapezoidal rule on a plane; its error is below rounding for these functions."""
    z, w = gaussian_nodes(0.05)
    cosine = (k / (q1 * q2).sqrt())[..., None, None]
    u = q1.expand(6, 5).sqrt()[..., None, None] * z[:, None]
    v = q2.expand(6, 5).sqrt()[..., None, None] * (cosine * z[:, None] + (1 - cosine**2).sqrt() * z)
    return torch.einsum("...ij,i,j->...", function(u) * function(v), w, w)


@pytest.mark.parametrize("name", ["erf", "gelu", "tanh"])
def test_duals_are_gaussian_means(covariances, name):
    dual, derivative = DUALS[name](*covariances)
    torch.testing.assert_close(dual, gaussian_mean(ACTIVATIONS[name].function, *covariances), rtol=0, atol=1e-13)
    torch.testing.assert_close(derivative, gaussian_mean(SLOPES[name], *covariances), rtol=0, atol=1e-13)


def test_relu_dual_at_known_angles():
    cosine = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0], dtype=torch.float64)
    angle = torch.tensor([0.0, 1 / 3, 1 / 2, 2 / 3, 1.0], dtype=torch.float64) * math.pi
    q1, q2 = (torch.tensor(q, dtype=torch.float64) for q in (2.0, 8.0))
    dual, derivative = DUALS["relu"](4 * cosine, q1, q2)
    torch.testing.assert_close(derivative, (math.pi - angle) / (2 * math.pi), rtol=0, atol=1e-15)
    expected = 4 * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    torch.testing.assert_close(dual, expected, rtol=0, atol=1e-15)


def test_relu_dual_of_parallel_inputs_keeps_all_digits():
    # arccos would turn a correlation of 1 - 2e-16 into an angle of 2e-8
    q = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    for rounding in (-2e-16, 0.0, 2e-16):
        dual, derivative = DUALS["relu"](q * 3 * (1 + rounding), q, 9 * q)
        torch.testing.assert_close(derivative, torch.full_like(q, 0.5), rtol=0, atol=1e-15)
        torch.testing.assert_close(dual, 1.5 * q, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", DUALS)
def test_dead_pixels_stay_finite(name):
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for value in (*DUALS[name](zero, zero, one), *DUALS[name](zero, zero, zero)):
        assert torch.isfinite(value).all()
    assert DUALS[name](zero, zero, one)[0].abs() < 1e-150  # the floor under ReLU's norm


@pytest.mark.parametrize("name", DUALS)
@pytest.mark.parametrize("variance", [0.3, 1.0, 3.7])
def test_an_input_with_itself_is_a_mean_over_one_gaussian(name, variance):
    q = torch.full((1,), variance, dtype=torch.float64)
    z, w = gaussian_nodes(0.02)  # nodes symmetric around ReLU's kink: exact for z^2, where it is smooth again
    values, slopes = ACTIVATIONS[name].function(variance**0.5 * z), SLOPES[name](variance**0.5 * z)
    for value, mean in zip(DUALS[name](q, q, q), (w @ values**2, w @ slopes**2), strict=True):
        assert float(value) == pytest.approx(float(mean), rel=1e-12)


@pytest.mark.parametrize("name", DUALS)
def test_the_gain_keeps_unit_variance(name):
    one = torch.ones(1, dtype=torch.float64)
    assert float(DUALS[name](one, one, one)[0]) * ACTIVATIONS[name].gain ** 2 == pytest.approx(1, rel=1e-13)


def test_the_hermite_series_reproduces_a_closed_form(covariances):
    for series, closed in zip(hermite_dual(torch.erf)(*covariances), DUALS["erf"](*covariances), strict=True):
        torch.testing.assert_close(series, closed, rtol=0, atol=1e-13)


def test_activations_are_torch_s():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.equal(ACTIVATIONS["gelu"].function(z), F.gelu(z))
    assert torch.equal(ACTIVATIONS["relu"].function(z), z.clamp_min(0))
