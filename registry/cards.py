"""Model cards: Markdown out of a version's tree, rendered to HTML that holds nothing active."""

import nh3
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

from dlplatform.objects.store import CorruptObject, MissingObject

from . import services
from .models import ModelVersion

CARD = "README.md"
MOST_BYTES = 256 * 1024
TAGS = {
    "h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "ul", "ol", "li", "strong", "em", "del", "code", "pre",
    "blockquote", "a", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip

_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def rendered(text: str) -> SafeString:
    """Markdown as HTML: raw HTML stays text, and what is left is cleaned once more.

    Its headings go below the page's own, of which the card stands under the second.
    """
    tokens = _markdown.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
    html = nh3.clean(
        _markdown.renderer.render(tokens, _markdown.options, {}),
        tags=TAGS,
        attributes={"a": {"href", "title"}},
        url_schemes={"http", "https", "mailto"},
    )
    return mark_safe(html)  # noqa: S308


def card_of(version: ModelVersion) -> SafeString | None:
    """The version's model card, or None when it has none that can be read."""
    entry = version.tree.get(CARD)
    if entry is None or entry["size"] > MOST_BYTES:
        return None
    store = services.object_store(version.model.organization_id)
    try:
        with store.open(entry["sha256"]) as source:
            text = source.read(MOST_BYTES)
    except (OSError, MissingObject, CorruptObject):
        return None
    return rendered(text.decode("utf-8", "replace"))
