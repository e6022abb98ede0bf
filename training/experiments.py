"""What changes in experiments."""

from django.core.exceptions import ValidationError
from django.db import transaction

from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import Organization, User
from dlplatform.accounts.names import name_taken, unique_name

from .models import Experiment

DEFAULT_EXPERIMENT = "Default"


@transaction.atomic
def create_experiment(*, actor: User, organization: Organization, name: str, description: str = "") -> Experiment:
    require(actor, "run.write", organization)
    if Experiment.objects.filter(organization=organization, name=name).exists():
        raise name_taken(_taken(name))
    with unique_name(_taken(name)):
        experiment = Experiment.objects.create(
            organization=organization, name=name, description=description, created_by=actor
        )
    audit.record(actor, "experiment.create", experiment, organization, name=name)
    return experiment


def experiment_named(*, actor: User, organization: Organization, name: str) -> Experiment:
    """The experiment of that name, made now when there is none."""
    named = Experiment.objects.filter(organization=organization, name=name)
    found = named.first()
    if found is not None:
        return found
    try:
        return create_experiment(actor=actor, organization=organization, name=name)
    except ValidationError:
        return named.get()


def experiment_for(*, actor: User, organization: Organization, experiment: Experiment | None) -> Experiment:
    """The experiment that work on data of the organization goes into: the given one, else the default one.

    PermissionDenied where the actor may not write to it, ValidationError where it is of another organization.
    """
    if experiment is None:
        experiment = experiment_named(actor=actor, organization=organization, name=DEFAULT_EXPERIMENT)
    require(actor, "run.write", experiment)
    if experiment.organization_id != organization.pk:
        text = "The experiment and the data belong to different organizations."
        raise ValidationError({"experiment": ValidationError(text, code="invalid")})
    return experiment


@transaction.atomic
def update_experiment(*, actor: User, experiment: Experiment, **changes: str) -> Experiment:
    """Change name or description."""
    require(actor, "run.write", experiment)
    name = changes.get("name")
    namesakes = Experiment.objects.filter(organization=experiment.organization, name=name).exclude(pk=experiment.pk)
    if name and namesakes.exists():
        raise name_taken(_taken(name))
    for field, value in changes.items():
        setattr(experiment, field, value)
    with unique_name(_taken(experiment.name)):
        experiment.save(update_fields=list(changes))
    audit.record(actor, "experiment.change", experiment, experiment.organization, **changes)
    return experiment


def _taken(name: str) -> str:
    return f"There is an experiment “{name}” already."
