"""What is summed of a window: read from the log at once, or carried on from tick to tick as rows of `RunningSum`.

A reading says both: `read` asks the log; `parts` are the same sums as rows (variant, part, unit, n, s, q) of PostgreSQL, which
`running` adds and takes away; `told` makes of such rows what `read` would have found. All values of a key stand in one row.
Units of one request add up to one row of a variant and part, whose unit is '', with their squares.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Protocol
from uuid import UUID

from registry.serving.statistics.moments import Moments

from .sums import (
    COUNTED,
    TELLING,
    Measure,
    Pairs,
    Units,
    Window,
    capped,
    count_units,
    differences_of,
    named_values,
    outcomes,
    outcomes_by_propensity,
    pairs,
    unit_value,
    values_of,
)

NOTHING = Moments(0, 0.0, 0.0)
A_KEY = "starts_with(unit, 'key ')"


@dataclass(frozen=True)
class Row:
    """Of a variant and a part: units, the sum of their outcomes and of its squares; values, and their mean."""

    variant: UUID
    part: str
    units: int
    total: float
    squares: float
    values: int
    mean: float  # as PostgreSQL divides, to the digit

    @property
    def moments(self) -> Moments:
        return Moments(self.units, self.total, self.squares)


class Reading(Protocol):
    """See the module. ``with_copies``: what shadows got changes it too."""

    @property
    def measure(self) -> Measure: ...
    @property
    def with_copies(self) -> bool: ...
    def read(self, window: Window) -> Any: ...
    def parts(self, *, touched: bool) -> str: ...
    def named(self, window: Window) -> dict[str, Any]: ...
    def told(self, rows: Sequence[Row]) -> Any: ...


@dataclass(frozen=True)
class Outcomes:
    """Moments of the units' outcomes, by variant. ``with_copies``: the copies that shadows got count too."""

    variants: tuple[UUID, ...]
    measure: Measure
    with_copies: bool = False

    def _of(self, window: Window) -> Window:
        return replace(window, shadows=self.with_copies)

    def read(self, window: Window) -> dict[UUID, Moments]:
        return outcomes(self.measure, self._of(window), self.variants)

    def parts(self, *, touched: bool) -> str:
        return _parts_of_units(self.measure, touched=touched, part="''::text")

    def named(self, window: Window) -> dict[str, Any]:
        return named_values(self._of(window), self.variants, self.measure)

    def told(self, rows: Sequence[Row]) -> dict[UUID, Moments]:
        return dict.fromkeys(self.variants, NOTHING) | {row.variant: row.moments for row in rows}


@dataclass(frozen=True)
class Answered:
    """How many units and requests each variant answered. ``telling``: without requests that every live variant refuses.

    ``since``: only from then on, where that is later than the window's; ``part`` names it, as another time has sums of its own.
    """

    variants: tuple[UUID, ...]
    with_copies: bool = False
    by_request: bool = False
    since: datetime | None = None
    part: int = 0
    telling: bool = False

    @property
    def measure(self) -> Measure:
        return Measure(TELLING if self.telling else COUNTED, by_request=self.by_request)

    def _of(self, window: Window) -> Window:
        return replace(window, shadows=self.with_copies, since=max(window.since, self.since or window.since))

    def read(self, window: Window) -> dict[UUID, Units]:
        return count_units(self.measure, self._of(window), self.variants)

    def parts(self, *, touched: bool) -> str:
        return _parts_of_units(self.measure, touched=touched, part="%(part)s::text")

    def named(self, window: Window) -> dict[str, Any]:
        return named_values(self._of(window), self.variants, self.measure) | {"part": str(self.part)}

    def told(self, rows: Sequence[Row]) -> dict[UUID, Units]:
        found = {row.variant: Units(row.units, row.values) for row in rows if row.part == str(self.part)}
        return dict.fromkeys(self.variants, Units(0, 0)) | found


@dataclass(frozen=True)
class ByPropensity:
    """Moments of the outcomes by the probability that a variant was chosen with, rising; its digits name a part."""

    variants: tuple[UUID, ...]
    measure: Measure

    with_copies: ClassVar[bool] = False

    def read(self, window: Window) -> dict[UUID, list[tuple[float, Moments]]]:
        return outcomes_by_propensity(self.measure, window, self.variants)

    def parts(self, *, touched: bool) -> str:
        return _parts_of_units(self.measure, touched=touched, part="propensity::text", only="AND propensity > 0")

    def named(self, window: Window) -> dict[str, Any]:
        return named_values(window, self.variants, self.measure)

    def told(self, rows: Sequence[Row]) -> dict[UUID, list[tuple[float, Moments]]]:
        found: dict[UUID, list[tuple[float, Moments]]] = {variant: [] for variant in self.variants}
        for row in sorted(rows, key=lambda row: float(row.part)):
            found[row.variant].append((float(row.part), row.moments))
        return found


@dataclass(frozen=True)
class InPairs:
    """Both versions on the same labelled requests; see `sums.Pairs`, whose counts are a part each."""

    live: UUID
    shadow: UUID
    measure: Measure

    with_copies: ClassVar[bool] = True

    def read(self, window: Window) -> Pairs:
        return pairs(self.measure, window, self.live, self.shadow)

    def parts(self, *, touched: bool) -> str:
        return f"""{differences_of(self.measure, touched=touched)},
            units AS (SELECT %(shadow)s::uuid AS variant_id, 'differences' AS part, unit, count(*) AS n, sum(b - a) AS s
                      FROM both_read WHERE b IS NOT NULL GROUP BY unit),
            counted AS (
                SELECT 'a' AS part, count(*) AS n, sum(a) AS s FROM both_read WHERE b IS NOT NULL
                UNION ALL SELECT 'b', count(*), sum(b) FROM both_read WHERE b IS NOT NULL
                UNION ALL SELECT 'requests', count(DISTINCT request_id), 0 FROM both_read
                UNION ALL SELECT lacking, count(DISTINCT request_id), 0 FROM both_read WHERE lacking <> '' GROUP BY lacking
            ),
            {_parts(self.measure)}
            UNION ALL SELECT %(shadow)s::uuid, part, '', n, s, 0 FROM counted WHERE n > 0)"""  # noqa: S608 - constants

    def named(self, window: Window) -> dict[str, Any]:
        return named_values(window, [self.live], self.measure) | {"shadow": self.shadow}

    def told(self, rows: Sequence[Row]) -> Pairs:
        found = {row.part: row for row in rows}
        a, b = (found[part].mean if part in found else None for part in "ab")
        counts = (found[part].values if part in found else 0 for part in ("requests", "dropped", "failed", "absent"))
        return Pairs(found["differences"].moments if "differences" in found else NOTHING, a, b, *counts)


def _parts_of_units(measure: Measure, *, touched: bool, part: str, only: str = "") -> str:
    return f"""{values_of(measure, touched=touched)},
        named AS (SELECT variant_id, {part} AS part, unit, value FROM read WHERE value IS NOT NULL {only}),
        units AS (SELECT variant_id, part, unit, count(*) AS n, sum(value) AS s FROM named GROUP BY variant_id, part, unit),
        {_parts(measure)})"""  # noqa: S608 - made of constants


def _parts(measure: Measure) -> str:
    """Of `units`, without the bracket that closes it."""
    return f"""alone AS (SELECT variant_id, part, {capped(unit_value(measure, "s", "n"))} AS f FROM units WHERE NOT {A_KEY}),
        parts AS (SELECT variant_id, part, unit, n, s, 0::numeric AS q FROM units WHERE {A_KEY}
                  UNION ALL SELECT variant_id, part, '', count(*), sum(f), sum(f * f) FROM alone GROUP BY variant_id, part"""  # noqa: S608
