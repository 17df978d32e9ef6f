"""Forecasts from pilots scored on larger runs, against what people use today.

    python benchmarks/forecast_runs.py        # pilots and larger runs, once
    python benchmarks/forecast_networks.py    # trained networks, once
    python benchmarks/forecast.py --folder runs/forecast --out runs/forecast/tables    # tables, as CSV

A pilot's forecast of a run is right to ``|log(forecast/measured)|``. Its 90 % interval, widened by the run's own test
error, should hold 85 to 95 % of the runs. Baselines, from the same pilot at the same ridge:

    power law     a + b P^-c through the left-out risks of eighths, quarters, halves and the whole (a >= 0)
    pure power    the same with a = 0
    GCV           the power law through their GCV values
    naive theory  the pool's own eigenvalues and coefficients in the closed form, at infinite width
    last value    the left-out risk of the whole pilot

No one can know a pilot's luck: "ideal" is the pilot's left-out risk times the measured ratio of the risks at P and at
M, the error that is left to a method which extrapolates without any error of its own.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from forecast_networks import DRAWS, PILOTS, SIZE, WIDTHS, pilot_kernel
from forecast_runs import DESIGNS, FAMILIES, RIDGES, TARGETS, Store, load, targets
from scipy.optimize import least_squares
from torch import Tensor

from ridgescope.analysis.forecast import Pilot, forecast
from ridgescope.analysis.forecast.pilot import QUANTILE
from ridgescope.theory import Samples, Spectrum, Target, risks
from ridgescope.theory.readings import interpolate
from ridgescope.train.data import PreparedData
from ridgescope.train.files import write_atomically

BASELINES = ("power law", "pure power", "GCV", "naive theory", "last value")
KEYS = ["data", "family", "target", "pilot", "P", "ridge"]


def power_law(sizes: np.ndarray, values: np.ndarray, at: np.ndarray, *, offset: bool) -> np.ndarray:
    """Least squares in the logarithm, from the best of several starts."""

    def curve(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        return (p[0] if offset else 0.0) + np.exp(p[1]) * n ** -p[2]

    def misfit(p: np.ndarray) -> np.ndarray:
        return np.log(curve(p, sizes)) - np.log(values)

    bounds = [0.0, -50.0, 0.0], [float(values.max()), 50.0, 3.0]
    fits = []
    for share in (0.0, 0.5, 0.9) if offset else (0.0,):
        start = [share * values[-1], math.log(values[-1] * (1 - share)) + 0.3 * math.log(sizes[-1]), 0.3]
        fits.append(least_squares(misfit, start, bounds=bounds, x_scale=[0.1, 1, 1]))
    return curve(min(fits, key=lambda fit: fit.cost).x, at)


def baselines(pilot: Pilot, sizes: list[int], ridges: tuple[float, ...]) -> pd.DataFrame:
    """A row per P and ridge, a column per baseline."""
    parts = [[pilot.readings], *pilot.parts.values()]
    places = np.array([some[0].size for some in parts], float)[::-1]
    spectrum, target = Spectrum(pilot.spectrum[0]), Target(pilot.spectrum[1], 0.0)
    rows = []
    for ridge in ridges:
        log = torch.tensor([ridge], dtype=torch.float64).log()
        loo, gcv = (
            np.array(
                [np.mean([float(interpolate(log, r.pool_ridge.log(), getattr(r, n))) for r in some]) for some in parts]
            )
            for n in ("risk", "gcv")
        )
        loo, gcv, at = loo[::-1], gcv[::-1], np.array(sizes, float)
        columns = {
            "power law": power_law(places, loo, at, offset=True),
            "pure power": power_law(places, loo, at, offset=False),
            "GCV": power_law(places, gcv, at, offset=True),
            "naive theory": [float(risks(spectrum, target, Samples(float(size)), ridge).test) for size in sizes],
            "last value": [loo[-1]] * len(sizes),
        }
        rows += [
            {"P": size, "ridge": ridge} | {k: float(v[i]) for k, v in columns.items()} for i, size in enumerate(sizes)
        ]
    return pd.DataFrame(rows)


def one_pilot(
    grams: list[Tensor], y: Tensor, sizes: list[int], ridges: tuple[float, ...], width: float = math.inf
) -> pd.DataFrame:
    """Forecast and baselines of a pilot, with the best ridge and the seconds the forecast took."""
    started = time.perf_counter()
    result = forecast({width: grams}, y, num_samples=sizes, ridges=ridges)
    seconds = time.perf_counter() - started
    best = result.optimal[["P", "ridge"]].rename(columns={"ridge": "best_ridge"})
    table = result.table.merge(best, on="P").merge(
        baselines(result.widths[0].pilots[0], sizes, ridges), on=["P", "ridge"]
    )
    return table.assign(seconds=seconds)


def forecasts(folder: Path, name: str, family: str, data: PreparedData, pilots: int) -> list[pd.DataFrame]:
    """Of the first pilots of a family, kept on disk."""
    design, store = DESIGNS[name], Store(folder / name, data, DESIGNS[name], family)
    frames = []
    for pilot in range(min(pilots, design.pilots)):
        labels = data.pool_labels[design.pilot(pilot)]
        for kind in TARGETS:
            path = folder / "forecasts" / f"{name}-{family}-{kind}-{pilot}.parquet"
            if not path.is_file():
                table = one_pilot(
                    [store.named(f"pilot_{pilot}")], targets(labels, kind), list(design.sizes[1:]), RIDGES
                )
                write_atomically(path, table.assign(data=name, family=family, target=kind, pilot=pilot).to_parquet)
            frames.append(pd.read_parquet(path))
    return frames


def network_forecasts(folder: Path, data: PreparedData) -> list[pd.DataFrame]:
    """Of P = 4000 at each width, from four drawn networks' kernels on each pilot."""
    design, frames = DESIGNS["fashion_mnist"], []
    measured = pd.read_parquet(folder / "networks.parquet")
    ridges = tuple(sorted(measured["ridge"].unique()))
    for width in WIDTHS:
        for pilot in range(PILOTS):
            path = folder / "forecasts" / f"width{width}-{pilot}.parquet"
            if not path.is_file():
                y = targets(data.pool_labels[design.pilot(pilot)], "parity")
                grams = [pilot_kernel(folder, data, width, pilot, seed) for seed in range(DRAWS)]
                table = one_pilot(grams, y, [SIZE], ridges, width)
                marks = {"data": "fashion_mnist", "family": f"width {width}", "target": "parity", "pilot": pilot}
                write_atomically(path, table.assign(**marks).to_parquet)
            frames.append(pd.read_parquet(path))
    return frames


def ratios(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean measured risk at P over that at a pilot's size: column ``fall``; NaN where that was not measured."""
    keys = ["data", "family", "target", "P", "ridge"]
    mean = measured.groupby(keys, as_index=False)["test"].mean()
    start = mean[mean["P"] == mean["data"].map({name: design.block for name, design in DESIGNS.items()})]
    both = mean.merge(
        start.drop(columns="P"), how="left", on=["data", "family", "target", "ridge"], suffixes=("", "_m")
    )
    return both.assign(fall=both["test"] / both["test_m"])[[*keys, "fall"]]


def scored(predicted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """A row per pilot and run: errors in log risk, and whether the interval holds the run."""
    both = predicted.merge(measured, on=["data", "family", "target", "P", "ridge"], suffixes=("", "_run"))
    both = both.merge(ratios(measured), how="left", on=["data", "family", "target", "P", "ridge"])
    both["ideal"] = both["last value"] * both["fall"]
    for method in ("risk", "ideal", *BASELINES):
        both[f"error {method}"] = np.log(both[method] / both["test"])
    half = np.log(both["risk_high"] / both["risk"])
    own = QUANTILE * both["test_se"] / both["test"]
    both["covered"] = both["error risk"].abs() <= np.sqrt(half**2 + own**2)
    both["ratio"] = both["P"] / both["data"].map({name: design.block for name, design in DESIGNS.items()})
    return both


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Per data, family, target and ratio: median errors in percent, coverage with its standard error over pilots (all
    ridges of a pilot share its luck).
    """
    rows = []
    for key, rows_of in table.groupby(["data", "family", "target", "ratio"], sort=True):
        names = dict(zip(("data", "family", "target", "P/M"), key, strict=True))
        medians = {m: 100 * float(rows_of[f"error {m}"].abs().median()) for m in ("risk", "ideal", *BASELINES)}
        row = names | {"pilots": rows_of["pilot"].nunique(), "pairs": len(rows_of)}
        row |= {"forecast": medians.pop("risk"), "ideal": medians.pop("ideal"), **medians}
        row["best baseline"] = min(medians.values())
        row["forecast/best"] = row["forecast"] / row["best baseline"]
        row["bias"] = 100 * float(rows_of["error risk"].mean())
        each = 100 * rows_of.groupby("pilot")["covered"].mean()
        row |= {"covered": 100 * float(rows_of["covered"].mean()), "its se": float(each.std() / len(each) ** 0.5)}
        rows.append(row | {"half-width": _half(rows_of)})
    return pd.DataFrame(rows)


def _half(rows: pd.DataFrame) -> float:
    return 100 * float(np.log(rows["risk_high"] / rows["risk"]).median())


def paired(table: pd.DataFrame) -> pd.DataFrame:
    """Per pilot and ratio, in percent: median errors of the forecast, of the ideal, of the baseline chosen beforehand
    (`chosen`) and of the one that was best for this very pilot; "method" is what each adds to the ideal.
    """
    choice, rows = chosen(table), []
    for key, part in table.groupby(["data", "family", "target", "ratio", "pilot"], sort=True):
        names = dict(zip(("data", "family", "target", "P/M", "pilot"), key, strict=True))
        if (names["family"], names["target"]) not in choice or part["fall"].isna().any():
            continue  # no ideal, or no digits to choose on
        name = choice[names["family"], names["target"]]
        medians = {m: 100 * float(part[f"error {m}"].abs().median()) for m in ("risk", "ideal", *BASELINES)}
        best = min(BASELINES, key=lambda m, medians=medians: medians[m])
        row = names | {"forecast": medians["risk"], "ideal": medians["ideal"], "chosen": name}
        row |= {"its error": medians[name], "best in hindsight": best, "its error then": medians[best]}
        for label, method in (("forecast", "risk"), ("chosen", name)):
            added = part[f"error {method}"] - part["error ideal"]
            row[f"method, {label}"] = 100 * float(added.abs().median())
            row[f"rms method, {label}"] = 100 * float(added.pow(2).mean() ** 0.5)
        rows.append(row | {"rms luck": 100 * float(part["error ideal"].pow(2).mean() ** 0.5)})
    return pd.DataFrame(rows)


def chosen(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The baseline of each family and target with the least median error on digits: known before Fashion-MNIST is."""
    digits = table[table["data"] == "digits"]
    return {
        key: min(BASELINES, key=lambda m, part=part: float(part[f"error {m}"].abs().median()))
        for key, part in digits.groupby(["family", "target"])
    }


def duels(pairs: pd.DataFrame) -> pd.DataFrame:
    """`paired` over pilots: means, how often the forecast was better, and its error over theirs."""
    rows = []
    for key, part in pairs[pairs["data"] != "digits"].groupby(["family", "target", "P/M"], sort=True):
        row = dict(zip(("kernel", "target", "P/M"), key, strict=True)) | {"pilots": len(part)}
        row |= {name: float(part[name].mean()) for name in ("forecast", "ideal")}
        row |= {"chosen": part["chosen"].iloc[0], "its error": float(part["its error"].mean())}
        row |= {"hindsight": float(part["its error then"].mean())}
        row |= {"better than chosen": int((part["forecast"] < part["its error"]).sum())}
        row |= {"better than hindsight": int((part["forecast"] < part["its error then"]).sum())}
        rms = {name: float(part[name].pow(2).mean() ** 0.5) for name in part if name.startswith("rms")}
        row |= {"luck": rms["rms luck"], "method": rms["rms method, forecast"], "chosen's": rms["rms method, chosen"]}
        rows.append(row | {"method/chosen's": row["method"] / row["chosen's"]})
    return pd.DataFrame(rows)


def ridge_loss(predicted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Risk of the runs at the forecast's best ridge over the least found by search, in percent.

    log risk is interpolated between the measured ridges, which it leaves at neither end.
    """
    rows = []
    best = predicted.drop_duplicates(["data", "family", "target", "pilot", "P"])
    for row in best.to_dict("records"):
        keys = ("data", "family", "target", "P")
        runs = measured[np.logical_and.reduce([measured[k] == row[k] for k in keys])]
        if runs.empty:
            continue
        mean = runs.groupby("ridge")["test"].mean().sort_index()
        place, values = np.log(mean.index.to_numpy(float)), np.log(mean.to_numpy(float))
        at = np.interp(math.log(row["best_ridge"]), place, values)
        rows.append({k: row[k] for k in keys} | {"loss": 100 * math.expm1(at - values.min())})
    return pd.DataFrame(rows)


def within(losses: pd.Series) -> float:
    """Share of losses of at most 1 %."""
    return float((losses <= 1).mean())


def markdown(table: pd.DataFrame, decimals: int = 1) -> str:
    """A Markdown table; integers stay integers."""

    def text(value: object) -> str:
        return (
            f"{value:.{decimals}f}"
            if isinstance(value, float) and value != int(value)
            else f"{value}".removesuffix(".0")
        )

    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + " --- |" * len(table.columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(text, row)) + " |" for row in table.to_numpy().tolist())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--data", nargs="+", default=list(DESIGNS))
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--pilots", type=int, default=17)
    parser.add_argument("--out", type=Path, help="a folder for the tables as CSV")
    options = parser.parse_args()
    measured, frames = [pd.read_parquet(options.folder / "runs.parquet")], []
    for name in options.data:
        data = load(name)
        for family in options.families:
            frames += forecasts(options.folder, name, family, data, options.pilots)
        if name == "fashion_mnist" and (options.folder / "networks.parquet").is_file():
            frames += network_forecasts(options.folder, data)
            measured.append(pd.read_parquet(options.folder / "networks.parquet"))
    predicted, runs = pd.concat(frames, ignore_index=True), pd.concat(measured, ignore_index=True)
    table = scored(predicted, runs)
    losses = ridge_loss(predicted, runs[~runs["family"].str.startswith("width")])
    tables = {"scores": summary(table), "paired": paired(table)}
    tables["duels"] = duels(tables["paired"]) if len(tables["paired"]) else pd.DataFrame()
    loss = losses.groupby(["data", "family", "target", "P"])["loss"]
    tables["ridges"] = loss.agg(["count", "median", "max"]).assign(within=100 * loss.agg(within)).reset_index()
    print(markdown(tables["scores"]))
    print(
        f"\nall: {len(table)} pairs of pilot and run, median error {100 * table['error risk'].abs().median():.1f} %, "
        f"covered {100 * table['covered'].mean():.1f} %, median seconds of a forecast {table['seconds'].median():.1f}\n"
    )
    print(markdown(tables["duels"], 2), markdown(tables["ridges"], 2), sep="\n\n")
    if options.out is not None:
        for name, frame in tables.items():
            write_atomically(options.out / f"{name}.csv", partial(frame.to_csv, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
