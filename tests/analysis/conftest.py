"""A made-up table of networks with planted truths: what is broken, and by how much, is known."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits


def planted_networks(
    seed: int = 0,
    *,
    model: str = "mlp",
    widths: tuple[int, ...] = (16, 64, 256),
    sizes: tuple[int, ...] = (100, 400),
    ridges: tuple[float, ...] = (1e-4, 1e-2),
    num_seeds: int = 4,
    num_draws: int = 4,
    noise: float = 0.002,
    theory_off: float = 0.0,
    width_excess: float = 0.0,
    law_off: float = 0.0,
    lazy_off: float = 0.0,
) -> pd.DataFrame:
    """Every seed meets every draw. ``noise`` is the relative spread over seeds, over draws, and of single
    networks.

    theory_off: infinite_heldout / theory_test - 1; lazy_off: network_test / krr_test - 1;
    width_excess: krr_test / infinite_test - 1 is width_excess * 16/width; law_off: krr_test / block_test - 1 is
    law_off * 16/width.
    """
    rng = np.random.default_rng(seed)
    by_seed, by_draw = rng.normal(size=num_seeds), rng.normal(size=num_draws)
    rows = []
    for width in widths:
        for size in sizes:
            for ridge in ridges:
                risk = (0.6 - 0.04 * np.log(size)) * (1 + 5 * ridge)
                kappa = ridge + 0.9 / size
                kappa_1 = ridge + 0.9 / size * (1 - 1.6 / width)
                for s in range(num_seeds):
                    for d in range(num_draws):

                        def shaken(value: float, s: int = s, d: int = d) -> float:
                            return value * np.exp(noise * (by_seed[s] + by_draw[d] + rng.normal()))

                        infinite = risk * np.exp(noise * by_draw[d])
                        krr = shaken(infinite) * (1 + width_excess * 16 / width)
                        network = krr * (1 + lazy_off) * np.exp(noise * rng.normal())
                        train = network * (ridge / kappa_1) ** 2
                        rows.append(
                            {
                                "run": f"{model}-w{width}-P{size}-lam{ridge:g}-s{s}-d{d}",
                                "member": s * num_draws + d,
                                "data": "digits",
                                "model": model,
                                "width": width,
                                "depth": 2,
                                "activation": "relu",
                                "parameterisation": "ntk",
                                "alpha": 10.0,
                                "options": "{}",
                                "training": "{}",
                                "P": size,
                                "ridge": ridge,
                                "seed": s,
                                "draw": d,
                                "converged": True,
                                "steps": 40,
                                "optimality_gap": 1e-6,
                                "status": "converged",
                                "network_test": network,
                                "network_train": train,
                                "krr_test": krr,
                                "krr_train": train,
                                "krr_final_test": shaken(network),
                                "krr_last_test": 1.5 * krr,
                                "infinite_test": infinite,
                                "infinite_train": risk * (ridge / kappa) ** 2,
                                "infinite_heldout": risk * np.exp(noise * by_draw[d]) * (1 + theory_off),
                                "nngp_test": 1.1 * risk,
                                "network_accuracy": 0.9,
                                "theory_test": risk,
                                "theory_train": risk * (ridge / kappa) ** 2,
                                "theory_kappa": kappa,
                                "theory_kappa_uneven": kappa,
                                "theory_gcv_test": risk,
                                "theory_width_test": risk * (1 + width_excess * 16 / width),
                                "theory_width_kappa1": kappa_1,
                                "block_test": infinite * (1 + width_excess * 16 / width) / (1 + law_off * 16 / width),
                                "block_kappa1": kappa_1,
                                "block_pool_test": risk * (1 + width_excess * 16 / width),
                                "block_note": "",
                                "block_pool_note": "",
                                "kappa_infinite": kappa * np.exp(noise * by_draw[d]),
                                "kappa_entk": shaken(kappa_1),
                                "kappa_final": shaken(kappa),
                                "kappa_risk": shaken(kappa_1),
                                "kappa_entk_se_log": 0.01,
                                "kappa_infinite_se_log": 0.01,
                                "inverse_width": shaken(2.0 / width / size),
                                "inverse_width_se": 0.0001,
                                "effective_width": 0.5 * width * size,
                                "entk_gcv": shaken(krr),
                                "entk_loo": shaken(krr),
                                "infinite_gcv": risk,
                                "infinite_loo": risk,
                                "kernel_movement": 0.01,
                            }
                        )
    return pd.DataFrame(rows)


def planted_spectra(models: tuple[str, ...] = ("mlp",), modes: int = 400) -> pd.DataFrame:
    index = np.arange(1, modes + 1)
    power = index**-1.3
    table = pd.DataFrame({"index": index, "eigenvalue": index**-1.6, "target_power": 0.9 * power / power.sum()})
    return pd.concat([table.assign(data="digits", model=model, kernel="ntk") for model in models])


@pytest.fixture(scope="session")
def planted() -> Callable[..., pd.DataFrame]:
    return planted_networks


@pytest.fixture(scope="session")
def spectra() -> Callable[..., pd.DataFrame]:
    return planted_spectra


@pytest.fixture(scope="session")
def parity_digits():
    """The first of the shuffled digits, centred and of norm 8, and the parity of their label."""

    def choose(count):
        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(3))[:count]
        x = torch.from_numpy(data.data[order])
        x = x - x.mean(0)
        x = x / x.square().mean(1, keepdim=True).sqrt()
        y = torch.where(torch.from_numpy(data.target[order]) % 2 == 0, 1.0, -1.0).double()[:, None]
        return x, y

    return choose
