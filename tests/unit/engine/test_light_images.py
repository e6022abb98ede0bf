"""Images that are quick to decode for certain: the event loop of the inference server decodes these and no others."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlplatform.engine.images import is_light
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from registry.serving import cache
from tests.unit.engine.test_modalities import QUICK, image_job, last_events, png, squares


def saved(mode: str, size: tuple[int, int], form: str, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **more)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def two_headed() -> bytes:
    """A PNG whose first head tells of 8×8 pixels and whose second of 8,000×8,000."""
    first, rest = png(np.zeros((8, 8), np.uint8))[:33], png(np.zeros((8, 8), np.uint8))[33:]
    return first + chunk(b"IHDR", struct.pack(">IIBBBBB", 8000, 8000, 8, 0, 0, 0, 0)) + rest


@pytest.mark.parametrize(
    "content", [png(np.zeros((16, 16), np.uint8)), saved("RGB", (32, 8), "JPEG"), saved("RGBA", (1, 256), "PNG")]
)
def test_pngs_and_jpegs_of_few_pixels_are_light(content: bytes) -> None:
    assert is_light(content, 256)
    assert not is_light(content, 255)


@pytest.mark.parametrize(
    "content",
    [
        saved("L", (8, 8), "GIF"), saved("L", (8, 8), "TIFF"), saved("L", (8, 8), "WEBP"), saved("L", (8, 8), "BMP"),
        saved("L", (4000, 4000), "PNG"), b"", b"no image", png(np.zeros((8, 8), np.uint8))[:20], two_headed(),
        saved("L", (8, 8), "PNG") + bytes(100_000),
    ],
    ids=["gif", "tiff", "webp", "bmp", "large", "empty", "text", "torn", "two heads", "long"],
)  # fmt: skip
def test_anything_else_is_not(content: bytes) -> None:
    assert not is_light(content, 256)


@pytest.fixture
def looking(job: Callable[..., Path]) -> Predictor:
    made = image_job(job, config=QUICK)
    assert run_job(made) == 0, last_events(made)
    return Predictor(made / "output")


def test_light_rows_are_answered_as_they_are_otherwise(looking: Predictor) -> None:
    rows = [{"image": base64.b64encode(content).decode()} for content in squares(6)[0]]
    rows.append({"image": f"data:image/png;base64,{rows[0]['image']}", "y": "left"})
    light = looking.light(rows)
    assert light is not None
    assert all(isinstance(one["image"], bytes) for one in light)
    assert isinstance(rows[0]["image"], str)
    assert looking.predict(light) == looking.predict(rows)


@pytest.mark.parametrize(
    "bad", [base64.b64encode(png(np.zeros((17, 16), np.uint8))).decode(), "not base64!", "aGVsbG8=", 5, ["a"], {"a": 1}]
)
def test_one_row_of_which_nobody_knows_goes_another_way_with_all(looking: Predictor, bad: Any) -> None:
    good = {"image": base64.b64encode(squares(1)[0][0]).decode()}
    assert looking.light([good]) is not None
    assert looking.light([good, {"image": bad}]) is None


def test_a_row_without_an_image_is_left_as_it_is(looking: Predictor) -> None:
    assert looking.light([{"image": None}, {}, {"image": ""}]) == [{"image": None}, {}, {"image": ""}]


def test_the_pace_of_a_network_that_looks_is_measured_with_an_image_of_its_size(
    looking: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = looking.example({"image": None})
    with Image.open(io.BytesIO(example["image"])) as image:
        assert image.size == (16, 15)
    assert looking.light([example]) == [example]
    signature = {"inputs": [{"name": "image", "example": None}]}
    monkeypatch.setattr(cache, "QUICK_SECONDS", 10.0)
    assert cache.warm(looking, signature) > cache.QUICK_ROWS
    slow = looking.predict

    def slowed(rows: Any) -> Any:
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        return slow(rows)

    monkeypatch.setattr(cache, "QUICK_SECONDS", 0.002)
    monkeypatch.setattr(looking, "predict", slowed)
    assert cache.warm(looking, signature) == 0
