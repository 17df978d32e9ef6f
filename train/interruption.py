"""Signals that ask the work to stop: SIGTERM, and SIGUSR1 as batch systems send it before the time limit.

After :func:`listen` such a signal raises :class:`~ridgescope.train.errors.Interrupted` where it strikes, except
inside :func:`deferred`: there it is only noted, the step in progress is finished and saved, and then it is raised.
The module imports nothing heavy, so that a command listens before it loads torch.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ridgescope.train.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_listening = False
_depth = 0  # of nested `deferred` blocks
_noted: signal.Signals | None = None


def listen() -> None:
    """Take over the signals; from the main thread only, at the start of a command."""
    global _listening
    _listening = True
    for number in SIGNALS:
        signal.signal(number, _handle)


def listen_again() -> None:
    """Lightning puts its own handlers in place when a fit starts, and takes them away when it ends."""
    if _listening:
        listen()


@contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal waits: for :func:`noted` to be asked, or for the end of the outermost block."""
    global _depth, _noted
    _depth += 1
    try:
        yield
    except Interrupted:
        _noted = None  # answered: the work stopped, here or in another process
        raise
    finally:
        _depth -= 1
    if _depth == 0:
        raise_noted()


def noted() -> bool:
    """Whether a signal waits."""
    return _noted is not None


def raise_noted(where: str = "") -> None:
    """Raise the signal that waits, if one does; ``where`` says how far the work has come."""
    global _noted
    if _noted is not None:
        number, _noted = _noted, None
        raise Interrupted(f"stopped by {number.name}{where}; the same command continues")


def _handle(number: int, frame: FrameType | None) -> None:
    global _noted
    _noted = signal.Signals(number)
    if _depth == 0:
        raise_noted()
