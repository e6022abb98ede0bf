"""Who may do what: one table from an action to the role, the key scope and the shared permission it needs."""

from dataclasses import dataclass

from django.db import models


class Role(models.TextChoices):
    VIEWER = "viewer"
    TRAINER = "trainer"
    MAINTAINER = "maintainer"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        return list(Role).index(self)


class Scope(models.TextChoices):
    """What an API key may do; never more than its owner's role."""

    READ = "read"
    PREDICT = "predict"
    INGEST = "ingest"
    TRAIN = "train"
    DEPLOY = "deploy"
    ADMIN = "admin"


@dataclass(frozen=True)
class Action:
    """A right: the least role that has it, the key scope it needs, and the permission that shares it.

    ``shared`` is the django-guardian permission on the single object that grants the action to somebody
    outside the organization's roles; None where sharing never grants it.
    """

    role: Role
    scope: Scope
    shared: str | None = None


ACTIONS: dict[str, Action] = {
    "read": Action(Role.VIEWER, Scope.READ, "view"),
    "predict": Action(Role.VIEWER, Scope.PREDICT, "view"),
    "dataset.write": Action(Role.TRAINER, Scope.INGEST, "change"),
    "dataset.delete": Action(Role.MAINTAINER, Scope.ADMIN),
    "run.write": Action(Role.TRAINER, Scope.TRAIN, "change"),
    "model.write": Action(Role.TRAINER, Scope.TRAIN, "change"),
    "model.delete": Action(Role.MAINTAINER, Scope.ADMIN),
    "ref.move": Action(Role.MAINTAINER, Scope.DEPLOY, "change"),
    "deploy": Action(Role.MAINTAINER, Scope.DEPLOY, "change"),
    "organization.manage": Action(Role.ADMIN, Scope.ADMIN),
    "key.write": Action(Role.VIEWER, Scope.ADMIN),
}
