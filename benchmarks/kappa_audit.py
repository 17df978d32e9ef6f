"""Is kappa what the theory says, and where not, why? Six routes on real kernels, with both controls.

    python benchmarks/kappa_audit.py calibration          # error bars on Gaussian data: spread and mean of z
    python benchmarks/kappa_audit.py kernels [--data digits] [--kernels mlp] [--points 1200] [--draws 8]
    python benchmarks/kappa_audit.py causes               # pool size, and crowded points taken away

Infinite-width NTKs: ReLU MLP of three hidden layers, ReLU CNN of two (flattened readout), each with inputs centred and
of unit norm, and with the raw norms (centred). One-hot targets. Ridges in units of mean K(x, x).
"""

import argparse
import math
import platform
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ridgescope.analysis.audit import ELLIPTICAL, GAUSSIAN, ROUTES, audit_kernel
from ridgescope.analysis.joint import joint_test, kappa_table
from ridgescope.models import CNN, MLP, Network, infinite_ntk
from ridgescope.theory import (
    Samples,
    Target,
    power_law,
    risks,
)
from ridgescope.train.data import prepare_data

RIDGES = (1e-2, 1e-3, 1e-4, 1e-6)


def kernel(name: str, kind: str, unit_norm: bool, points: int) -> tuple[Tensor, Tensor]:
    """Gram matrix with mean diagonal one, and targets."""
    data = prepare_data(
        name, train_size=1, pool_size=points, test_size=1, num_draws=1, unit_norm=unit_norm, download=False
    )
    inputs = data.pool_inputs / data.pool_inputs.square().mean().sqrt()
    generator = torch.Generator().manual_seed(0)
    network: Network
    if kind == "mlp":
        network = MLP(data.in_shape, 10, width=8, depth=3, generator=generator)
    else:
        strides = (1, 2) if name == "digits" else (2, 2)
        network = CNN(data.in_shape, 10, width=8, depth=2, strides=strides, generator=generator)
    gram = infinite_ntk(network, inputs, max_hours=math.inf).ntk
    return gram / gram.diagonal().mean(), data.pool_targets


def percent(value: float) -> str:
    return f"{100 * value:+.1f}" if math.isfinite(value) else "-"


def kernels(options: argparse.Namespace) -> None:
    head = [
        "kernel",
        "P",
        "ridge",
        *ROUTES[1:],
        "uneven points: resolvent",
        "left_out",
        "Gaussian: resolvent",
        "left_out",
        "elliptical: resolvent",
        "left_out",
    ]
    head += ["risk", "GCV", "LOO", "unevenness"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    gaps = []
    for name in options.data:
        points = min(options.points, 1796) if name == "digits" else options.points
        for kind in options.kernels:
            for unit in (True, False):
                gram, targets = kernel(name, kind, unit, points)
                found = audit_kernel(gram, targets, sizes=options.sizes, ridges=RIDGES, num_draws=options.draws)
                table = kappa_table(found.table).set_index(["model", "P", "ridge"])
                for place in [(size, ridge) for size in options.sizes for ridge in RIDGES]:
                    data, gauss, norms = (table.loc[(model, *place)] for model in ("data", GAUSSIAN, ELLIPTICAL))
                    print_row(f"{name} {kind} {'unit' if unit else 'raw'}", place, data, gauss, norms)
                    routes = ("resolvent", "left_out", "uneven_resolvent", "uneven_modes")
                    gaps.append((*(data[route] for route in routes), gauss["resolvent"]))
    print_gaps(np.log1p(np.array(gaps)))


def print_row(name: str, place: tuple[int, float], data: pd.Series, gauss: pd.Series, norms: pd.Series) -> None:
    cells = [name, str(place[0]), f"{place[1]:g}", *(percent(data[route]) for route in ROUTES[1:])]
    cells += [percent(data["uneven_resolvent"]), percent(data["uneven_modes"])]
    cells += [percent(world[route]) for world in (gauss, norms) for route in ("resolvent", "left_out")]
    cells += [percent(data[key]) for key in ("risk_deviation", "gcv", "loo_risk")]
    cells += [f"{data['unevenness']:.2f} ({data['unevenness_gaussian']:.2f})"]
    print("| " + " | ".join(cells) + " |", flush=True)


def print_gaps(gap: np.ndarray) -> None:
    """gap: log kappa over the even spectrum's (cells, 5): resolvent, left-out, both as predicted for uneven points, and
    the resolvent of the Gaussian control."""
    large = np.abs(gap[:, 0]) > 0.03
    words = ("resolvent", "left-out variance")
    print(f"\n{large.sum()} of {len(gap)} cells have a resolvent more than 3 % off the spectrum of even points.")
    head = ("off by, %", "even points: mean", "rms", "worst", "uneven points: mean", "rms", "worst")
    print(f"| {' | '.join(head)} |\n" + "|---" * len(head) + "|")
    for i, word in enumerate(words):
        for name, cells in (("all cells", slice(None)), ("large gaps", large)):
            even, uneven = 100 * gap[cells, i], 100 * (gap[cells, i] - gap[cells, i + 2])
            values = [f"{v.mean():+.1f} | {rms(v):.1f} | {v[np.abs(v).argmax()]:+.1f}" for v in (even, uneven)]
            print(f"| {word}, {name} | {' | '.join(values)} |")
    explained = 1 - np.abs(gap[large, 0] - gap[large, 2]).sum() / np.abs(gap[large, 0]).sum()
    print(f"\nUnevenness accounts for {100 * explained:.0f} % of the large gaps.", end=" ")
    print(f"Gaussian control: rms {100 * rms(gap[:, 4]):.2f} %.")


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def causes(options: argparse.Namespace) -> None:
    """The same training sizes with smaller pools, and with the points taken away whose nearest neighbour is nearest."""
    head = "resolvent | left_out | uneven points: resolvent | left_out | risk | unevenness | nearest neighbour"
    print(f"| Fashion-MNIST, MLP | points | P | ridge | {head} |\n" + "|---" * 11 + "|")
    for unit in (True, False):
        gram, targets = kernel("fashion_mnist", "mlp", unit, 2000)
        nearest = nearest_distance(gram)
        order = nearest.argsort()
        choices = {f"first {m}": torch.arange(m) for m in (600, 1000, 2000)}
        choices |= {"without the most crowded half": order[1000:], "the most crowded half": order[:1000]}
        for words, index in choices.items():
            found = audit_kernel(
                gram[index][:, index],
                targets[index],
                sizes=[300],
                ridges=[1e-6],
                num_draws=options.draws,
                controls=False,
            )
            row = kappa_table(found.table).iloc[0]
            what = f"{'unit norm' if unit else 'raw'}, {words}"
            print(
                f"| {what} | {len(index)} | 300 | 1e-06 | {percent(row['resolvent'])} | {percent(row['left_out'])} "
                f"| {percent(row['uneven_resolvent'])} | {percent(row['uneven_modes'])} "
                f"| {percent(row['risk_deviation'])} | {row['unevenness']:.2f} "
                f"| {float(nearest_distance(gram[index][:, index]).median()):.2f} |",
                flush=True,
            )


def nearest_distance(gram: Tensor) -> Tensor:
    """Squared distance to the nearest other point, in units of mean K(x, x)."""
    diagonal = gram.diagonal()
    distance = diagonal[:, None] + diagonal - 2 * gram
    distance.fill_diagonal_(math.inf)
    return distance.min(1).values


def gaussian_draws(draws: int, size: int, ridge: float, points: int, outputs: int) -> Iterator[pd.DataFrame]:
    """Independent Gaussian pools with a known population, each audited on one training set."""
    spectrum, generator = power_law(2 * points, 1.3), torch.Generator().manual_seed(size)
    k = torch.arange(1, 2 * points + 1, dtype=torch.float64)
    c = torch.stack(
        [k**-1.02] + [k**-1.1 * torch.sign(torch.randn(len(k), generator=generator)) for _ in range(outputs - 1)], 1
    )
    theory = risks(spectrum, Target(c.square().sum(1), 0.1 * outputs), Samples(size), ridge)
    kappa = float(theory.scale.kappa2)
    for draw in range(draws):
        phi = torch.randn(points, 2 * points, generator=generator, dtype=torch.float64)
        labels = phi @ c + 0.1**0.5 * torch.randn(points, outputs, generator=generator, dtype=torch.float64)
        gram = (phi * spectrum.eta) @ phi.T
        found = audit_kernel(gram, labels, sizes=[size], ridges=[ridge], num_draws=8, seed=draw, controls=False)
        yield found.table.assign(kappa=kappa, pool=draw)


def calibration(options: argparse.Namespace) -> None:
    print("| P | ridge | outputs | route | mean kappa/theory - 1 % | s.e. % | error bar | spread of z | mean of z |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size, ridge, outputs in ((100, 1e-2, 1), (100, 1e-3, 1), (100, 1e-2, 5)):
        tables = list(gaussian_draws(options.draws, size, ridge, 400, outputs))
        every = pd.concat(tables)
        for route in ROUTES:
            logs = np.log(every[f"kappa_{route}"] / every["kappa"])
            line(size, ridge, outputs, route, every, logs, every[f"kappa_{route}_se_log"])
        difference = np.log(every["kappa_resolvent"] / every["kappa_spectrum"])
        errors = np.sqrt(every["kappa_resolvent_se_log"] ** 2 - every["kappa_spectrum_se_log"] ** 2)
        line(size, ridge, outputs, "resolvent - spectrum", every, difference, errors)
        line(size, ridge, outputs, "left_out - resolvent", every, every["excess_log"], every["excess_se_log"])
        p = np.array([joint_test(table).p_value for table in tables])
        below = [100 * float((p < level).mean()) for level in (0.05, 0.5)]
        print(f"\njoint test of 8 training sets: p < 0.05 in {below[0]:.1f} %, p < 0.5 in {below[1]:.0f} %\n")


def line(
    size: int, ridge: float, outputs: int, route: str, rows: pd.DataFrame, logs: pd.Series, errors: pd.Series
) -> None:
    """Means over all training sets; their standard errors from the means of pools, which are independent."""
    frame = pd.DataFrame({"pool": rows["pool"], "log": 100 * logs, "z": logs / errors, "error": errors}).dropna()
    pools = frame.groupby("pool")[["log", "z"]].mean()
    error = pools.sem()
    print(
        f"| {size} | {ridge:g} | {outputs} | {route} | {frame['log'].mean():+.2f} | {error['log']:.2f} "
        f"| {frame['error'].mean():.4f} | {frame['z'].std():.3f} | {frame['z'].mean():+.3f} ± {error['z']:.3f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["calibration", "kernels", "causes"])
    parser.add_argument("--data", nargs="+", default=["digits", "fashion_mnist"])
    parser.add_argument("--kernels", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--points", type=int, default=1200)
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 400])
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}\n")
    {"calibration": calibration, "kernels": kernels, "causes": causes}[options.what](options)


if __name__ == "__main__":
    main()
