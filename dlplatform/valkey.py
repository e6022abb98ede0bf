"""The connection to Valkey (or Redis) for single commands: to wake a worker, to publish a hint."""

from functools import cache

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry


def shared_connection() -> redis.Redis:
    """This process's own; its pool is safe between threads and after a fork."""
    return _connection_to(settings.REDIS_URL)


def impatient_connection() -> redis.Redis:
    """For what is done again in a moment anyway: it gives up after a second, and tries nothing twice."""
    return _impatient_connection_to(settings.REDIS_URL)


@cache
def _connection_to(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=5, health_check_interval=30)


@cache
def _impatient_connection_to(url: str) -> redis.Redis:
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=once)
