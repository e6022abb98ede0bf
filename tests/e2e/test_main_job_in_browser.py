"""The main job in a real browser: sign in, upload, train, watch, make production, try. Nothing may be logged as
an error on the way, which also proves that no page needs more than the Content-Security-Policy allows."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SECONDS

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("platform")]


def petals(rows: int = 240) -> str:
    generator = random.Random(7)
    lines = ["length,width,colour,kind"]
    for index in range(rows):
        kind = index % 3
        length, width = generator.gauss(5 + kind, 0.5), generator.gauss(3 - kind / 2, 0.3)
        lines.append(f"{length:.2f},{width:.2f},{generator.choice(['red', 'blue'])},{'abc'[kind]}")
    return "\n".join(lines) + "\n"


def upload(page: Any, folder: Path, name: str) -> None:
    file = folder / "petals.csv"
    file.write_text(petals())
    page.goto("/datasets/new")
    page.get_by_label("A table, or an archive of images").set_input_files(file)
    assert page.get_by_label("Name").input_value() == "petals"
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Upload", exact=True).click()
    page.wait_for_url(re.compile(r"/datasets/[0-9a-f-]{36}/\?version=1"))
    page.get_by_text("240 rows × 4 columns").wait_for()


def test_from_a_file_to_a_prediction_of_the_version_in_production(page: Any, tmp_path: Path, complaints: list[str]):
    upload(page, tmp_path, "petals in the browser")
    page.get_by_role("link", name="Rows", exact=True).click()
    page.get_by_role("cell", name="red").first.wait_for()

    page.get_by_role("link", name="Train on this version").click()
    assert page.get_by_label("Column to predict").input_value() == "kind"
    assert page.get_by_label("Task").input_value() == "classification"
    page.get_by_label("Epochs", exact=True).fill("0")
    page.get_by_role("button", name="Queue the run").click()
    page.get_by_text("epochs must be a whole number from 1").wait_for()
    page.get_by_label("Architecture").select_option("mlp")
    page.get_by_label("Epochs", exact=True).fill("20")
    page.keyboard.press("Tab")
    page.locator("#estimate", has_text="240 rows × 3 features").wait_for()
    page.get_by_role("button", name="Queue the run").click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}/$"))

    page.locator("#run-state[data-state=succeeded]").wait_for(timeout=120 * SECONDS)
    page.get_by_role("heading", name="Confusion matrix").wait_for()
    page.locator("#curves svg path.curve").first.wait_for()
    curves = page.locator("#curves figure").count()
    page.reload()
    page.locator("#curves svg path.curve").first.wait_for()
    assert page.locator("#curves figure").count() == curves

    page.get_by_role("link", name=re.compile("petals in the browser v1")).first.click()
    page.get_by_role("button", name="Make production").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason, for the log").fill("the first")
    dialog.get_by_role("button", name="Make production").click()
    page.get_by_text("production points to v1 now.").wait_for()

    page.get_by_label("length").fill("not a number")
    page.get_by_role("button", name="Predict").click()
    page.locator("#try .errors li").first.wait_for()
    page.get_by_label("length").fill("7.1")
    page.get_by_label("width").fill("2.0")
    page.get_by_role("button", name="Predict").click()
    page.locator("#prediction strong", has_text="c").wait_for()
    assert complaints == []


def test_the_keyboard_alone_reaches_the_content_and_the_menu_opens_on_a_phone(page: Any, complaints: list[str]):
    page.goto("/runs/")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.set_viewport_size({"width": 390, "height": 800})
    menu = page.get_by_role("button", name="Menu")
    menu.focus()
    page.keyboard.press("Enter")
    assert menu.get_attribute("aria-expanded") == "true"
    page.get_by_role("link", name="Models").click()
    page.get_by_role("heading", name="Models", level=1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []


def test_the_chosen_theme_stays(page: Any, complaints: list[str]):
    page.get_by_role("button", name="Light or dark").click()
    chosen = page.evaluate("document.documentElement.dataset.theme")
    page.goto("/models/")
    assert chosen in ("light", "dark")
    assert page.evaluate("document.documentElement.dataset.theme") == chosen
    assert complaints == []
