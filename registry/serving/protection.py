"""What stands against deleting versions: the deployments that answer with them."""

from django.db.models import QuerySet

from registry.models import ModelVersion

from .models import Deployment, Variant

NAMED = 5


def deployments_that_use(versions: "QuerySet[ModelVersion]") -> list[str]:
    """Sentences, for the first few deployments that answer with one of the versions, in the light or as a shadow."""
    using = Variant.objects.filter(
        version__in=versions.values("pk"), removed_at=None, deployment__state=Deployment.State.ACTIVE
    )
    rows = using.select_related("deployment", "version").order_by("deployment__name", "version__number")
    return [f"the deployment “{row.deployment.name}” uses v{row.version.number}" for row in rows[:NAMED]]
