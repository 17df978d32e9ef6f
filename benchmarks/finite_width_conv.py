"""The finite-width law of one or two convolutions against kernel regression with drawn tangent kernels.

    python benchmarks/finite_width_conv.py --out FILE.csv [--data digits] [--readouts flatten pool] [--widths 4 16 64]
    python benchmarks/finite_width_conv.py --out FILE.csv --strides 2 2        two convolutions: one stride for each
    python benchmarks/finite_width_conv.py --summary FILE.csv ...
    python benchmarks/finite_width_conv.py --examples --features 2048 8192 32768

One row per cell (data, readout, P, width, ridge): simulated and predicted test risk, the excess of the risk over
infinite width, kappa_1 (inverse mean of the resolvent's trace), seconds. ntk parameterisation, 3x3 filters.
Targets are the parity of the label. ``--examples`` computes the law from five sets of examples and draws nothing.
``--sets K`` repeats each cell for K training sets and says how far the law's mean is from theirs.
``--independent`` takes the readout's and the filters' part of each kernel from two networks, as the law does: what then
is left of a deviation is the cavity step's.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from finite_width_depth import inputs, regress

from ridgescope.analysis.finite_width import LawKernel, law_kernel, law_of
from ridgescope.analysis.finite_width_conv import FEATURES, channel_kernel
from ridgescope.models import CNN, empirical_ntk, infinite_ntk
from ridgescope.theory.blocks import sampled_law

RIDGES = [1e-2, 1e-3, 1e-4, 1e-5]


def cells(
    name: str, readout: str, size: int, width: int, training_set: int, options: argparse.Namespace
) -> list[dict[str, object]]:
    x, y = inputs(name, size, options.tests, training_set)

    def network(seed: int) -> CNN:
        generator = torch.Generator().manual_seed(seed)
        return CNN(
            tuple(x.shape[1:]),
            y.shape[1],
            width=width,
            depth=len(options.strides),
            readout=readout,
            strides=options.strides,
            activation=options.activation,
            generator=generator,
        )

    began = time.perf_counter()
    found = []
    for draw in range(options.draws):
        seed = 1000 * width + draw + 100_000 * training_set
        one = network(seed)
        if options.independent:
            other = network(seed + 50_000_000)
            kernel = empirical_ntk(one, None, x, form="trace", parameters=["readout"]) / one.kernel_scale
            kernel = kernel + empirical_ntk(other, None, x, form="trace", parameters=["hidden"]) / one.kernel_scale
        else:
            kernel = empirical_ntk(one, None, x, form="trace") / one.kernel_scale
        found.append(regress(kernel[:size, :size], kernel[size:, :size], y, options.ridges))
    drawn_seconds = (time.perf_counter() - began) / len(options.ridges)
    sample = torch.tensor(found, dtype=torch.float64)  # (draws, ridges, 2)
    mean, error = sample.mean(0), sample.std(0) / options.draws**0.5
    limit = infinite_ntk(network(0), x).ntk
    began = time.perf_counter()
    if len(options.strides) == 1:
        examples: LawKernel = channel_kernel(network(0), x[:size], x[size:], features=options.features[0])
    else:
        examples = law_kernel(network(0), x[:size], x[size:])
    made_seconds = time.perf_counter() - began
    of_limit = regress(limit[:size, :size], limit[size:, :size], y, options.ridges)
    rows, start = [], None
    for i, ridge in enumerate(options.ridges):
        infinite = of_limit[i][1]
        began = time.perf_counter()
        law = law_of(examples, y[:size], y[size:], width=width, ridge=ridge, start=start)
        seconds, start = time.perf_counter() - began, law.orders
        row: dict[str, object] = {"data": name, "activation": options.activation}
        row |= {"strides": " ".join(map(str, options.strides)), "readout": readout, "P": size}
        row |= {"set": training_set, "width": width, "ridge": ridge, "independent": options.independent}
        row |= {"features": options.features[0], "draws": options.draws}
        row |= {"test": float(mean[i, 1]), "test_se": float(error[i, 1])}
        row |= {"law_test": float(law.test), "infinite_test": infinite}
        row |= {"kappa": 1 / float(mean[i, 0]), "law_kappa": float(law.kappa1)}
        row |= {"seconds": seconds, "made_seconds": made_seconds}
        row |= {"drawn_seconds": drawn_seconds, "iterations": law.iterations}
        rows.append(row)
        print(
            f"{name} {readout} P={size} N={width} lam={ridge:.0e}  risk {mean[i, 1]:.4f} "
            f"+-{100 * error[i, 1] / mean[i, 1]:.1f}% law {100 * (float(law.test) / mean[i, 1] - 1):+.1f}%  excess "
            f"{100 * (mean[i, 1] / infinite - 1):+.0f}% ratio "
            f"{(float(law.test) / infinite - 1) / (mean[i, 1] / infinite - 1):.2f}  kappa "
            f"{100 * (float(law.kappa1) * mean[i, 0] - 1):+.1f}%  {seconds:.1f} s",
            flush=True,
        )
    return rows


def summary(table: pd.DataFrame) -> str:
    """One markdown row per data, readout, P and width."""
    excess, predicted = table.test / table.infinite_test - 1, table.law_test / table.infinite_test - 1
    table = table.assign(
        deviation=(table.law_test / table.test - 1).abs(),
        infinite=(table.infinite_test / table.test - 1).abs(),
        kappas=(table.law_kappa / table.kappa - 1).abs(),
        ratio=(predicted / excess - 1).abs().where(excess > 0.05 * table.test / table.infinite_test),
        allowed=(3 * table.test_se / (table.infinite_test * excess)).clip(lower=0.2),
        error=table.test_se / table.test,
    )
    lines = [
        "| data | readout | P | width | cells | s.e. | infinite width: median | risk: median | worst "
        "| excess: median | within 20 % or 3 s.e. | kappa: worst | s per cell |",
        "|---" * 13 + "|",
    ]
    for key, part in [*table.groupby(["data", "readout", "P", "width"]), (("all", "", "", ""), table)]:
        known = part[part.ratio.notna()]
        median = f"{100 * known.ratio.median():.0f} %" if len(known) else "-"
        lines.append(
            f"| {' | '.join(map(str, key))} | {len(part)} | {100 * part.error.median():.1f} % | "
            f"{100 * part.infinite.median():.1f} % | {100 * part.deviation.median():.1f} % | "
            f"{100 * part.deviation.max():.1f} % | {median} | {int((known.ratio <= known.allowed).sum())} of "
            f"{len(known)} | {100 * part.kappas.max():.1f} % | {part.seconds.median():.1f} |"
        )
    return "\n".join(lines)


def over_sets(table: pd.DataFrame) -> str:
    """One line per cell: the mean over training sets, its error their spread."""
    lines = []
    for key, part in table.groupby(["data", "readout", "P", "width", "ridge"]):
        scale, difference = part.test.mean(), part.law_test - part.test
        lines.append(
            f"{key}: {len(part)} sets, law/simulation {100 * difference.mean() / scale:+.1f} +- "
            f"{100 * difference.std() / len(part) ** 0.5 / scale:.1f} %, single sets "
            f"{100 * (difference / part.test).min():+.1f} to {100 * (difference / part.test).max():+.1f} %, "
            f"excess {100 * (scale / part.infinite_test.mean() - 1):.0f} %"
        )
    return "\n".join(lines)


def examples_error(options: argparse.Namespace) -> str:
    """Relative spread of the law's risk over five sets of examples, for each number of features."""
    size = options.sizes[0]
    x, y = inputs(options.data[0], size, options.tests)
    lines = [
        f"| readout | features | {' | '.join(f'N={w}, lam={r:g}' for w in options.widths for r in options.ridges)} |",
        "|---" * (2 + len(options.widths) * len(options.ridges)) + "|",
    ]
    for readout in options.readouts:
        network = CNN(tuple(x.shape[1:]), 1, width=1, depth=1, readout=readout, generator=torch.Generator())
        for count in options.features:
            risks = []
            for seed in range(0, 50, 10):
                kernel = channel_kernel(network, x[:size], x[size:], features=count, seed=seed)
                grid = [(w, r) for w in options.widths for r in options.ridges]
                risks.append([float(sampled_law(kernel, y[:size], y[size:], width=w, ridge=r).test) for w, r in grid])
            sample = torch.tensor(risks, dtype=torch.float64)
            spread = (sample.std(0) / sample.mean(0)).tolist()
            lines.append(f"| {readout} | {count} | {' | '.join(f'{100 * s:.2f} %' for s in spread)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", type=Path, nargs="+")
    parser.add_argument("--examples", action="store_true")
    parser.add_argument("--features", nargs="+", type=int, default=[FEATURES])
    parser.add_argument("--independent", action="store_true")
    parser.add_argument("--data", nargs="+", default=["digits"])
    parser.add_argument("--readouts", nargs="+", default=["flatten", "pool"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100])
    parser.add_argument("--widths", nargs="+", type=int, default=[4, 8, 16, 64])
    parser.add_argument("--sets", type=int, default=1)
    parser.add_argument("--ridges", nargs="+", type=float, default=RIDGES)
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--strides", nargs="+", type=int, default=[1])
    parser.add_argument("--draws", type=int, default=48)
    parser.add_argument("--tests", type=int, default=200)
    options = parser.parse_args()
    if options.summary:
        print(summary(pd.concat([pd.read_csv(path) for path in options.summary])))
        return
    if options.examples:
        print(examples_error(options))
        return
    rows: list[dict[str, object]] = []
    for name in options.data:
        for readout in options.readouts:
            for size in options.sizes:
                for width in options.widths:
                    for training_set in range(options.sets):
                        rows += cells(name, readout, size, width, training_set, options)
                    if options.out is not None:
                        options.out.parent.mkdir(parents=True, exist_ok=True)
                        pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.6g")
    print(summary(pd.DataFrame(rows)))
    if options.sets > 1:
        print(over_sets(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
