"""Packages and predictions: what is whole loads, what is not is refused with a sentence."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dlplatform.engine import package
from dlplatform.engine.description import read_description
from dlplatform.engine.errors import PackageError, PredictionInputError
from dlplatform.engine.predict import Predictor
from dlplatform.engine.schema import example_row

Edit = Callable[[Path], None]


@pytest.fixture
def copy(trained: dict[str, Path], tmp_path: Path) -> Path:
    """A package that may be damaged; without its manifest, as an upload would be."""
    shutil.copytree(trained["classification"] / "output", tmp_path / "package")
    (tmp_path / "package" / "manifest.json").unlink()
    return tmp_path / "package"


def edit_description(change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(directory: Path) -> None:
        description = json.loads((directory / "model.json").read_text())
        change(description)
        (directory / "model.json").write_text(json.dumps(description))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Edit:
    def edit(directory: Path) -> None:
        tensors = safetensors.torch.load_file(directory / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, directory / "model.safetensors")

    return edit


def header(content: bytes, length: int | None = None) -> Edit:
    def edit(directory: Path) -> None:
        size = len(content) if length is None else length
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", size) + content)

    return edit


def write(name: str, content: bytes) -> Edit:
    return lambda directory: (directory / name).write_bytes(content) and None


def link(directory: Path) -> None:
    (directory / "extra").symlink_to("/etc/passwd")


DAMAGE: dict[str, tuple[Edit, str]] = {
    "pickle beside": (write("weights.pkl", b"x"), "pickle"),
    "pickle inside": (write("model.safetensors", b"\x80\x04."), "pickle"),
    "zip inside": (write("model.safetensors", b"PK\x03\x04"), "zip"),
    "link": (link, "link"),
    "no weights": (lambda directory: (directory / "model.safetensors").unlink(), "no model.safetensors"),
    "no description": (lambda directory: (directory / "model.json").unlink(), "no readable model.json"),
    "no json": (write("model.json", b"{"), "not valid JSON"),
    "a list": (write("model.json", b"[]"), "not a JSON object"),
    "empty weights": (write("model.safetensors", b""), "not a whole"),
    "long header": (header(b"{}", 1 << 60), "not a whole"),
    "broken header": (header(b"{}x"), "damaged"),
    "header of a list": (header(b"[]"), "damaged"),
    "gap": (header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}12345678'), "damaged"),
    "unknown format": (edit_description(lambda d: d.update(format=99)), "format 99"),
    "unknown task": (edit_description(lambda d: d.update(task="telepathy")), "telepathy"),
    "no inputs": (edit_description(lambda d: d.pop("inputs")), "inputs"),
    "odd input": (edit_description(lambda d: d["inputs"][0].update(type="sound")), "unknown type"),
    "same name twice": (edit_description(lambda d: d["inputs"].append(d["inputs"][0])), "name of its own"),
    "other columns": (edit_description(lambda d: d["inputs"].pop()), "different columns"),
    "unknown architecture": (
        edit_description(lambda d: d["architecture"].update(architecture="x")),
        "unknown",
    ),
    "absurd width": (edit_description(lambda d: d["architecture"].update(width=10**9)), "width"),
    "absurd vocabulary": (
        edit_description(lambda d: d["architecture"]["inputs"].update(vocabularies=[10**12])),
        "vocabular",
    ),
    "fraction of a layer": (edit_description(lambda d: d["architecture"].update(layers=1.5)), "layers"),
    "true layers": (edit_description(lambda d: d["architecture"].update(layers=True)), "layers"),
    "odd dropout": (edit_description(lambda d: d["architecture"].update(dropout="much")), "dropout"),
    "unknown key": (edit_description(lambda d: d["architecture"].update(colour=1)), "does not describe"),
    "strings for numbers": (edit_description(lambda d: d["architecture"].update(groups="2")), "groups"),
    "other vocabulary": (
        edit_description(lambda d: d["preprocessing"][3]["vocabulary"].append("pink")),
        "does not fit",
    ),
    "other classes": (edit_description(lambda d: d["output"]["classes"].append("x")), "classes"),
    "same class twice": (edit_description(lambda d: d["output"].update(classes=["a", "a"])), "classes"),
    "other shape": (edit_weights(lambda t: t.update({"head.bias": torch.zeros(1, 1, 2)})), "head.bias"),
    "other dtype": (edit_weights(lambda t: t.update({"head.bias": t["head.bias"].double()})), "F64"),
    "missing tensor": (edit_weights(lambda t: t.pop("head.bias")), "missing"),
    "extra tensor": (edit_weights(lambda t: t.update({"more": torch.zeros(1)})), "not expected"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_before_loading(copy: Path, name: str) -> None:
    edit, said = DAMAGE[name]
    package.verify(copy)
    edit(copy)
    with pytest.raises(PackageError, match=said):
        package.verify(copy)


def test_a_header_whose_length_looks_like_a_pickle_is_read(copy: Path) -> None:
    content = (copy / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    padded = length + (0x80 - length) % 256
    header = content[8 : 8 + length].ljust(padded)
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", padded) + header + content[8 + length :])
    assert (copy / "model.safetensors").read_bytes()[0] == 0x80
    assert package.load(copy)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="not a directory"):
        package.verify(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["head.bias"].fill_(float("nan")), "undefined"),
        (lambda t: t["encoder.known"].fill_(10**6), "outside the vocabulary"),
    ],
)
def test_impossible_values_are_refused_on_loading(copy: Path, change: Any, said: str) -> None:
    edit_weights(change)(copy)
    with pytest.raises(PackageError, match=said):
        Predictor(copy)


def test_a_flipped_bit_is_found_by_the_manifest(trained: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(trained["classification"] / "output", tmp_path / "p")
    content = bytearray((tmp_path / "p" / "model.safetensors").read_bytes())
    content[-3] ^= 4
    (tmp_path / "p" / "model.safetensors").write_bytes(content)
    with pytest.raises(PackageError, match="SHA-256"):
        package.verify(tmp_path / "p")


def test_a_saved_package_loads_the_same(trained: dict[str, Path], tmp_path: Path) -> None:
    loaded = package.load(trained["regression"] / "output")
    package.save(tmp_path / "again", loaded.description, loaded.network.state_dict(), "card", {})
    original = (trained["regression"] / "output" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == original
    assert package.verify(tmp_path / "again") == loaded.description


@pytest.fixture(scope="module")
def classifier(trained: dict[str, Path]) -> Predictor:
    return Predictor(trained["classification"] / "output")


@pytest.fixture
def row(classifier: Predictor) -> dict[str, Any]:
    return example_row(classifier.description)


def test_a_class_comes_with_probabilities(classifier: Predictor, row: dict[str, Any]) -> None:
    (answer,) = classifier.predict([row])
    assert answer["label"] in ("high", "low")
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())


def test_a_number_comes_as_a_value(trained: dict[str, Path]) -> None:
    predictor = Predictor(trained["regression"] / "output")
    row = example_row(predictor.description)
    (answer,) = predictor.predict([row])
    assert isinstance(answer["value"], float)
    assert predictor.predict([]) == []


def test_a_batch_answers_each_row_as_alone(classifier: Predictor, row: dict[str, Any]) -> None:
    rows = [row, {**row, "colour": "blue", "number": -3.0}, {**row, "note": None}]
    together = classifier.predict(rows)
    for each, answer in zip(rows, together, strict=True):
        alone = classifier.predict([each])[0]
        assert alone["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("column", "value", "same_as"),
    [
        ("number", "1.5", 1.5),
        ("number", " ", None),
        ("flag", "Yes", True),
        ("flag", 0, False),
        ("integer", "7", 7),
        ("colour", "never seen", "nor this"),
        ("when", "2026-03-01", "2026-03-01T00:00:00+00:00"),
        ("when", datetime(2026, 3, 1), "2026-03-01T00:00:00Z"),
        ("when", "", None),
        ("number", float("nan"), None),
        ("note", True, "true"),
        ("note", 12, "12"),
    ],
)
def test_values_are_read_kindly(
    classifier: Predictor, row: dict[str, Any], column: str, value: Any, same_as: Any
) -> None:
    ours, plain = classifier.predict([{**row, column: value}, {**row, column: same_as}])
    assert ours["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-6)


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("number", "many", "bad_number"),
        ("number", [1], "wrong_type"),
        ("number", float("inf"), "bad_number"),
        ("number", 10**400, "bad_number"),
        ("flag", "perhaps", "bad_number"),
        ("when", "tomorrow", "bad_datetime"),
        ("when", 5, "wrong_type"),
        ("colour", {"a": 1}, "wrong_type"),
        ("weather", 1, "unknown_column"),
    ],
)
def test_wrong_values_name_row_and_column(
    classifier: Predictor, row: dict[str, Any], column: str, value: Any, code: str
) -> None:
    with pytest.raises(PredictionInputError) as caught:
        classifier.predict([row, {**row, column: value}])
    assert (caught.value.row, caught.value.column, caught.value.code) == (1, column, code)
    assert column in str(caught.value)


def test_a_row_must_be_an_object(classifier: Predictor) -> None:
    with pytest.raises(PredictionInputError, match="object"):
        classifier.predict([[1, 2]])  # type: ignore[list-item]


def test_huge_numbers_give_finite_answers(classifier: Predictor, row: dict[str, Any]) -> None:
    (answer,) = classifier.predict([{**row, "number": 1e300, "integer": -(10**300)}])
    assert all(0 <= p <= 1 for p in answer["probabilities"].values())


def test_a_column_may_be_left_out_only_if_it_had_holes(classifier: Predictor, row: dict[str, Any]) -> None:
    target = {**row, "y": "high"}
    del target["number"]
    assert classifier.predict([target])
    schema = {column["name"]: column["nullable"] for column in classifier.description["inputs"]}
    assert all(schema.values())


def test_a_complete_column_is_asked_for(job: Any) -> None:
    from dlplatform.engine.run import run_job

    columns = {"a": ("number", [float(n) for n in range(20)]), "y": ("number", [n * 2.0 for n in range(20)])}
    job_dir = job(columns, task="regression")
    assert run_job(job_dir) == 0
    predictor = Predictor(job_dir / "output")
    with pytest.raises(PredictionInputError, match="missing"):
        predictor.predict([{}])
    assert predictor.predict([{"a": None}])


def test_the_description_is_enough_for_a_form(trained: dict[str, Path]) -> None:
    description = read_description(trained["classification"] / "output" / "model.json")
    by_name = {column["name"]: column for column in description["inputs"]}
    assert by_name["colour"]["categories"][0] in ("red", "green", "blue")
    assert by_name["number"]["minimum"] < by_name["number"]["median"] < by_name["number"]["maximum"]
    assert by_name["when"]["minimum"].endswith("Z")
    assert isinstance(by_name["integer"]["example"], int)
    assert isinstance(by_name["flag"]["example"], bool)
    assert description["lineage"]["dataset"] == "made for a test"
    assert description["output"]["classes"] == ["high", "low"]


def test_an_enormous_description_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.json").write_text("{}")
    monkeypatch.setattr("dlplatform.engine.description.MAXIMUM_BYTES", 1)
    with pytest.raises(PackageError, match="larger"):
        read_description(tmp_path)
