"""Sizes in memory and on disk as people write them."""

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """``"3GB"`` -> 3_000_000_000; raises ``ValueError`` for anything else than a positive number and a unit."""
    unit = text.strip().upper()[-2:]
    try:
        size = int(float(text.strip()[:-2]) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"memory={text!r} is not a size; write it like 3GB or 500MB") from None
    if size <= 0:
        raise ValueError(f"memory={text!r} must be positive")
    return size


def format_size(size: float) -> str:
    """``3.05e9`` -> ``"3.1GB"``, rounded up so that what is asked for is enough."""
    unit = next((name for name, value in reversed(_UNITS.items()) if size >= value), "KB")
    tenths = -int(-size * 10 // _UNITS[unit])
    return f"{tenths / 10:g}{unit}"
