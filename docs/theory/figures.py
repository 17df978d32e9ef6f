"""Draw the picture of each page in this folder: ``python docs/theory/figures.py``. Half a minute on two
cores.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

import ridgescope.theory as th

FOLDER = Path(__file__).parent
SPECTRUM, TARGET = th.power_law(1000, 1.4), th.power_law_target(1000, 2.0, noise=0.05)
RIDGES = torch.logspace(-8, 1, 120, dtype=torch.float64)


def draw_data(num_samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian features with SPECTRUM and labels with TARGET: gram and labels."""
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(num_samples, 1000, generator=g, dtype=torch.float64)
    y = phi @ TARGET.c2.sqrt() + TARGET.s2.sqrt() * torch.randn(num_samples, generator=g, dtype=torch.float64)
    return (phi * SPECTRUM.eta) @ phi.T, y[:, None]


def renormalisation(ax: Axes) -> None:
    for width in (float("inf"), 300.0, 100.0, 30.0):
        fit = th.renormalise(SPECTRUM, th.Samples(100) @ th.Features(width), RIDGES)
        ax.loglog(RIDGES, fit.kappa2, label=f"N = {width:g}")
    ax.loglog(RIDGES, RIDGES, "k:", label="no renormalisation")
    ax.set(xlabel="ridge lam", ylabel="kappa_2", title="P = 100 samples and N features raise the ridge")


def risks(ax: Axes) -> None:
    n = torch.logspace(1, 3.5, 200, dtype=torch.float64)
    result = th.risks(SPECTRUM, TARGET, th.Samples(100) @ th.Features(n), 1e-5)
    terms = {"bias2": "bias", "var_X": "data", "var_F": "features", "var_XF": "data x features"}
    terms |= {"var_noise": "noise", "var_Fnoise": "noise x features"}
    ax.stackplot(n, *(getattr(result, name) for name in terms), labels=list(terms.values()))
    ax.set(xscale="log", xlabel="width N", ylabel="excess risk", ylim=(0, 1), title="Double descent at N = P = 100")


def estimators(ax: Axes) -> None:
    gram, _ = draw_data(200, 0)
    e = torch.linalg.eigvalsh(gram / 200)
    ridges = RIDGES[::8]
    found = [th.resolvent_estimate(e, ridge=float(lam)) for lam in ridges]
    truth = th.renormalise(SPECTRUM, th.Samples(200), ridges).kappa2
    ratio = torch.tensor([f.kappa_corrected for f in found], dtype=torch.float64) / truth
    ax.errorbar(ridges, ratio, [f.se_log for f in found], fmt="o", label="one kernel matrix, P = 200")
    ax.axhline(1, color="k", lw=0.8)
    ax.set(xscale="log", xlabel="ridge lam", ylabel="kappa estimated / true", title="One matrix measures its own kappa")


def pool(ax: Axes) -> None:
    gram, labels = draw_data(600, 1)
    estimator = th.pool_estimator(gram, labels)
    p = torch.arange(20, 600, 20, dtype=torch.float64)
    naive = th.risks(th.Spectrum(estimator.eigenvalues), th.Target(estimator.target_power), th.Samples(p), 1e-3).test
    ax.plot(p, th.risks(SPECTRUM, TARGET, th.Samples(p), 1e-3).test, "k", label="population")
    ax.plot(p, [estimator.predict(float(x), 1e-3).test for x in p], "o", ms=3, label="debiased, from 600 points")
    ax.plot(p, naive, "--", label="naive use of the same points")
    ax.set(xlabel="samples P", ylabel="test risk", title="A pool predicts learning curves once debiased")


def learnability(ax: Axes) -> None:
    for p in (30, 100, 300):
        fit = th.learned_modes(SPECTRUM, TARGET.c2.sqrt(), num_samples=p, ridge=1e-4, noise=0.05)
        ax.semilogx(range(1, 1001), fit.learnability, label=f"P = {p}, sum {float(fit.learnability.sum()):.0f}")
    ax.set(xlabel="mode k", ylabel="learnability L_k", title="Learnabilities share P units among the modes")


def modes(ax: Axes) -> None:
    spectrum, c = th.power_law(400, 1.4), TARGET.c2.sqrt()[:400]
    fit = th.learned_modes(spectrum, c, num_samples=100, ridge=1e-2, noise=0.05)
    v = torch.distributions.Normal(fit.mean, fit.variance.sqrt())
    torch.manual_seed(0)
    sample = v.sample()
    risk = float(th.risks(spectrum, th.Target(c.square(), 0.05), th.Samples(100), 1e-2).test)
    gamma = float(fit.scale.gamma2)
    found = th.kappa_from_modes(sample, c, spectrum.eta, num_samples=100, test_risk=risk, gamma=gamma)
    ax.semilogx(range(1, 41), (sample / c)[:40], "o", ms=3, label="measured v_k / c_k")
    ax.semilogx(range(1, 41), fit.learnability[:40], "k", label=f"L_k at kappa = {float(fit.scale.kappa2):.3f}")
    ax.set(
        xlabel="mode k",
        ylabel="shrinkage",
        title=f"Fitted kappa = {found.kappa:.3f} ({found.low:.3f} .. {found.high:.3f})",
    )


def width(ax: Axes) -> None:
    g = torch.Generator().manual_seed(2)
    widths, found = [30, 60, 125, 250, 500, 1000, 2000], []
    x = torch.randn(150, 1000, generator=g, dtype=torch.float64) * SPECTRUM.eta.sqrt()
    limit = torch.linalg.eigvalsh(x @ x.T / 150)
    for n in widths:
        z = x @ torch.randn(1000, n, generator=g, dtype=torch.float64) / n**0.5
        df1 = th.resolvent_estimate(torch.linalg.eigvalsh(z @ z.T / 150), ridge=1e-3).df1
        found.append(th.effective_width(limit, df1, 1e-3))
    ax.errorbar(
        [1 / n for n in widths], [f.inverse_width for f in found], [f.se for f in found], fmt="o", label="1/N_eff"
    )
    ax.plot([1 / n for n in widths], [1 / n for n in widths], "k", label="true 1/N")
    ax.set(xscale="log", yscale="log", xlabel="1/N", ylabel="estimate", title="One draw of a kernel shows its width")


def gradient_flow(ax: Axes) -> None:
    spectrum, target = th.power_law(150, 1.2), th.power_law_target(150, 1.96, noise=0.1)
    times = torch.logspace(-1, 3.5, 40, dtype=torch.float64)
    flow = [th.flow_risks(spectrum, target, num_samples=100, time=float(t)) for t in times]
    ridge = th.risks(spectrum, target, th.Samples(100), 1 / times)
    ax.loglog(times, [f.test for f in flow], label="flow, test")
    ax.loglog(times, ridge.test, "--", label="ridge 1/t, test")
    ax.loglog(times, [f.train for f in flow], label="flow, train")
    ax.set(xlabel="time t", ylabel="risk", title="Stopping early is not quite ridge")


def power_laws(ax: Axes) -> None:
    n = torch.logspace(1, 5, 60, dtype=torch.float64)
    spectrum, target = th.compressed_power_law(1e10, 1.5, 2.2)
    for p in (1e2, 1e3, 1e4):
        ax.loglog(n, th.risks(spectrum, target, th.Samples(p) @ th.Features(n), 1e-9).excess, label=f"P = {p:g}")
    slope = th.scaling_regimes(1.5, 0.4)["width-limited"].exponent
    ax.loglog(n, 0.6 * n**slope, "k:", label=f"N^{slope:g}")
    ax.set(xlabel="width N", ylabel="excess risk", title="Width-limited, then data-limited (alpha 1.5, r 0.4)")


PICTURES: list[Callable[[Axes], None]] = [
    *(renormalisation, risks, estimators, pool, learnability, modes, width, gradient_flow, power_laws)
]


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "ridgescope"  # the same file on every run
    for picture in PICTURES:
        figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
        picture(ax)
        ax.legend(fontsize=8, frameon=False)
        figure.savefig(FOLDER / f"{picture.__name__}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
