"""``ridgescope COMMAND [OVERRIDES]``: train, analyse, validate and the others."""

import os
import sys
from importlib import import_module

from ridgescope.train.errors import Interrupted
from ridgescope.train.interruption import listen

# name: (module:function, what it does)
COMMANDS = {
    "validate": ("analysis.main:validate", "train a ladder of networks and project it onto the theory: the main job"),
    "train": ("train.main:main", "train one cell, or with -m a Hydra multirun of cells"),
    "analyse": ("analysis.main:analyse", "measure and project the cells of an experiment, without retraining"),
    "audit": (
        "analysis.audit_main:audit",
        "kappa, attribution and verdicts for a network of your own, or of torchvision",
    ),
    "forecast": (
        "analysis.forecast.main:main",
        "what more samples, another width or ridge will give, from a pilot; trains nothing",
    ),
    "coordinates": (
        "analysis.coordinate_check:coordinate_check",
        "check that one learning rate serves the whole width ladder, lazy to rich",
    ),
    "kernels": ("analysis.kernels:kernels", "list a store of kernels, check and clean it"),
    "submit": (
        "cluster.main:submit",
        "validate as Slurm jobs: an array of cells, then the analysis; returns at once",
    ),
    "status": (
        "cluster.main:status",
        "the cells of a submitted experiment; with resubmit=true those that failed go again",
    ),
    "sync": ("cluster.main:sync", "upload the wandb runs that were written offline"),
    "dashboard": ("cluster.main:dashboard", "save the wandb workspace of an experiment"),
}

USAGE = "usage: ridgescope COMMAND [KEY=VALUE ...]\n\n" + "\n".join(
    f"  {name:11} {what}" for name, what in COMMANDS.items()
)


def main() -> int:
    """Dispatch to a command; every mistake of a user ends as one line on stderr and exit status 2.

    A command that SIGTERM or SIGUSR1 stops ends as one line and exit status 75: the same command continues.
    """
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE + "\n\n'ridgescope COMMAND --help' shows a command's settings.")
        return 0
    if words[0] == "--version":
        from ridgescope import __version__

        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        print(
            f"ridgescope: error: unknown command {words[0]!r}; choose one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    sys.argv = [f"ridgescope {words[0]}", *words[1:]]
    # Hydra then raises what went wrong instead of printing it its own way
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        listen()  # before torch is imported, which takes seconds
        return _run(words[0])
    except Interrupted as stop:
        print(f"ridgescope: {stop}", file=sys.stderr)
        return stop.status


def _run(command: str) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from ridgescope.train.errors import UserError

    module, _, function = COMMANDS[command][0].partition(":")
    try:
        run = getattr(import_module(f"ridgescope.{module}"), function)
        run()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"ridgescope: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ridgescope: stopped; the same command continues where it was", file=sys.stderr)
        return 130
    return 0


def one_line(error: BaseException) -> str:
    """An exception and its causes as one line, without repetitions."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        # Hydra and OmegaConf indent the context below the first lines
        lines = [line.strip() for line in str(cause).splitlines() if line.strip() and not line.startswith("    ")]
        parts += [line for line in lines if line not in parts]
        cause = cause.__cause__
    return "; ".join(parts) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
