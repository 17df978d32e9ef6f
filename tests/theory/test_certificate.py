"""A certificate refuses a ridge exactly where rounding would decide the regression."""

import math

import pytest
import torch

from ridgescope.theory import Certificate, Resolvents, certificate, kernel_ridge


def with_spectrum(eigenvalues: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    n = len(eigenvalues)
    vectors = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    matrix = (vectors * eigenvalues) @ vectors.T
    return (matrix + matrix.T) / 2


@pytest.fixture
def decaying(generator: torch.Generator) -> torch.Tensor:
    """Largest eigenvalue 1, a null space of half the dimension."""
    values = torch.arange(1, 81, dtype=torch.float64) ** -2.0
    values[40:] = 0
    return with_spectrum(values, generator)


def test_single_precision_refuses_what_rounding_decides(decaying: torch.Tensor) -> None:
    single = decaying.float().double()
    eps = torch.finfo(torch.float32).eps
    ridges = (1e-9, 3e-3)
    shifts = [r * torch.eye(80, dtype=torch.float64) for r in ridges]
    errors = [float(torch.linalg.inv(single + s).trace() / torch.linalg.inv(decaying + s).trace()) for s in shifts]
    found = certificate(single, precision=torch.float32)
    assert found.floor == pytest.approx(8 * eps, rel=1e-3)
    refused, carried = (found.refusal(r) for r in ridges)
    assert refused is not None
    assert "compute the kernel in float64, or raise the ridge to 9.5e-05" in refused
    assert abs(errors[0] - 1) > 1e-2
    assert carried is None
    assert abs(errors[1] - 1) < 1e-4
    assert certificate(decaying).refusal(1e-9) is None


def test_rounding_of_a_kernel_stays_below_the_floor(generator: torch.Generator) -> None:
    """The constant 8 of the floor: products of 1000 features in single precision."""
    features = torch.randn(300, 1000, generator=generator) + 0.3
    exact = features.double() @ features.double().T
    rounded = (features @ features.T).double()
    worst = float(torch.linalg.matrix_norm(rounded - exact, 2))
    assert 0 < worst < certificate(rounded, precision=torch.float32).floor


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a + 1e-9 * torch.randn(80, 80, generator=torch.Generator().manual_seed(1)), "not symmetric"),
        (lambda a: a - 1e-6 * torch.eye(80, dtype=torch.float64), "below the rounding floor"),
        (lambda a: a * math.nan, "NaN"),
    ],
)
def test_a_wrong_kernel_is_told_from_rounding(decaying: torch.Tensor, spoil, message) -> None:
    reason = certificate(spoil(decaying)).refusal(1e-2)
    assert reason is not None
    assert message in reason


def test_condition_counts_the_ridge() -> None:
    found = Certificate(2, 0.0, smallest=1.0, largest=4.0, eps=2.2e-16)
    assert found.condition() == 4.0
    assert found.condition(2.0) == 2.0
    assert Certificate(2, 0.0, smallest=0.0, largest=4.0, eps=2.2e-16).condition() == math.inf


@pytest.mark.parametrize("num_ridges", [1, 20])
def test_both_factorisations_are_the_inverse(
    decaying: torch.Tensor, generator: torch.Generator, num_ridges: int
) -> None:
    targets = torch.randn(80, 3, generator=generator, dtype=torch.float64)
    stage = Resolvents(decaying, num_ridges=num_ridges)
    assert (stage.eigenvalues is None) == (num_ridges == 1)
    for ridge in (1e-4, 1.0):
        inverse = torch.linalg.inv(decaying + ridge * torch.eye(80, dtype=torch.float64))
        found = stage.at(ridge)
        torch.testing.assert_close(found.times(targets), inverse @ targets, rtol=1e-9, atol=1e-9)
        assert found.mean() == pytest.approx(float(inverse.trace()) / 80, rel=1e-10)
        blocks = inverse.view(2, 40, 2, 40).diagonal(dim1=1, dim2=3).permute(2, 0, 1)
        torch.testing.assert_close(found.blocks(2), blocks, rtol=1e-9, atol=1e-9)
        exact = certificate(decaying)
        assert found.certificate.condition(ridge) == pytest.approx(exact.condition(ridge), rel=0.05)


@pytest.mark.parametrize("num_ridges", [1, 20])
def test_a_ridge_below_the_floor_is_refused_by_both(decaying: torch.Tensor, num_ridges: int) -> None:
    with pytest.raises(ValueError, match=r"cannot carry ridge=1e-15.*raise the ridge to 1.8e-13"):
        Resolvents(decaying, num_ridges=num_ridges).at(1e-15)
    with pytest.raises(ValueError, match="NaN"):
        Resolvents(decaying * math.nan, num_ridges=num_ridges)


def test_a_well_conditioned_kernel_needs_no_ridge(generator: torch.Generator) -> None:
    gram = with_spectrum(torch.linspace(1, 3, 30, dtype=torch.float64), generator)
    targets = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    assert kernel_ridge(gram, targets, 0.0).train == 0
