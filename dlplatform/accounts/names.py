"""Names that are unique within an organization, also when two people choose the same one in the same moment."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

ENDING = "_name_once"  # of every constraint that keeps such names apart


def name_taken(sentence: str) -> ValidationError:
    return ValidationError({"name": ValidationError(sentence, code="unique")})


@contextmanager
def unique_name(sentence: str) -> Iterator[None]:
    """Writes a row with a name: ValidationError with ``sentence`` when somebody else's row came first."""
    try:
        with transaction.atomic():
            yield
    except IntegrityError as error:
        constraint = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None) or ""
        if not constraint.endswith(ENDING):
            raise
        raise name_taken(sentence) from None
