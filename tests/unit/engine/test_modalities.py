"""Images, texts read in order, several targets and labels: from the job directory to the prediction."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.images import ImageError, decode
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.tokens import fit_tokenizer, read_tokenizer
from tests.unit.engine.conftest import read_spool

QUICK = {"epochs": 4, "threads": 1, "batch_size": 16, "params": {"image_width": 8, "text_width": 16, "text_heads": 2}}


def png(array: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def squares(rows: int, seed: int = 0) -> tuple[list[bytes], list[str]]:
    """Grey images that are bright on the left or on the right."""
    random = np.random.default_rng(seed)
    images, labels = [], []
    for row in range(rows):
        pixels = random.integers(0, 60, (12, 16)).astype(np.uint8)
        side = slice(0, 8) if row % 2 else slice(8, 16)
        pixels[:, side] += 150
        images.append(png(pixels))
        labels.append("left" if row % 2 else "right")
    return images, labels


def keep_images(job_dir: Path, images: list[bytes]) -> list[str]:
    """Put images where a job directory has them; returns the values of their column."""
    names = []
    for content in images:
        name = hashlib.sha256(content).hexdigest()
        path = job_dir / "data" / "images" / name[:2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        names.append(name)
    return names


def image_job(job: Callable[..., Path], rows: int = 80, name: str = "job", **overrides: Any) -> Path:
    images, labels = squares(rows)
    names = [hashlib.sha256(content).hexdigest() for content in images]
    made = job({"image": ("image", names), "y": ("category", labels)}, name=name, **{"config": QUICK, **overrides})
    keep_images(made, images)
    return made


def last_events(job_dir: Path) -> str:
    return str(read_spool(job_dir)[-3:])


@pytest.mark.parametrize("encoder", ["resnet", "convnext"])
def test_images_are_learnt_and_predicted_from_files(job: Callable[..., Path], encoder: str) -> None:
    made = image_job(job, config={**QUICK, "epochs": 8, "image_encoder": encoder})
    assert run_job(made) == 0, last_events(made)

    predictor = Predictor(made / "output")
    images, labels = squares(20, seed=1)
    answers = predictor.predict([{"image": base64.b64encode(content).decode()} for content in images])
    right = [answer["label"] == label for answer, label in zip(answers, labels, strict=True)]
    assert np.mean(right) >= 0.9
    shown = predictor.predict([{"image": f"data:image/png;base64,{base64.b64encode(images[0]).decode()}"}])
    assert shown[0]["probabilities"] == pytest.approx(answers[0]["probabilities"])


def test_a_prediction_without_a_usable_image_names_the_column(job: Callable[..., Path]) -> None:
    made = image_job(job, config={**QUICK, "epochs": 1})
    assert run_job(made) == 0
    predictor = Predictor(made / "output")
    for value, code in (
        (3, "wrong_type"),
        ("not base64!", "bad_image"),
        (base64.b64encode(b"GIF89a").decode(), "bad_image"),
    ):
        with pytest.raises(PredictionInputError) as caught:
            predictor.predict([{"image": value}])
        assert (caught.value.column, caught.value.code) == ("image", code)


def test_a_missing_image_file_is_bad_data(job: Callable[..., Path]) -> None:
    made = image_job(job)
    for path in sorted((made / "data" / "images").rglob("*"))[-3:]:
        if path.is_file():
            path.unlink()
    assert run_job(made) == 1
    assert read_spool(made, "failed")[0]["code"] == "bad_data"


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def held(kind: str, image: Image.Image) -> dict[str, Any]:
    """What Pillow is to write beside the pixels, for a camera that was held upright."""
    exif = image.getexif()
    exif[0x0112] = 6
    texts = PngInfo()
    if kind == "PNG, text":
        texts.add_itxt("XML:com.adobe.xmp", XMP)
        return {"pnginfo": texts}
    if kind == "PNG, raw profile":
        texts.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
        return {"pnginfo": texts}
    return {"xmp": XMP.encode()} if kind == "JPEG, text" else {"exif": exif}


@pytest.mark.parametrize(
    "kind", ["PNG", "PNG, text", "PNG, raw profile", "JPEG", "JPEG, text", "WEBP", "TIFF"]
)  # fmt: skip
def test_a_photo_turns_as_its_camera_was_held(kind: str) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.save(file, kind.partition(",")[0], **held(kind, image))
    upright = np.asarray(decode(file.getvalue()))
    assert upright.shape[:2] == (16, 8)
    assert upright[:8].mean() > 200 > 50 > upright[8:].mean()


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"0" * 50, png(np.zeros((9, 9), np.uint8))[:-30]]
)
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError):
        decode(content)


def lying(content: bytes) -> bytes:
    """The same image as a camera that was turned stores it: its pixels on their side, and EXIF that says so."""
    image = Image.open(io.BytesIO(content)).transpose(Image.Transpose.ROTATE_90)
    exif, file = image.getexif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def test_a_turned_image_trains_and_is_answered_as_the_upright_one(job: Callable[..., Path]) -> None:
    images, labels = squares(40)
    weights = []
    for name, files in (("upright", images), ("lying", [lying(content) for content in images])):
        names = [hashlib.sha256(content).hexdigest() for content in files]
        made = job({"image": ("image", names), "y": ("category", labels)}, name=name, config={**QUICK, "epochs": 2})
        keep_images(made, files)
        assert run_job(made) == 0, last_events(made)
        weights.append((made / "output" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]

    predictor = Predictor(made / "output")
    sent = [[{"image": base64.b64encode(turn(content)).decode()} for content in images] for turn in (bytes, lying)]
    assert predictor.predict(sent[0]) == predictor.predict(sent[1])


def texts(rows: int) -> dict[str, tuple[str, list[Any]]]:
    random = np.random.default_rng(0)
    words = [["good", "bad"][row % 2] for row in range(rows)]
    filler = random.choice(["the", "a", "some", "this", "film", "book"], (rows, 6))
    values = [" ".join([*filler[row][:3], words[row], *filler[row][3:]]) for row in range(rows)]
    values[0] = ""
    return {"review": ("text", values), "y": ("category", words)}


@pytest.mark.parametrize("tokenizer", ["bpe", "byte"])
def test_texts_are_read_in_order(job: Callable[..., Path], tokenizer: str) -> None:
    made = job(texts(160), config={**QUICK, "epochs": 12, "text_encoder": "transformer", "tokenizer": tokenizer})
    assert run_job(made) == 0, last_events(made)
    assert (made / "output" / "tokenizer.json").is_file()
    predictor = Predictor(made / "output")
    answers = predictor.predict([{"review": "the film some bad a a this"}, {"review": "a good book"}])
    assert [answer["label"] for answer in answers] == ["bad", "good"]
    assert read_spool(made, "finished")[0]["metrics"]["accuracy"] > 0.9


def test_a_table_with_a_photo_and_a_description_is_one_model(job: Callable[..., Path]) -> None:
    images, labels = squares(96)
    table = {
        "image": ("image", [hashlib.sha256(content).hexdigest() for content in images]),
        "price": ("number", [float(row % 7) if row % 5 else None for row in range(96)]),
        "about": ("text", [f"thing number {row}" if row % 3 else None for row in range(96)]),
        "y": ("category", labels),
    }
    made = job(table, config={**QUICK, "epochs": 8, "text_encoder": "transformer"})
    keep_images(made, images)
    assert run_job(made) == 0, last_events(made)
    predictor = Predictor(made / "output")
    answer = predictor.predict([{"image": images[1], "price": None, "about": None}])[0]
    assert answer["label"] == "left"
    assert {column["type"] for column in predictor.description["inputs"]} == {"image", "number", "text"}


def test_several_numbers_at_once(job: Callable[..., Path]) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=200)
    table = {"x": ("number", x.tolist()), "up": ("number", (3 * x + 100).tolist()), "down": ("number", (-x).tolist())}
    made = job(table, task="regression", target=["up", "down"], config={"epochs": 40, "threads": 1, "folds": 2})
    assert run_job(made) == 0, last_events(made)
    metrics = read_spool(made, "finished")[0]["metrics"]
    assert metrics["r2/up"] > 0.9 and metrics["r2/down"] > 0.9
    values = Predictor(made / "output").predict([{"x": 1.0}])[0]["values"]
    assert values["up"] == pytest.approx(103, abs=1.0)
    assert values["down"] == pytest.approx(-1, abs=0.4)


@pytest.mark.parametrize("form", ["columns", "lists"])
def test_labels_that_go_together(job: Callable[..., Path], form: str) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 2))
    red, big = x[:, 0] > 0, x[:, 1] > 0
    table: dict[str, tuple[str, list[Any]]] = {"a": ("number", x[:, 0].tolist()), "b": ("number", x[:, 1].tolist())}
    if form == "columns":
        table |= {"red": ("boolean", red.tolist()), "big": ("boolean", big.tolist())}
        target: Any = ["red", "big"]
    else:
        named = ["|".join([*["red"] * bool(r), *["big"] * bool(b), "any"]) for r, b in zip(red, big, strict=True)]
        table |= {"labels": ("text", named)}
        target = "labels"
    made = job(table, task="multilabel", target=target, config={"epochs": 30, "threads": 1, "folds": 2})
    assert run_job(made) == 0, last_events(made)
    assert read_spool(made, "finished")[0]["metrics"]["f1_micro"] > 0.9
    answer = Predictor(made / "output").predict([{"a": 2.0, "b": -2.0}])[0]
    assert "red" in answer["labels"] and "big" not in answer["labels"]
    assert set(answer["probabilities"]) == ({"red", "big"} if form == "columns" else {"red", "big", "any"})


def test_what_is_no_set_of_labels_is_named(job: Callable[..., Path]) -> None:
    table = {"x": ("number", [float(n) for n in range(20)]), "y": ("number", [float(n) for n in range(20)])}
    made = job(table, task="multilabel", config={})
    assert run_job(made) == 1
    failed = read_spool(made, "failed")[0]
    assert failed["code"] == "bad_data" and "boolean" in failed["next_step"]


def test_parts_of_a_batch_give_the_same_model(job: Callable[..., Path]) -> None:
    """Accumulation draws the same dropout and the same augmentation as the whole batch."""
    config = {**QUICK, "epochs": 2, "architecture": "mlp", "params": {**QUICK["params"], "dropout": 0.3, "width": 16}}
    losses = []
    for parts in (1, 4):
        made = image_job(job, name=f"parts-{parts}", config={**config, "accumulation": parts})
        assert run_job(made) == 0, last_events(made)
        losses.append(read_spool(made, "metric")[-1]["values"]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_tokenizer_gives_back_what_it_read() -> None:
    tokenizer = read_tokenizer(fit_tokenizer(["the cat sat", "the dog – ünïcode 🙂"] * 20, "bpe", 400).to_json())
    for text in ("the cat", "neue Wörter 🙂\n", ""):
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text
    assert all(code >= 2 for code in tokenizer.encode(["the cat"])[0])


def test_a_batch_size_is_found_and_kept(job: Callable[..., Path]) -> None:
    table = {"x": ("number", [float(n) for n in range(600)]), "y": ("category", ["a", "b"] * 300)}
    config = {"epochs": 3, "threads": 1, "folds": 1, "architecture": "mlp", "batch_size": "fit", "importance": False}
    made = job(table, config=config, stop_after_epoch=1)
    assert run_job(made) == 75
    found = read_spool(made, "started")[0]["config"]["batch_size"]
    assert 1 <= found <= 64
    spec = json.loads((made / "spec.json").read_text())
    del spec["stop_after_epoch"]
    (made / "spec.json").write_text(json.dumps(spec))
    assert run_job(made) == 0, last_events(made)
    assert read_spool(made, "started")[1]["config"]["batch_size"] == found
    assert any("batch size that fits" in event["message"] for event in read_spool(made, "log"))
