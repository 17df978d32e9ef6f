"""Networks by import path: ours, and any of the user's that keeps the points of a batch apart."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from ridgescope.train.errors import UserError, first_line
from ridgescope.train.own import see_working_folder

OFFERED = ("in_shape", "num_outputs", "generator", "dtype")


def network_factory(settings: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """The factory that ``_target_`` (``package.module.Class``) is, with the other settings as arguments.

    It takes what `ridgescope.train.ensemble.NetworkFactory` says, and passes on those of the four that the class or
    function names. torch's own generator has the seed of ``generator`` meanwhile, for networks that take none, and
    what comes back is moved to ``dtype``. Modules of the working folder count.

    Raises ``UserError`` for what cannot be imported; the factory raises it where the network cannot be made.
    """
    name = settings["_target_"]
    see_working_folder()
    try:
        build = instantiate(dict(settings), _partial_=True)
        known = inspect.signature(build).parameters
    except Exception as error:  # Hydra's has its reason in the second line
        raise UserError(f"cannot make {name}: {' '.join(str(error.__cause__ or error).splitlines()[:2])}") from error
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())

    def factory(**arguments: Any) -> nn.Module:
        taken = {key: value for key, value in arguments.items() if takes_all or key in known or key not in OFFERED}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(arguments["generator"].initial_seed())
                network = build(**taken)
        except Exception as error:
            raise UserError(f"cannot make {name}: {first_line(error.__cause__ or error)}") from error
        if not isinstance(network, nn.Module):
            raise UserError(f"{name} made a {type(network).__name__}; it must make a torch.nn.Module")
        return network.to(arguments["dtype"])

    return factory
