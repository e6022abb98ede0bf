"""What changes in an experiment after it was made."""

from django.core.exceptions import ValidationError
from django.db import transaction

from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User

from .models import Experiment


@transaction.atomic
def update_experiment(*, actor: User, experiment: Experiment, **changes: str) -> Experiment:
    """Change name or description."""
    require(actor, "run.write", experiment)
    name = changes.get("name")
    namesakes = Experiment.objects.filter(organization=experiment.organization, name=name).exclude(pk=experiment.pk)
    if name and namesakes.exists():
        raise ValidationError({"name": ValidationError(f"There is an experiment “{name}” already.", code="unique")})
    for field, value in changes.items():
        setattr(experiment, field, value)
    experiment.save(update_fields=list(changes))
    audit.record(actor, "experiment.change", experiment, experiment.organization, **changes)
    return experiment
