"""The versions that an experiment compares, each named by a letter: A and B, and of a bandit up to eight further ones."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.core.exceptions import ValidationError

from .models import MOST_ARMS, Experiment

LETTERS = "abcdefghij"
FIELDS = ("control", "challenger", *(f"further.{position}" for position in range(MOST_ARMS - 2)))
DIGITS = 4  # of a share: a deployment has ten thousand buckets
EXPLORED = 0.1  # of the traffic, by all floors together where nobody says otherwise: 5 % each of two arms
LEAST_FLOOR = 0.001


@dataclass(frozen=True)
class Arm:
    """``variant`` is None before the start."""

    letter: str
    version: UUID
    variant: UUID | None


def arms_of(experiment: Experiment) -> list[Arm]:
    """A first; only a bandit has more than two."""
    further = experiment.further.all() if experiment.mode == Experiment.Mode.BANDIT else ()
    return [
        Arm("a", experiment.control_id, experiment.variant_a_id),
        Arm("b", experiment.challenger_id, experiment.variant_b_id),
        *(Arm(LETTERS[row.position], row.version_id, row.variant_id) for row in further),
    ]


def variants_by_letter(experiment: Experiment) -> dict[str, UUID]:
    """Of one that was started."""
    found = {one.letter: one.variant for one in arms_of(experiment)}
    return {letter: variant for letter, variant in found.items() if variant is not None}


def first_shares(letters: Sequence[str], share: float) -> dict[str, float]:
    """Of the traffic, before anything is known: ``share`` for each arm beside A, which has the rest."""
    return {letters[0]: round(1 - share * (len(letters) - 1), 12)} | dict.fromkeys(letters[1:], share)


def challenger_named(experiment: Experiment, letter: str) -> Arm:
    """The arm beside A with this letter; without one B, where there is no other. Raises ValidationError on `arm`."""
    others = arms_of(experiment)[1:]
    if not letter and len(others) == 1:
        return others[0]
    found = next((one for one in others if one.letter == letter.lower()), None)
    if found is None:
        letters = ", ".join(one.letter for one in others)
        raise refused("arm", f"Say which version shall answer alone: {letters}. To go on with A, keep it.")
    return found


def check_number(mode: str, further: Collection[UUID]) -> None:
    """Refuse more arms than a mode can have. Raises ValidationError on `further`."""
    if further and mode != Experiment.Mode.BANDIT:
        what = "A paired test" if mode == Experiment.Mode.PAIRED else "An A/B test"
        raise refused(
            "further",
            f"{what} compares two versions, A and B. Leave the further ones out, or make it a bandit (mode: bandit), "
            f"which has up to {MOST_ARMS}.",
        )
    if (surplus := len(further) + 2 - MOST_ARMS) > 0:
        raise refused("further", f"A bandit has 2 to {MOST_ARMS} versions, A and B among them: leave {surplus} out.")


def check_different(names: Sequence[tuple[UUID, str]]) -> None:
    """Refuse a version that is named twice: (id, name) of A, B, C, …. Raises ValidationError on the second's field."""
    seen: dict[UUID, str] = {}
    for (version, name), letter, field in zip(names, LETTERS, FIELDS, strict=False):
        if version in seen:
            raise refused(field, f"{name} is {seen[version].upper()} already: name each version once.")
        seen[version] = letter


def opening(arms: int, share: float | None, floor: float | None) -> dict[str, float]:
    """{share, floor} of a bandit with so many arms, as they are stored. Raises ValidationError.

    By default all get the same at first, and the floors together are a tenth of the traffic.
    """
    floor = round(EXPLORED / arms if floor is None else floor, DIGITS)
    if not (math.isfinite(floor) and floor >= LEAST_FLOOR and floor * arms <= 1):
        most = math.floor(10**DIGITS / arms) / 10**DIGITS
        raise refused("floor", f"Give from {LEAST_FLOOR:g} to {most:g}: {arms} versions share the traffic.")
    share = 1 / arms if share is None else share
    if not (share >= floor and 1 - share * (arms - 1) >= floor - 1e-9):
        most = math.floor((1 - floor) / (arms - 1) * 10**DIGITS) / 10**DIGITS
        raise refused(
            "share",
            f"Each of {arms} versions gets {floor:g} of the traffic at least, A too: give from {floor:g} to {most:g} for "
            "each beside A, or a lower floor.",
        )
    return {"share": share, "floor": floor}


def refused(field: str, sentence: str, code: str = "invalid") -> ValidationError:
    return ValidationError({field: ValidationError(sentence, code=code)})
