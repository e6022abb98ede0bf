"""What travels on the channel layer: hints that rows in PostgreSQL have changed, never the rows themselves.

The layer drops messages under load by its specification. A lost hint delays a page by a poll; it loses nothing.
"""

import logging
from typing import Any, Literal, TypedDict
from uuid import UUID

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.conf import settings
from redis.exceptions import RedisError

from .valkey import shared_connection

logger = logging.getLogger(__name__)

Kind = Literal["run", "sweep", "dataset_version", "model", "deployment"]


class RunHint(TypedDict):
    """Run ``run`` has rows up to ``sequence``."""

    type: Literal["run.hint"]
    run: str
    sequence: int


class OrganizationHint(TypedDict):
    """An object of an organization changed its state."""

    type: Literal["organization.hint"]
    kind: Kind
    id: str
    state: str
    name: str


def run_group(run: UUID | str) -> str:
    return f"run.{run}"


def organization_group(organization: UUID | str) -> str:
    return f"organization.{organization}"


def publish_run(run: UUID, sequence: int) -> None:
    _send(run_group(run), RunHint(type="run.hint", run=str(run), sequence=sequence))


def publish_state(organization: UUID, kind: Kind, identifier: UUID, state: str, name: str = "") -> None:
    _send(
        organization_group(organization),
        OrganizationHint(type="organization.hint", kind=kind, id=str(identifier), state=state, name=name),
    )


def _send(group: str, message: Any) -> None:
    """Send a hint; with Redis away the rows are still right, so this only notes it.

    The layer itself sends only from an event loop: one of those and a connection for every hint cost tens of
    milliseconds. To publish its message under the group's name over the connection that we hold costs one.
    """
    layer = get_channel_layer()
    if layer is None:
        return
    try:
        if isinstance(layer, RedisPubSubChannelLayer):
            shared_connection().publish(f"{settings.CHANNEL_PREFIX}__group__{group}", layer.serialize(message))
        else:
            async_to_sync(layer.group_send)(group, message)
    except (RedisError, OSError) as error:
        logger.warning("a hint to %s was not sent: %s", group, error)
