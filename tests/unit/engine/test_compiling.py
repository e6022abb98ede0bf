"""Networks compiled for this machine: the same answers, one compilation for many, and failures that leave nothing behind."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dlplatform.engine import compiled, compiling, forms, package
from dlplatform.engine.compiled import CompiledRunner
from dlplatform.engine.compiling import LOCK, Compiler, name_of
from dlplatform.engine.durable import to_json
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.likeness import answers_alike, sample
from dlplatform.engine.optimizing.exporting import Answering
from dlplatform.engine.optimizing.plan import Plan, parse_plan
from dlplatform.engine.optimizing.report import notes, report, threads
from dlplatform.engine.optimizing.verifying import BrokenPass, verified
from dlplatform.engine.optimizing.work import make_variant
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import TorchRunner
from dlplatform.engine.runtime import COMPILED, runtime_of
from tests.fixtures.inference import eventually
from tests.unit.engine.optimizing.conftest import WIDE, Trained, described, trained
from tests.unit.engine.optimizing.test_reports import a_report

PLAN = Plan(("torch-compile",))


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("perceptron") / "job", WIDE)


@pytest.fixture(scope="module")
def variant(perceptron: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that wants to be compiled, which nobody has done yet."""
    folder = tmp_path_factory.mktemp("variant") / "made"
    make_variant(perceptron.package, perceptron.loaded, PLAN, perceptron.rows, folder)
    return folder


def refused(compiler: Compiler, folder: Path) -> EngineError:
    with pytest.raises(EngineError) as told:
        compiler.predictor(folder)
    assert not [each for each in compiler.folder.iterdir() if each.suffix == ".so" or each.is_dir()]
    return told.value


# --- what is compiled --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(" " in torch.__file__, reason="torch does not quote what it tells the C++ compiler")
def test_a_compiled_network_answers_as_before_and_is_compiled_once(
    perceptron: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, folder = Compiler(tmp_path / "cache"), tmp_path / "made"
    with threads(1):
        predictor = make_variant(
            perceptron.package, perceptron.loaded, PLAN, perceptron.rows, folder, opened=compiler.predictor
        )
        assert isinstance(predictor.run, CompiledRunner)
        assert predictor.description["runtime"] == {"kind": "compiled", "weights": "float32"}
        assert {each.suffix for each in folder.iterdir()} == {".json", ".md", ".safetensors"}  # nothing of this machine
        rows, network = perceptron.rows.inputs, TorchRunner(perceptron.loaded.network)
        assert np.abs(predictor.run(rows) - network(rows)).max() < 1e-5

        monkeypatch.setattr(compiling.Compiler, "_compile", None)  # whoever comes later finds it
        told = report(perceptron.package, folder, perceptron.rows, 0.5, compiler=compiler)
        assert told["compile"]["seconds"] > told["load"]["variant"] and told["compile"]["bytes"] > 0
        assert told["agreement"] == 1.0 and any("Compiling took" in each for each in told["notes"])
        again = Compiler(tmp_path / "cache").predictor(folder)
        example = {column["name"]: column["example"] for column in again.description["inputs"]}
        assert again.predict([example])[0]["label"] == Predictor(folder).predict([example])[0]["label"]

    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert sorted(each.suffix for each in (tmp_path / "cache").iterdir()) == [".json", ".lock", ".so"]
    many = sample(perceptron.loaded.network, 5000)  # more than are computed at a time
    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(again.run, [many] * 8):
            np.testing.assert_allclose(answers, network(many), atol=1e-4)
    assert again.run(sample(perceptron.loaded.network, 0)).shape == (1, 0, network(many).shape[-1])
    _damaged_files_are_not_trusted(compiler, folder, monkeypatch)


def _damaged_files_are_not_trusted(compiler: Compiler, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no library, and one of another network, are removed and compiled anew."""
    made: list[Path] = []

    def compile_again(_self: Any, _package: Path, path: Path) -> None:
        made.append(path)
        raise EngineError("not_compiled", "Enough.")

    monkeypatch.setattr(compiling.Compiler, "_compile", compile_again)
    with threads(1):
        path = compiler._path(folder)
    monkeypatch.setattr(forms, "answers_as", lambda *_: False)
    with threads(1), pytest.raises(EngineError, match="Enough"):
        compiler.predictor(folder)
    path.write_bytes(b"no library")
    with threads(1), pytest.raises(EngineError, match="Enough"):
        compiler.predictor(folder)
    assert made == [path, path] and not path.exists()


def test_names_tell_apart_what_is_compiled_differently(variant: Path, perceptron: Trained, tmp_path: Path) -> None:
    assert name_of(variant, 1) == name_of(perceptron.package, 1) != name_of(variant, 2)
    network = package.load(variant).network
    with torch.no_grad():
        network.head.weight.add_(1e-6)
    package.save(tmp_path / "other", package.read_description(variant), network.state_dict(), "", {})
    assert name_of(tmp_path / "other", 1) != name_of(variant, 1)


def test_a_variant_that_was_not_compiled_is_no_result_of_the_pass(perceptron: Trained, variant: Path) -> None:
    def differs(_folder: Path) -> Predictor:
        raise EngineError("compiled_differs", "The compiled network does not answer as the network itself does.")

    before = TorchRunner(perceptron.loaded.network)
    with pytest.raises(EngineError, match="does not answer"):
        verified(perceptron.package, variant, PLAN, perceptron.rows, before, differs)
    with pytest.raises(BrokenPass, match="not kept as the pass"):
        verified(perceptron.package, variant, Plan(("torch-export",)), perceptron.rows, before)


def test_answers_are_compared_by_number_and_by_class(perceptron: Trained) -> None:
    network = TorchRunner(perceptron.loaded.network)
    rows = sample(perceptron.loaded.network, 33)
    assert np.isnan(rows.numbers).any() and rows.tokens.max(initial=0) >= 0
    assert answers_alike(network, network, rows)
    for wrong in (
        lambda rows: network(rows) + 2e-4, lambda rows: network(rows)[..., ::-1], lambda rows: network(rows)[:, :-1],
        lambda rows: network(rows) * np.nan,
    ):  # fmt: skip
        assert not answers_alike(wrong, network, rows)


def test_a_plain_perceptron_is_traced_with_its_layers_once(perceptron: Trained) -> None:
    network = perceptron.loaded.network
    names = set(Answering(network).state_dict())
    assert {"plain.0.weight", "network.encoder.center"} < names
    assert not any(name.startswith(("network.hidden", "network.head")) for name in names)
    assert "hidden.0.weight" in network.state_dict()  # which is as it was


# --- what a package may say --------------------------------------------------------------------------------


def test_a_package_only_says_that_it_is_compiled(variant: Path, tmp_path: Path) -> None:
    assert runtime_of({"runtime": {"kind": COMPILED}}).kind == COMPILED
    for more in ({"weights": "int8"}, {"sha256": "a" * 64}, {"precision": "float32"}, {"program": "x"}):
        with pytest.raises(PackageError):
            runtime_of({"runtime": {"kind": COMPILED, **more}})
    assert Predictor(variant).compiles and parse_plan({"passes": ["structured", "torch-compile"]}).keeping
    described(variant, lambda told: told["architecture"].update(architecture="code"))
    with pytest.raises(PackageError, match="can be compiled"):
        package.verify(variant)
    described(variant, lambda told: told["architecture"].update(architecture="mlp"))


def test_the_report_tells_what_compiling_took() -> None:
    assert (
        "Compiling took 21 s and gave 1,500,000 bytes"
        in notes(a_report(compile={"seconds": 21, "bytes": 1_500_000}))[0]
    )


# --- failures ----------------------------------------------------------------------------------------------


def test_without_a_compiler_it_says_what_to_install(
    variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    told = refused(Compiler(tmp_path / "cache"), variant)
    assert told.code == "no_compiler" and "apt-get install g++" in told.next_step


def test_a_child_that_takes_too_long_or_is_killed_leaves_nothing(variant: Path, tmp_path: Path) -> None:
    slow = refused(Compiler(tmp_path / "cache", seconds=0.0), variant)
    assert slow.code == "not_compiled" and "more than 0 s" in str(slow)

    def kill() -> None:
        child = eventually(children)[0]
        assert child.environ().keys().isdisjoint({"SECRET_KEY", "DATABASE_URL"})
        child.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    told = refused(Compiler(tmp_path / "cache"), variant)
    killer.join()
    assert "too little memory" in str(told)
    assert not children()


def children() -> list[psutil.Process]:
    """The processes that compile for this one."""
    found = []
    for each in psutil.Process().children():
        try:
            if "dlplatform.engine.compile_network" in each.cmdline():
                found.append(each)
        except psutil.Error:
            continue
    return found


def test_it_is_stopped_while_it_compiles_and_while_it_waits(variant: Path, tmp_path: Path) -> None:
    def after(compiler: Compiler, begun: Callable[[], Any]) -> EngineError:
        thread = threading.Thread(target=lambda: (eventually(begun), compiler.stop()))
        thread.start()
        told = refused(compiler, variant)
        thread.join()
        return told

    assert "stopped" in str(after(Compiler(tmp_path / "cache"), children))
    assert not list((tmp_path / "cache").glob("*.failed"))  # that is no reason for others
    with (tmp_path / "cache" / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = threading.Event()
        waiting = Compiler(tmp_path / "cache", waiting=asked.set)
        assert "stopped" in str(after(waiting, asked.is_set))


def test_who_waited_takes_the_reason_of_who_failed(variant: Path, tmp_path: Path) -> None:
    folder, asked = tmp_path / "cache", threading.Event()
    compiler = Compiler(folder, waiting=asked.set)
    folder.mkdir()
    with (folder / LOCK).open("ab") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = pool.submit(refused, compiler, variant)
        eventually(asked.is_set)
        reason = EngineError("not_compiled", "It did not fit.").payload()
        compiler._path(variant).with_suffix(".failed").write_bytes(to_json(reason))
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert str(waiting.result()) == "It did not fit."


def test_a_folder_that_cannot_be_used_or_is_somebody_elses_is_a_reason_too(variant: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineError, match="cannot be used"):
        Compiler(tmp_path / "file").predictor(variant)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(EngineError, match="somebody else"):
        Compiler(tmp_path / "link").predictor(variant)


def test_the_oldest_go_when_the_folder_is_full(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "used", "old"]):
        (tmp_path / f"{name}.so").write_bytes(b"x" * 100)
        (tmp_path / f"{name}.json").write_bytes(b"{}")
        os.utime(tmp_path / f"{name}.so", (1000 - age, 1000 - age))
    compiling._tidy(tmp_path, tmp_path / "new.so", 250)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new.json", "new.so", "used.json", "used.so"]
    compiling._tidy(tmp_path, tmp_path / "new.so", 0)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new.json", "new.so"]  # somebody is about to open it


def test_a_folder_that_torch_cannot_tell_the_compiler_of_is_named(variant: Path, tmp_path: Path) -> None:
    network = package.load(variant).network
    with pytest.raises(EngineError, match="a space in its name") as caught:
        Compiler(tmp_path / "two words").runner(variant, network)
    assert caught.value.code == "not_compiled"


def test_a_file_that_was_replaced_is_opened_as_it_is_now(tmp_path: Path) -> None:
    """The system remembers a library by the name that it was opened by."""
    path = tmp_path / "network.so"
    for number in (1, 2):
        source, made = tmp_path / f"{number}.cc", tmp_path / f"{number}.so"
        source.write_text(f'extern "C" int answer() {{ return {number}; }}')
        subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
        made.replace(path)
        assert compiled._loaded(path).answer() == number
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1.cc", "2.cc", "network.so"]
