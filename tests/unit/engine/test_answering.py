"""What a model with code of its own answers through its pipe."""

import io
import json
import os
import subprocess
import sys

import orjson
import pytest

from dlplatform.engine.answering import answer
from dlplatform.engine.predict import Predictor
from tests.unit.engine.test_own_architecture import trained


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("answering")) / "output"


def test_rows_are_answered_refused_or_told_why_not(package):
    predictor = Predictor(package, sandboxed=True)
    good = answer(predictor, orjson.dumps({"instances": [{"x": 1.0, "c": "a"}]}))
    assert set(good["predictions"][0]["probabilities"]) == {"yes", "no"}
    refused = answer(predictor, orjson.dumps({"instances": [{"x": "high", "c": "a"}]}))["refused"]
    assert (refused["row"], refused["column"], refused["code"]) == (0, "x", "bad_number")
    predictor.network.model.forward = lambda inputs: 1 / 0
    assert "ZeroDivisionError" in answer(predictor, orjson.dumps({"instances": [{"x": 1.0, "c": "a"}]}))["error"]


def test_the_program_says_first_whether_it_is_ready_and_what_is_printed_does_not_mix(package):
    question = json.dumps({"instances": [{"x": 1.0, "c": "a"}]}).encode() + b"\n"
    done = subprocess.run(
        [sys.executable, "-m", "dlplatform.engine.answering", str(package)], input=question, capture_output=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    lines = [json.loads(line) for line in io.BytesIO(done.stdout)]
    assert lines[0] == {"ready": True} and len(lines[1]["predictions"]) == 1
    broken = subprocess.run(
        [sys.executable, "-m", "dlplatform.engine.answering", str(package / "code")], input=b"", capture_output=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert broken.returncode == 1 and "no readable model.json" in json.loads(broken.stdout)["error"]
