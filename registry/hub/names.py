"""Repository names and commit ids, as Hugging Face clients may write them, and ours.

A client takes only letters, digits, dot, dash and underscore for a name. Any other character of a model's name is
written as `_u<hexadecimal code point>_`: “breast cancer” is `breast_u20_cancer`. A model whose name gets too long
that way is reached by its UUID, as every model is. Nothing has two names beside its UUID.
"""

import re
from uuid import UUID

from registry.models import ModelVersion, RegisteredModel

LONGEST = 96
COMMIT_DIGITS = 40
ESCAPE = re.compile(r"_u([0-9a-f]{1,6})_")
LOOKS_ESCAPED = re.compile(r"_u[0-9a-f]{1,6}[^A-Za-z0-9]")
SAFE = re.compile(r"[A-Za-z0-9._-]")
IDENTIFIER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def repo_id(model: RegisteredModel) -> str:
    """`organization/name`; the model's organization should be loaded."""
    name = repo_name(model.name)
    return f"{model.organization.slug}/{name if len(name) <= LONGEST else model.pk}"


def repo_name(name: str) -> str:
    return "".join(
        f"_u{ord(character):x}_" if _escaped(name, place) else character for place, character in enumerate(name)
    )


def model_name(repo: str) -> str | None:
    """The name of the model that a repository name stands for; None where it stands for none."""
    try:
        name = ESCAPE.sub(lambda matched: chr(int(matched[1], 16)), repo)
        name.encode()
    except ValueError:
        return None
    return name if name and "\0" not in name and repo_name(name) == repo else None


def identifier_in(repo: str) -> UUID | None:
    return UUID(repo) if IDENTIFIER.fullmatch(repo) else None


def commit_id(version: ModelVersion) -> str:
    """Clients expect the 40 digits of a git commit: the first of the version's digest."""
    return version.digest[:COMMIT_DIGITS]


def _escaped(name: str, place: int) -> bool:
    """Whether this character cannot stand for itself."""
    character = name[place]
    if not SAFE.fullmatch(character) or LOOKS_ESCAPED.match(name, place):
        return True
    if place == 0 and IDENTIFIER.fullmatch(name):
        return True
    if character not in ".-":
        return False
    at_an_end = place in (0, len(name) - 1)
    return at_an_end or name[place - 1] == character or name[place:] == ".git"
