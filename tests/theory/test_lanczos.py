"""Traces and solutions from products alone, against the eigenvalues and the inverse."""

import pytest
import torch

from ridgescope.theory import conjugate_gradients, nystrom, resolvent_estimate, stochastic_resolvent
from ridgescope.theory.lanczos import LanczosRun, largest_eigenvalue, rademacher

N, RIDGE = 120, 1e-3


@pytest.fixture(scope="module")
def matrix() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    return (vectors * torch.arange(1, N + 1, dtype=torch.float64) ** -1.5) @ vectors.T


def exact(matrix: torch.Tensor) -> tuple[float, float, float]:
    e = torch.linalg.eigvalsh(matrix)
    found = resolvent_estimate(e, ridge=RIDGE)
    return found.kappa, found.df1, float((e / (e + RIDGE)).square().sum())


def test_intervals_cover_as_often_as_they_say(matrix: torch.Tensor, generator: torch.Generator) -> None:
    repetitions, level, hits = 200, 0.8, torch.zeros(3)
    truth = exact(matrix)
    for _ in range(repetitions):
        run = stochastic_resolvent(
            lambda v: matrix @ v, N, ridge=RIDGE, probes=8, max_steps=60, level=level, generator=generator
        )
        assert run.truncation < 1e-2
        for i, (found, true) in enumerate(zip((run.kappa, run.df1, run.df2), truth, strict=True)):
            hits[i] += found.low <= true <= found.high
    # 4 binomial standard errors, 0.11; from above too, or an interval of any width would pass
    four = 4 * (level * (1 - level) / repetitions) ** 0.5
    assert ((hits / repetitions - level).abs() < four).all(), hits / repetitions


def test_gauss_and_radau_bracket_the_quadratic_form(matrix: torch.Tensor, generator: torch.Generator) -> None:
    start = rademacher(N, 5, generator)
    inverse = torch.linalg.inv(matrix + RIDGE * torch.eye(N, dtype=torch.float64))
    true = (start * (inverse @ start)).sum(0) / N
    run, gaps = LanczosRun(lambda v: matrix @ v, start), []
    for _ in range(6):
        run.advance(5)
        low, high = run.bracket(RIDGE)
        assert (low <= true * (1 + 1e-9)).all()
        assert (high >= true * (1 - 1e-9)).all()
        gaps.append(float(((high - low) / true).max()))
    assert gaps[0] > 1e-2
    assert gaps[-1] < 1e-3


def test_the_truncated_run_says_so(matrix: torch.Tensor, generator: torch.Generator) -> None:
    run = stochastic_resolvent(lambda v: matrix @ v, N, ridge=RIDGE, max_steps=4, generator=generator)
    assert run.truncation > 0.1
    kappa, df1, df2 = exact(matrix)
    assert run.kappa.low < kappa < run.kappa.high
    assert run.df1.low < df1 < run.df1.high
    assert run.df2.low < df2 < run.df2.high


def test_a_small_krylov_space_ends_the_run(generator: torch.Generator) -> None:
    run = stochastic_resolvent(lambda v: 2 * v, 10, ridge=1.0, generator=generator)
    assert run.steps == 1
    assert (run.kappa.value, run.df1.value) == pytest.approx((3.0, 20 / 3), rel=1e-12)


def test_largest_eigenvalue(matrix: torch.Tensor) -> None:
    assert largest_eigenvalue(lambda v: matrix @ v, N) == pytest.approx(1.0, rel=1e-3)


def test_conjugate_gradients_solve_and_the_preconditioner_saves_steps(
    matrix: torch.Tensor, generator: torch.Generator
) -> None:
    targets = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    truth = torch.linalg.solve(matrix + 1e-5 * torch.eye(N, dtype=torch.float64), targets)
    sketch = nystrom(lambda v: matrix @ v, N, 60, generator=generator)
    plain, fast = (
        conjugate_gradients(lambda v: matrix @ v, targets, ridge=1e-5, preconditioner=p, tolerance=1e-10)
        for p in (None, sketch)
    )
    for found in (plain, fast):
        assert float((found.solution - truth).norm() / truth.norm()) < 1e-6  # condition 1e5 times tolerance, at most
    assert fast.steps < plain.steps / 2


def test_what_cannot_be_had_is_refused(matrix: torch.Tensor, generator: torch.Generator) -> None:
    targets = torch.ones(N, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="ridge=0"):
        stochastic_resolvent(lambda v: v, N, ridge=0.0, generator=generator)
    with pytest.raises(ValueError, match="probes=1"):
        stochastic_resolvent(lambda v: v, N, ridge=1.0, probes=1, generator=generator)
    with pytest.raises(ValueError, match="ridge=0"):
        conjugate_gradients(lambda v: v, targets, ridge=0.0)
    with pytest.raises(RuntimeError, match=r"after 3 steps.*raise max_steps"):
        conjugate_gradients(lambda v: matrix @ v, targets, ridge=1e-8, max_steps=3)
    with pytest.raises(ValueError, match="rank=121"):
        nystrom(lambda v: v, N, N + 1, generator=generator)
