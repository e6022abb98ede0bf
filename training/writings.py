"""What a language model wrote while it learned, for the run page."""

from itertools import groupby
from typing import Any

from .models import Run, RunEvent

TASK = "language-model"
ARROW = "⟶"
MOST_SAMPLES = 60


def writings_of(run: Run) -> list[dict[str, Any]]:
    """By evaluation, the newest first: {step, texts: [{prompt, text}]}; no step for those of the finished model."""
    if run.task != TASK:
        return []
    events = list(RunEvent.objects.filter(run=run, type="sample").order_by("-sequence")[:MOST_SAMPLES])
    steps = groupby(events, key=lambda event: event.payload["step"])
    found = [
        {"step": step, "texts": [_parted(one.payload["text"]) for one in reversed(list(of))]} for step, of in steps
    ]
    final = (run.evaluation or {}).get("samples") or []
    return [*([{"step": None, "texts": [_parted(text) for text in final]}] if final else []), *found]


def _parted(text: str) -> dict[str, str]:
    prompt, arrow, written = text.partition(ARROW)
    return {"prompt": prompt, "text": written} if arrow else {"prompt": "", "text": text}
