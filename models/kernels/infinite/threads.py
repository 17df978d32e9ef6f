"""Parts of a computation on several threads of this process.

Each part writes a place of its own, and what it does must not depend on the thread that does it: then neither do the
bits depend on their number. The work itself must let go of Python's lock, as torch and compiled functions do.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

import torch

Part = TypeVar("Part")


@contextmanager
def one_thread() -> Iterator[int]:
    """Torch on one thread, whose sums do not depend on how many there are; yields how many there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@dataclass
class Workers:
    """``threads``, this one included, that work on equal parts.

    ``check`` is told the seconds that all parts will take, when a first one is done.
    """

    threads: int
    check: Callable[[float], None]
    checked: bool = False

    def for_each(self, work: Callable[[Part], None], parts: Sequence[Part], *, of: int | None = None) -> None:
        """``work(part)`` for every part, in no order; ``of`` parts that are still to come, these included.

        An exception, or Ctrl-C, ends it after the parts that are being worked on.
        """
        left, stopped = iter(parts), Event()

        def some() -> None:
            try:
                for part in left:  # a sequence's iterator hands out each part once, under Python's lock
                    if stopped.is_set():
                        return
                    started = time.perf_counter()
                    work(part)
                    if not self.checked:
                        self.checked = True
                        self.check((time.perf_counter() - started) * (of or len(parts)) / self.threads)
            except BaseException:
                stopped.set()
                raise

        others = self.threads - 1
        if others == 0:
            some()
            return
        with ThreadPoolExecutor(others, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = [pool.submit(some) for _ in range(others)]
            try:
                some()
                for one in running:
                    one.result()
            finally:
                stopped.set()
