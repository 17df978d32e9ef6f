"""How long a cell will take, said before it starts: operations counted, divided by this machine's measured rate."""

import math
import time
from functools import cache
from typing import Any

import torch

_EVALUATIONS = 12  # of a lazy ensemble to its optimum
_OVERHEAD = 1.5  # seconds per cell: setting up, small operations, files


def estimate_seconds(config: dict[str, Any]) -> float:
    """Seconds to train and measure a cell on this machine; a factor of two either way is to be expected."""
    seeds, draws = config["num_seeds"], config["num_draws"]
    members = len(config["ridges"]) * (max(seeds, draws) if config["design"] == "paired" else seeds * draws)
    return _OVERHEAD + members * _operations_per_member(config) / _operations_per_second()


def _operations_per_member(config: dict[str, Any]) -> float:
    """Multiply-adds of one network: its kernel before and after, two factorisations each, and the descent."""
    data, model = config["data"], config["model"]
    samples = data["train_size"]
    outputs = 1 if data["target"] != "one_hot" else 100 if data["name"] == "cifar100" else 10
    width, depth = model.get("width", 128), model.get("depth", 2)
    pixels = {"digits": 64, "cifar10": 1024, "cifar100": 1024, "svhn": 1024}.get(data["name"], 784)
    rows = samples * outputs
    if "strides" in model:
        strides = math.prod(model["strides"]) ** 2
        forward = 9 * width**2 * depth * pixels / strides
        kernel = rows**2 / 2 * 9 * width**2 * (depth - 1)
    else:
        forward = pixels * width + width**2 * (depth - 1)
        kernel = rows**2 / 2 * width * depth
    evaluations = samples * (_EVALUATIONS + 2 * outputs) * 6 * forward
    return 2 * kernel + 3 * rows**3 + evaluations


@cache
def _operations_per_second(size: int = 600) -> float:
    """Multiply-adds per second of a float64 matrix product, halved for everything that is not one."""
    a = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * size**3 / (time.perf_counter() - start) / 2
