"""Checks of arguments: each raises a ValueError that names the argument and what it may be."""

import math


def require_share(name: str, value: float) -> float:
    """A number strictly between 0 and 1."""
    if not (isinstance(value, int | float) and 0 < value < 1):
        raise ValueError(f"{name} must lie between 0 and 1, not {value!r}")
    return float(value)


def require_positive(name: str, value: float) -> float:
    """A finite number above 0."""
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a number above 0, not {value!r}")
    return float(value)


def require_finite(name: str, value: float) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def require_count(name: str, value: int, least: int = 0) -> int:
    """A whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value
