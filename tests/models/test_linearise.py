"""The linearised prediction is the cross kernel times the dual, and the network's own first-order change."""

import pytest
import torch
from torch.func import functional_call

from ridgescope.models import CNN, MLP, empirical_ntk, linearised_predict


@pytest.fixture(params=["mlp", "cnn", "pooled cnn"])
def net(request, generator):
    if request.param == "mlp":
        return MLP((36,), 3, width=12, depth=2, bias_std=0.3, generator=generator)
    readout = "pool" if "pooled" in request.param else "flatten"
    return CNN((1, 6, 6), 3, width=4, depth=2, readout=readout, parameterisation="mup", generator=generator)


def test_equals_the_cross_kernel_times_the_dual(net, inputs, generator):
    x, points = inputs(7, 36), inputs(5, 36)
    dual = torch.randn(21, generator=generator, dtype=torch.float64)
    expected = (empirical_ntk(net, None, points, x) @ dual).view(3, 5).T
    for batch in (2, 100):
        torch.testing.assert_close(linearised_predict(net, None, x, dual, points, batch=batch), expected)
    by_input = dual.view(3, 7).T
    torch.testing.assert_close(linearised_predict(net, None, x, by_input, points), expected)


def test_interpolates_its_training_targets(net, inputs, generator):
    # (K + ridge) dual = y gives predictions y - ridge dual on the training inputs
    x, y = inputs(7, 36), torch.randn(21, generator=generator, dtype=torch.float64)
    kernel, ridge = empirical_ntk(net, None, x), 1e-3
    dual = torch.linalg.solve(kernel + ridge * torch.eye(21, dtype=torch.float64), y)
    predictions = linearised_predict(net, None, x, dual, x)
    torch.testing.assert_close(predictions.T.flatten(), y - ridge * dual)


def test_is_the_first_order_change_of_the_network(net, inputs, generator):
    x, points = inputs(4, 36), inputs(3, 36)
    dual = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    params = {name: value.detach() for name, value in net.named_parameters()}
    with torch.enable_grad():
        pull = torch.autograd.grad((net(x) * dual).sum(), list(net.parameters()))
    step = 1e-4  # smaller than the distance of any preactivation from ReLU's kink, for this seed
    ahead, behind = (
        functional_call(net, {n: p + s * g for (n, p), g in zip(params.items(), pull, strict=True)}, (points,))
        for s in (step, -step)
    )
    # central differences: error of order step^2
    change = ((ahead - behind) / (2 * step)).detach()
    torch.testing.assert_close(linearised_predict(net, None, x, dual, points), change, rtol=1e-6, atol=1e-6)


def test_uses_the_parameters_it_is_given(generator, inputs):
    nets = [MLP((36,), 3, width=12, depth=2, generator=generator) for _ in range(2)]
    x, dual = inputs(4, 36), torch.ones(12, dtype=torch.float64)
    theirs = {name: value.detach() for name, value in nets[1].named_parameters()}
    predictions = linearised_predict(nets[0], theirs, x, dual, x)
    assert torch.equal(predictions, linearised_predict(nets[1], None, x, dual, x))
    assert not predictions.requires_grad


def test_bad_duals_are_named(net, inputs):
    x = inputs(4, 36)
    with pytest.raises(ValueError, match=r"dual has shape \(4,\); expected \(12,\) or \(4, 3\)"):
        linearised_predict(net, None, x, torch.ones(4, dtype=torch.float64), x)
    with pytest.raises(ValueError, match=r"dual is torch.float32.*torch.float64"):
        linearised_predict(net, None, x, torch.ones(12), x)
