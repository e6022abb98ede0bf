"""In a real browser: what the doctor says and its relaunch, a sweep from its form to the promoted best, images from an
archive to a grid, and what a language model writes. Each page also at the width of a phone."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SECONDS
from tests.e2e.test_language_models import ingested, lines
from tests.e2e.test_main_job_in_browser import petals
from tests.e2e.test_trying_out_in_browser import look
from tests.fixtures.pictures import picture, zipped

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("platform")]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
RUN = re.compile(r"/runs/[0-9a-f-]{36}/$")
ENDED = 180 * SECONDS


@pytest.fixture
def client(platform: Any) -> Any:
    with platform.client() as opened:
        yield opened


def holds_on_a_phone(page: Any, name: str) -> None:
    """Nothing reaches beyond the side of a narrow screen."""
    look(page, name)
    page.set_viewport_size(PHONE)
    look(page, f"{name}-phone")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    page.set_viewport_size(WIDE)


def press_for_long(page: Any, shown: Any, meanwhile: str = "0") -> None:
    """Presses for as long as an answer of the server takes to change what is under the pointer."""
    shown.scroll_into_view_if_needed()
    place = shown.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.evaluate(meanwhile)
    page.wait_for_timeout(1 * SECONDS)
    page.mouse.up()


def keeps_its_dialog(page: Any) -> None:
    """What the page of a run is told while a dialog is open shows when that is closed."""
    before = page.locator("#run-state").element_handle()
    page.get_by_role("button", name="Rename").click()
    for _ in range(2):
        page.evaluate("document.body.dispatchEvent(new CustomEvent('run-state'))")
        page.wait_for_timeout(0.5 * SECONDS)
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_function("part => !part.isConnected", arg=before)


def noise(rows: int = 240) -> bytes:
    generator = random.Random(3)
    return b"width,length\n" + b"".join(b"%.3f,%.3f\n" % (x := generator.gauss(3, 1), 2 * x) for _ in range(rows))


def test_nothing_leaves_from_under_a_press(page: Any, platform: Any, client: Any, complaints: list[str]) -> None:
    version = platform.upload(client, "petals to press", petals().encode())
    page.goto(f"/runs/new?version={version['id']}")
    page.locator("#estimate", has_text="240 rows × 3 features").wait_for()
    page.get_by_label("Epochs", exact=True).fill("0")
    press_for_long(page, page.get_by_role("button", name="Queue the run"))
    page.get_by_text("epochs must be a whole number from 1").wait_for()

    hint = "document.body.dispatchEvent(new CustomEvent('live-dataset_version'))"
    page.goto("/datasets/?q=petals+to+press")
    before = page.locator("#datasets").element_handle()
    press_for_long(page, page.get_by_role("columnheader", name="Rows", exact=True), hint)
    page.wait_for_function("part => !part.isConnected", arg=before)  # it is asked for again behind the press
    press_for_long(page, page.get_by_role("link", name="petals to press", exact=True), hint)
    page.wait_for_url(re.compile(r"/datasets/[0-9a-f-]{36}/"))
    assert complaints == []


def test_a_finding_is_relaunched_with_what_it_suggests(
    page: Any, platform: Any, client: Any, complaints: list[str]
) -> None:
    version = platform.upload(client, "lengths in the browser", noise())
    wild = {"architecture": "mlp", "learning_rate": 1.0, "epochs": 20, "early_stopping": False, "schedule": "constant",
            "warmup": 0.0, "threads": 1, "importance": False, "seed": 3}  # fmt: skip
    run = platform.train(client, version["id"], task="regression", target="length", config=wild)
    page.goto(f"/runs/{run['id']}/")
    said = page.locator("#run-doctor li", has_text="diverge")
    said.get_by_role("button", name=re.compile("Relaunch with")).wait_for(timeout=ENDED)  # without a reload
    page.locator("#run-state[data-state=succeeded]").wait_for(timeout=ENDED)
    holds_on_a_phone(page, "doctor")
    keeps_its_dialog(page)
    button = said.get_by_role("button", name="Relaunch with learning_rate 0.33")
    button.click()
    page.wait_for_url(lambda address: RUN.search(address) is not None and run["id"] not in address)
    page.locator("#run-state[data-state=succeeded]").wait_for(timeout=ENDED)
    again = client.get(f"/runs/{page.url.rstrip('/').rpartition('/')[2]}").json()
    assert again["cloned_from"] == run["id"] and again["config"] == {**again["config"], **wild, "learning_rate": 0.33}
    assert complaints == []


def test_fine_tunings_are_searched_promoted_and_compared(
    page: Any, platform: Any, client: Any, complaints: list[str]
) -> None:
    version = platform.upload(client, "petals to tune", petals().encode())
    quick = {"architecture": "mlp", "epochs": 5, "threads": 1, "importance": False}
    run = platform.train(client, version["id"], task="classification", target="kind", config=quick)
    base = platform.finished(client, run["id"])["output_version"]
    page.goto(f"/model-versions/{base}/finetune")
    page.get_by_label("Mode", exact=True).select_option("lora")
    page.get_by_text("its adapter").first.wait_for()
    page.get_by_label("Rank", exact=True).fill("0")
    press_for_long(page, page.get_by_role("button", name="Queue the run"))
    page.get_by_text("rank must be a whole number from 1").wait_for()
    page.get_by_label("Rank", exact=True).fill("")
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_role("link", name="Search these settings").click()

    page.get_by_role("heading", name="New sweep").wait_for()
    assert page.get_by_label("Mode", exact=True).input_value() == "lora"
    assert page.get_by_label("Epochs", exact=True).input_value() == "2"
    assert page.get_by_label("Setting 2: name").input_value() == "finetune.rank"
    page.get_by_label("Setting 2: from").fill("0")
    page.get_by_label("Trials", exact=True).fill("3")
    page.get_by_role("button", name="Start the sweep").click()
    page.locator(".search-rows .errors", has_text="begins above 0").wait_for()
    page.get_by_label("Setting 2: from").fill("1")
    holds_on_a_phone(page, "sweep-form")
    page.get_by_role("button", name="Start the sweep").click()
    page.wait_for_url(re.compile(r"/sweeps/[0-9a-f-]{36}/$"))
    page.locator("#sweep-state[data-state=finished]").wait_for(timeout=ENDED)  # without a reload
    assert page.locator("#sweep-state table tbody tr").count() == 3
    page.reload()
    page.locator("figure", has_text="Settings and result").wait_for()
    holds_on_a_phone(page, "sweep")
    page.get_by_role("button", name="Make it the head of main").click()
    page.get_by_text(re.compile("“main” of petals to tune is now v[234], the best of this sweep")).wait_for()

    page.goto(f"/model-versions/{base}/")
    ticks = page.get_by_role("checkbox", name=re.compile("Compare petals to tune"))
    assert ticks.count() == 3
    ticks.nth(0).check()
    ticks.nth(1).check()
    holds_on_a_phone(page, "base")
    page.get_by_role("button", name="Compare the ticked").click()
    page.get_by_role("heading", name="3 versions beside each other").wait_for()
    page.get_by_role("rowheader", name="finetune.rank").or_(
        page.get_by_role("rowheader", name="learning_rate")
    ).first.wait_for()
    holds_on_a_phone(page, "beside")
    assert complaints == []


def test_images_come_with_a_report_by_file_and_are_shown_by_class(
    page: Any, tmp_path: Path, complaints: list[str]
) -> None:
    files = {f"pets/{kind}/{number}.png": picture(10 * place + number, (40, 30))
             for place, kind in enumerate(("cat", "dog")) for number in range(6)}  # fmt: skip
    archive = tmp_path / "pets.zip"
    archive.write_bytes(zipped({**files, "pets/dog/broken.png": b"no picture at all"}))
    page.goto("/datasets/new")
    page.get_by_label("A table, or an archive of images").set_input_files(archive)
    page.get_by_label("Name").fill("pets in the browser")
    page.get_by_role("button", name="Upload", exact=True).click()
    page.wait_for_url(re.compile(r"/datasets/[0-9a-f-]{36}/\?version=1"))
    page.get_by_text("12 rows").first.wait_for(timeout=ENDED)
    page.get_by_role("link", name=re.compile("Problems")).click()
    report = page.get_by_role("row", name=re.compile("broken.png"))
    assert "error" in report.inner_text() or "warning" in report.inner_text()
    holds_on_a_phone(page, "report")
    page.get_by_role("link", name=re.compile("Images")).click()
    shown = page.locator(".pictures img")
    shown.first.wait_for()
    assert shown.count() == 12
    for one in shown.all():
        one.scroll_into_view_if_needed()  # small ones are fetched when they come near
        assert one.evaluate("async image => { await image.decode(); return image.naturalWidth; }") > 0
    page.locator("#class").select_option("dog")
    shown.nth(6).wait_for(state="detached")
    assert shown.count() == 6
    assert page.locator(".pictures .tag").all_inner_texts() == ["dog"] * 6
    holds_on_a_phone(page, "images")
    assert complaints == []


def test_what_a_language_model_writes_is_shown_while_it_learns(
    page: Any, platform: Any, client: Any, complaints: list[str]
) -> None:
    version = ingested(platform, client, "fruits in the browser", lines("texts"))
    small = {"epochs": 30, "threads": 1, "batch_size": 4, "early_stopping": False, "text_length": 32, "learning_rate": 0.005,
             "params": {"text_width": 32, "text_layers": 1, "text_heads": 2, "dropout": 0.0}}  # fmt: skip
    run = platform.train(client, version["id"], task="language-model", target="text", config=small)
    page.goto(f"/runs/{run['id']}/")
    page.get_by_role("heading", name="What it writes").wait_for(timeout=ENDED)  # without a reload
    page.locator("#run-state[data-state=succeeded]").wait_for(timeout=ENDED)
    samples = page.get_by_label("Samples, the newest first").get_by_role("listitem")
    samples.filter(has_text="The finished model").wait_for()
    assert samples.count() > 1 and "the" in samples.first.inner_text()
    holds_on_a_phone(page, "writings")
    assert complaints == [], json.dumps(complaints)
