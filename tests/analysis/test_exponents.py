"""Exponents: those of a planted power law, with intervals that cover what is measured."""

import pytest
import torch

from ridgescope.analysis.exponents import learning_curve_exponents, slope
from ridgescope.theory import Samples, Target, risks
from ridgescope.theory.spectra import Spectrum
from ridgescope.train.errors import UserError


def test_a_planted_power_law_is_found_and_its_learning_curve_predicted() -> None:
    alpha, source, sizes, ridge = 1.4, 0.35, (25, 50, 100, 200), 1e-6
    k = torch.arange(1, 1501, dtype=torch.float64)
    eta, c = k**-alpha, k ** -(alpha * source + 0.5)
    z = torch.randn(500, 1500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = learning_curve_exponents((z * eta) @ z.T, (z @ c)[:, None], sizes=sizes, ridge=ridge, num_draws=8, halves=8)
    # the population's own slopes over these sizes, where corrections to the asymptotic exponents are still felt
    true = [risks(Spectrum(eta), Target(c.square(), 0.0), Samples(size), ridge) for size in sizes]
    logs = [torch.tensor([float(v) for v in column], dtype=torch.float64).log() for column in (
        sizes, [r.scale.df1 for r in true], [r.scale.kappa2 for r in true], [r.bias2 for r in true],
        [r.test for r in true],
    )]  # fmt: skip
    size, df1, kappa, bias, test = logs
    assert found.capacity.value == pytest.approx(-slope(df1, kappa), abs=4 * found.capacity.se)
    assert found.source.value == pytest.approx(slope(kappa, bias) / 2, abs=4 * found.source.se)
    assert found.predicted.value == pytest.approx(slope(size, test), abs=4 * found.predicted.se)
    together = (found.predicted.se**2 + found.measured.se**2) ** 0.5
    assert found.measured.value == pytest.approx(found.predicted.value, abs=4 * together)


def test_too_short_a_range_is_refused() -> None:
    gram, y = torch.eye(40, dtype=torch.float64), torch.ones(40, 1, dtype=torch.float64)
    for sizes in ((10, 20), (10, 15, 30), (2, 5, 10)):
        with pytest.raises(UserError, match="a slope needs at least three, between 5 and 20"):
            learning_curve_exponents(gram, y, sizes=sizes, ridge=1e-3)
