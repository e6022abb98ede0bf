"""Which machines have workers that train, and by which address this one is reached."""

import socket
from collections import Counter
from urllib.parse import urlsplit

from django.conf import settings
from rq import Worker
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from dlplatform.valkey import shared_connection

from ..models.nodes import queue_of


def machines() -> dict[str, int]:
    """Machines by name, with how many of their workers have nothing to do, as the workers' own register tells.

    One that vanished stays in it for some minutes. Raises redis.RedisError.
    """
    idle: Counter[str] = Counter()
    for worker in Worker.all(connection=shared_connection(), serializer=JSONSerializer):
        for name in worker.queue_names():
            if name.startswith(queue_of("")):
                idle[name.removeprefix(queue_of(""))] += worker.get_state() == WorkerStatus.IDLE
    return dict(idle)


def own_address() -> str:
    """``NODE_ADDRESS``, or the address from which this machine reaches Valkey: the others reach that too."""
    if settings.NODE_ADDRESS:
        return str(settings.NODE_ADDRESS)
    there = urlsplit(settings.REDIS_URL)
    if not there.hostname:  # a socket in the file system: all is on this machine
        return "127.0.0.1"
    family, kind, *_, target = socket.getaddrinfo(there.hostname, there.port or 6379, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing: it only chooses the way
        return str(probe.getsockname()[0])
