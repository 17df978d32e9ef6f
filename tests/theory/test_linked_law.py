"""The law of linked layers: nothing below, its own differences, kernels drawn from the examples."""

import pytest
import torch

from ridgescope.theory.blocks import (
    LinkedFamily,
    LinkedKernel,
    MixedKernel,
    PointKernel,
    SampledFamily,
    SampledKernel,
    mixed_law,
    sampled_law,
)

P, T, RANK, LOWER, WIDTH = 24, 7, 5, 10, 80
RIDGE = 1e-2
NAMES = ("kappa1", "dkappa1_dridge", "gamma1", "test", "test_variance", "train", "loo")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr("ridgescope.theory.blocks.mixture.TOLERANCE", 1e-12)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def law(linked, y, z, families=(), width=WIDTH, size=P, **options):
    cross = torch.zeros(linked.own.shape[-1] - size, size, dtype=torch.float64)
    # the limit is a start, and what the law is compared with: neither matters here
    limit = PointKernel(torch.eye(size, dtype=torch.float64), cross, cross[:, 0])
    kernel = MixedKernel([LinkedKernel(size, linked, families)], limit, width)
    return mixed_law(kernel, y, z, **{"ridge": RIDGE, **options})


def examples(generator, copies=1, lower=LOWER):
    """Six kinds of channels that differ in size, in both parts alike; two dependent weights in each lower channel."""
    scale = torch.linspace(0.2, 1.8, 6, dtype=torch.float64)[:, None, None, None]
    own, below = normal(generator, 6, RANK, copies, P + T), normal(generator, 6, lower, copies, P + T)
    both = torch.stack([below, below + normal(generator, *below.shape)], 2)
    return scale * own, scale[:, None, None] * 0.8 * both[:, :, :, None]


def test_nothing_below_is_the_sampled_law(generator):
    own, below = examples(generator, copies=2)
    read = SampledFamily(*own[:3, :2, :1].split([P, T], 3))
    y, z = normal(generator, P, 2), normal(generator, T, 2)
    found = law(LinkedFamily(own, 0 * below, outputs=2), y, z, [read], width=6)
    expected = sampled_law(SampledKernel([read, SampledFamily(*own.split([P, T], 3))]), y, z, width=6, ridge=RIDGE)
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-8, atol=0, msg=name)


def test_many_features_give_what_few_do(generator):
    """The same kernels from features split in parts, more of them than there are points."""
    own, below = examples(generator, copies=2, lower=4)
    split = own.repeat(1, 20, 1, 1) / 20**0.5
    y, z = normal(generator, P, 1), normal(generator, T, 1)
    found, expected = (law(LinkedFamily(one, below, outputs=3), y, z) for one in (split, own))
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-8, atol=0, msg=name)


@pytest.mark.parametrize("sides", [1, 2])
def test_the_risk_is_the_slope_of_the_loss_in_the_weight_of_a_point(generator, sides):
    own, below = examples(generator, copies=3 - sides)
    below = below.repeat(1, 1, 1, sides, 1, 1)
    linked, y, step = LinkedFamily(own, below, 3 - sides, sides), normal(generator, P + T, 1), 1e-5
    found = law(linked, y[:P], y[P:], width=6)
    index = [*range(P), P + 3]
    points = [*index, P + 4]
    wide = LinkedFamily(own[..., points], below[..., points], 3 - sides, sides)
    weights = torch.ones(P + 1, dtype=torch.float64)
    weights[-1] = step
    more = law(wide, y[index], y[P + 4 : P + 5], width=6, size=P + 1, ridge=RIDGE * P / (P + 1), weights=weights)
    losses = [float((t * (g.resolvent @ t)).sum()) for t, g in ((y[:P], found), (y[index], more))]
    slope = P * RIDGE * (losses[1] - losses[0]) / step
    assert slope == pytest.approx(float(found.test_points[3]), rel=1e-3)  # truncation


def test_dkappa_dridge_is_the_difference_quotient(generator):
    linked, y, step = LinkedFamily(*examples(generator)), normal(generator, P, 1), 1e-6
    low, high = (float(law(linked, y, None, ridge=RIDGE + s).kappa1) for s in (-step, step))
    assert float(law(linked, y, None).dkappa1_dridge) == pytest.approx((high - low) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("form", ["full", "trace"])
def test_kernels_drawn_from_the_examples_follow_the_law(generator, form):
    """Two outputs; each drawn channel is an example turned in output space, with signs of its lower channels."""
    draws, outputs = 150, 2
    own, below = examples(generator, copies=outputs)
    y = own[-1, :, 0].T @ normal(generator, RANK, outputs)
    found = []
    for _ in range(draws):
        chosen = torch.randint(len(own), (WIDTH,), generator=generator)
        turn, _ = torch.linalg.qr(normal(generator, WIDTH, outputs, outputs))
        turn = turn * normal(generator, WIDTH, 1, outputs).sign()
        signs = normal(generator, WIDTH, LOWER, 1, 1, 1).sign()
        mine = torch.einsum("ncq,nrqp->cpnr", turn, own[chosen]).flatten(2) / WIDTH**0.5
        lower = torch.einsum("ncq,nlqp->cpl", turn, (signs * below[chosen, :, :, 0]).flatten(1, 2)) / WIDTH
        rows = torch.cat([mine, lower], 2)
        full = torch.einsum("cpk,dqk->cpdq", rows, rows)
        if form == "trace":
            trace = full.diagonal(dim1=0, dim2=2).mean(2)
            full = torch.einsum("cd,pq->cpdq", torch.eye(outputs, dtype=torch.float64), trace)
        gram = full[:, :P, :, :P].reshape(outputs * P, -1) + P * RIDGE * torch.eye(outputs * P, dtype=torch.float64)
        inverse = torch.linalg.inv(gram)
        dual = inverse @ y[:P].T.reshape(-1, 1)
        guess = (full[:, P:, :, :P].reshape(outputs * T, -1) @ dual).view(outputs, T).T
        found.append([float(inverse.trace()) / outputs, float((y[P:] - guess).square().sum(1).mean())])
    sample = torch.tensor(found, dtype=torch.float64)
    if form == "full":
        linked = LinkedFamily(own, below, outputs)
    else:
        unit = outputs**-0.5
        linked = LinkedFamily(own.flatten(1, 2)[:, :, None] * unit, below.transpose(3, 4) * unit, sides=outputs)
    predicted = law(linked, y[:P], y[P:])
    expected = torch.stack([1 / predicted.kappa1, predicted.test])
    error = sample.std(0) / draws**0.5
    assert float(predicted.test_variance / predicted.test) > 0.03  # or the width would not matter
    assert ((sample.mean(0) - expected).abs() <= 4 * error + 0.02 * expected).all()  # 2 %: the cavity step's 1/N
