"""Numbers as people read them."""

from typing import Any

import pytest

from dlplatform.accounts.templatetags.platform import number


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (True, "true"), ("x", "x"), (1234567, "1,234,567"), (2.0, "2"), (0.12345, "0.1235"), (1e-5, "1.000e-05"),
        (1234.5, "1,234"), (1e16, "1.000e+16"), (2**63, "9,223,372,036,854,775,808"), (-(10**308), "-1.000e+308"),
        (10**400, "1.000e+400"), (float("nan"), "NaN"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_of_any_size(value: Any, shown: str) -> None:
    assert number(value) == shown
