"""Template filters and tags that every page may use."""

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

register = template.Library()

LARGEST_WHOLE = 2**64  # beyond it a whole number is a float that lost its point on the way through JSON
UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
STATE_TONES = {
    "queued": "idle", "preparing": "busy", "running": "busy", "paused": "warn", "ready": "good", "succeeded": "good",
    "rejected": "bad", "failed": "bad", "cancelled": "muted", "finished": "good", "pruned": "muted", "active": "good", "revoked": "muted",
    "expired": "muted", "draft": "idle", "decided": "good", "stopped": "muted", "promoted": "good", "kept": "muted",
    "rolled_back": "bad", "aborted": "muted",
}  # fmt: skip


@register.filter
def bytes_size(value: float | None) -> str:
    """1536 → `1.5 KB`."""
    if value is None:
        return "–"
    size = float(value)
    for unit in UNITS:
        if size < 1024 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


@register.filter
def number(value: Any) -> str:
    """A number as people read it: thousands separated, four significant digits, never `1e-05` in a table."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return str(value)
    if value != value:
        return "NaN"
    size = abs(value)
    if size < (LARGEST_WHOLE if isinstance(value, int) else 1e15) and value == int(value):
        return f"{int(value):,}"
    if 1e3 <= size < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}" if 1e-4 <= size < 1e3 else f"{Decimal(value) if isinstance(value, int) else value:.3e}"


@register.filter
def setting(value: Any) -> Any:
    """A setting as it is written in a request: exact, and true or false in small letters."""
    return str(value).lower() if isinstance(value, bool) else value


@register.filter
def counted(value: float | None, noun: str) -> str:
    """`1 row`, `1,797 rows`."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


@register.filter
def percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f} %"


@register.filter
def duration(value: float | timedelta | None) -> str:
    """Seconds or a timedelta → `1 h 04 min`, `3 min 20 s`, `12 s`, `0.4 s`."""
    if value is None:
        return "–"
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@register.filter
def run_time(job: Any) -> str:
    """How long a job has been worked on, or was."""
    if job.started_at is None:
        return "–"
    paused = job.heartbeat_at if job.state == "paused" else None
    return duration((job.finished_at or paused or timezone.now()) - job.started_at)


@register.filter
def tone(state: str) -> str:
    return STATE_TONES.get(state, "idle")


@register.filter
def item(mapping: dict, key: str) -> Any:
    """``mapping[key]`` for keys that are not Python names, such as `validation/accuracy`."""
    return mapping.get(key) if isinstance(mapping, dict) else None


@register.simple_tag
def badge(state: str) -> SafeString:
    return format_html('<span class="badge {}">{}</span>', tone(state), state.replace("_", " "))


@register.simple_tag
def json_data(identifier: str, value: Any) -> SafeString:
    """A JSON island for a script to read: data, not code, so the strict CSP allows it."""
    text = json.dumps(value, default=str).translate({ord("<"): "\\u003C", ord(">"): "\\u003E", ord("&"): "\\u0026"})
    return format_html('<script type="application/json" id="{}">{}</script>', identifier, mark_safe(text))  # noqa: S308


@register.simple_tag(takes_context=True)
def query(context: dict, **changes: Any) -> str:
    """The current query string with some parameters changed; None removes one."""
    parameters = context["request"].GET.copy()
    for name, value in changes.items():
        if value is None:
            parameters.pop(name, None)
        else:
            parameters[name] = value
    return f"?{parameters.urlencode()}" if parameters else "?"
