"""Several devices share the programs of a cell: members are sharded, never batches, so nothing is communicated.

One process per device trains every n-th program and writes its results itself. Each ends with the process that started
it, and a signal to that one is passed on.
"""

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from ridgescope.train import interruption
from ridgescope.train.errors import UserError
from ridgescope.train.programs import Programs
from ridgescope.train.progress import quiet


def train_on_devices(programs: Programs, devices: int) -> None:
    """Train all programs, program i on device i mod ``devices``. Raises what the first process to fail raised."""
    # our own pickle: torch's would put every tensor into shared memory
    job = pickle.dumps(programs)
    context = multiprocessing.get_context("spawn")
    with interruption.deferred(), ProcessPoolExecutor(devices, mp_context=context) as pool:
        futures = [pool.submit(_train_share, job, device, devices) for device in range(devices)]
        _wait(pool, futures)
        try:
            for future in futures:
                future.result()
        except BrokenProcessPool:
            raise UserError(
                f"a process that trained {programs.folder.name} was killed (out of memory?); lower memory, or devices; "
                f"the same command continues"
            ) from None


def _wait(pool: ProcessPoolExecutor, futures: list[Future[None]]) -> None:
    passed_on = False
    while not all(future.done() for future in futures):
        wait(futures, timeout=0.2)
        if interruption.noted() and not passed_on:
            passed_on = True
            for process in pool._processes.values():  # no public way to their numbers
                process.terminate()


def _train_share(job: bytes, device: int, devices: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    interruption.listen()
    quiet()
    programs: Programs = pickle.loads(job)
    programs.train(range(device, len(programs.plan), devices), device)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # at once: the next start of the command wants the folder
