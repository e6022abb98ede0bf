"""Whether what was computed again is what was told then.

Processors differ in how they round the last bits of a logarithm or of a sum of many terms: a look that was taken on one
machine is computed again on another one. So numbers agree to nine digits; all else, the decision before all, is the same.
"""

import math
from typing import Any, Final

DIGITS: Final = 1e-9  # of a number
LEAST: Final = 1e-12  # below it a number is as good as none


def same(again: Any, told: Any) -> bool:
    """Of values as JSON has them, however deep."""
    if isinstance(again, dict) and isinstance(told, dict):
        return again.keys() == told.keys() and all(same(value, told[name]) for name, value in again.items())
    if isinstance(again, list) and isinstance(told, list):
        return len(again) == len(told) and all(map(same, again, told))
    if _is_number(again) and _is_number(told):
        return math.isclose(again, told, rel_tol=DIGITS, abs_tol=LEAST)
    return type(again) is type(told) and bool(again == told)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
