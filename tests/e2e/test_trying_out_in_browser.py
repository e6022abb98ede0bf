"""In a real browser: an architecture from a preset, tried out and trained; then its fine-tuning tried out."""

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SECONDS

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("platform")]
PICTURES = os.environ.get("PICTURES")  # a folder for those who want to look


def look(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)


def reviews(rows: int = 120) -> str:
    """Long enough, and different enough, to be read as texts."""
    generator = random.Random(7)
    words = [
        "the",
        "film",
        "book",
        "story",
        "was",
        "told",
        "shown",
        "with",
        "much",
        "little",
        "light",
        "music",
        "people",
        "end",
        "hero",
        "place",
    ]
    lines = ["review,kind"]
    for index in range(rows):
        said = " ".join(generator.choice(words) for _ in range(14))
        lines.append(
            f"{said} {['good', 'bad'][index % 2]} {generator.choice(words)} {index},{['yes', 'no'][index % 2]}"
        )
    return "\n".join(lines) + "\n"


def test_a_preset_is_tried_out_trained_and_its_fine_tuning_tried_out(page: Any, tmp_path: Path, complaints: list[str]):
    file = tmp_path / "reviews.csv"
    file.write_text(reviews())
    page.goto("/datasets/new")
    page.get_by_label("A table, or an archive of images").set_input_files(file)
    page.get_by_label("Name").fill("reviews in the browser")
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_text("120 rows × 2 columns").wait_for()
    page.get_by_role("link", name="Train on this version").click()
    page.get_by_text("Advanced settings").click()
    page.get_by_role("button", name="BERT, small", exact=True).click()
    assert '"model_type": "bert"' in page.get_by_label("Text model").input_value()
    page.get_by_label("Text model").fill('{"model_type": "bert", "hiden_size": 16}')
    page.get_by_role("button", name="Check first").click()
    page.get_by_text("hiden_size is no setting of bert").wait_for()
    small = '{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'
    page.get_by_label("Text model").fill(small)
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_role("button", name="Check first").click()
    page.get_by_text("Parameters that train").wait_for(timeout=120 * SECONDS)
    look(page, "new-run")
    page.get_by_role("button", name="Queue the run").click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}/$"))
    page.locator("#run-state[data-state=succeeded]").wait_for(timeout=180 * SECONDS)
    look(page, "run")

    page.get_by_role("link", name=re.compile("reviews in the browser v1")).first.click()
    page.get_by_role("link", name="Fine-tune").first.click()
    page.get_by_label("Mode", exact=True).select_option("lora")
    page.get_by_text("its adapter").first.wait_for()
    page.get_by_role("button", name="Check first").click()
    page.get_by_text("Time, at most about").wait_for(timeout=120 * SECONDS)
    look(page, "finetune")
    assert complaints == []
