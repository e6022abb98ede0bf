"""The part of a version's page that takes it live: the registry's pages do not know what is deployed."""

from typing import Any

from django import template

from registry.models import ModelVersion
from registry.serving.going_live import choices_of

register = template.Library()


@register.inclusion_tag("serving/_live.html", takes_context=True)
def live_choices(context: dict[str, Any], version: ModelVersion) -> dict[str, Any]:
    """What whoever looks at the page may do with the version in a click; nothing for whoever may not deploy."""
    return {"choices": choices_of(context["request"].user, version), "version": version}
