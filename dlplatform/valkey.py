"""The connection to Valkey (or Redis) for single commands: to wake a worker, to publish a hint."""

from functools import cache

import redis
from django.conf import settings


def shared_connection() -> redis.Redis:
    """This process's own; its pool is safe between threads and after a fork."""
    return _connection_to(settings.REDIS_URL)


@cache
def _connection_to(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=5, health_check_interval=30)
