"""Gaussian data with a known spectrum: the simulation that the theory is compared with."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ridgescope.theory import Spectrum


@dataclass(frozen=True)
class Draw:
    """Inputs phi (p, d) with unit covariance, labels (p, 1), features z = phi sqrt(eta) (p, d)."""

    phi: Tensor
    labels: Tensor
    features: Tensor

    @property
    def gram(self) -> Tensor:
        return self.features @ self.features.T


@pytest.fixture
def draw() -> Callable[..., Draw]:
    def make(spectrum: Spectrum, c: Tensor, num_samples: int, noise: float, generator: torch.Generator) -> Draw:
        phi = torch.randn(num_samples, len(c), generator=generator, dtype=torch.float64)
        eps = torch.randn(num_samples, generator=generator, dtype=torch.float64)
        return Draw(phi, (phi @ c + noise**0.5 * eps)[:, None], phi * spectrum.eta.sqrt())

    return make


@pytest.fixture
def assert_mean() -> Callable[..., None]:
    """The mean of ``values`` equals ``expected`` within 4 of its own standard errors plus a stated O(1/P)
    bias.
    """

    def check(values: list[float], expected: float, finite_size: float) -> None:
        sample = torch.tensor(values, dtype=torch.float64)
        stderr = float(sample.std()) / len(values) ** 0.5
        assert float(sample.mean()) == pytest.approx(expected, rel=finite_size, abs=4 * stderr)

    return check


@pytest.fixture
def spread() -> Callable[[list[float]], float]:
    def check(z: list[float]) -> float:
        return float(torch.tensor(z, dtype=torch.float64).std())

    return check
