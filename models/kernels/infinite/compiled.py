"""Functions compiled by Numba, kept from one process to the next while none of the sources they come from changes.

Numba compiles functions and constants of other files into a function, but looks only at its own file to see whether
what it kept is still right. Here the name under which it is kept holds a hash of all sources.
"""

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import numba


@cache
def sources() -> str:
    """A hash of all that may be compiled into a function of this package: its files, and `duals` for constants."""
    kernels = files("ridgescope.models.kernels")
    paths = [kernels / "duals.py", *kernels.joinpath("infinite").iterdir()]
    digest = hashlib.sha256()
    for path in sorted((path for path in paths if path.name.endswith(".py")), key=lambda path: path.name):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    function = inspect.unwrap(function)  # a type checker may have wrapped it at import
    function.__qualname__ += f"-{sources()}"  # names Numba's files
    # numpy's errors: 1/0 is inf and not a branch
    compiler = numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
    result: Any = compiler(function)
    try:
        result.enable_caching()
    except RuntimeError:  # neither the package's folder nor the user's own can be written to
        pass
    callable_: Callable[..., Any] = result
    return callable_
