"""Small pictures drawn by the server: they need no script and obey the strict policy on styles."""

from typing import Any

from django import template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

register = template.Library()

WIDTH, HEIGHT = 120, 32


@register.simple_tag
def histogram(described: dict[str, Any] | None) -> SafeString | str:
    """{edges, counts} as bars; nothing when there is no histogram."""
    counts = (described or {}).get("counts")
    if not counts:
        return ""
    highest, step = max(counts) or 1, WIDTH / len(counts)
    bars = format_html_join(
        "",
        '<rect x="{}" y="{}" width="{}" height="{}"/>',
        (_bar(position, count / highest, step) for position, count in enumerate(counts)),
    )
    label = f"Histogram of {len(counts)} bins from {described['edges'][0]} to {described['edges'][-1]}"  # type: ignore[index]
    return format_html(
        '<svg class="histogram" viewBox="0 0 {} {}" preserveAspectRatio="none" fill="currentColor" role="img" '
        'aria-label="{}">{}</svg>',
        WIDTH, HEIGHT, label, bars,
    )  # fmt: skip


def _bar(position: int, share: float, step: float) -> tuple[str, str, str, str]:
    """A count above zero stays visible, however small its share."""
    height = max(share * (HEIGHT - 1), 1.0 if share else 0.0)
    return f"{position * step:.2f}", f"{HEIGHT - height:.2f}", f"{max(step - 0.6, 0.6):.2f}", f"{height:.2f}"
