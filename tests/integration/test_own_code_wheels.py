"""Code of users' own with the packages that it needs: wheels beside it, imported in the sandbox and nowhere else."""

import io
import sys
import zipfile

import pytest
from django.core.exceptions import ValidationError

from registry.serving.cache import loaded
from tests.fixtures import own_code
from tests.integration.coding import ended, log_of
from training.models import Run

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces"),
]
NAME = "wheels/our_widths-1.2-py3-none-any.whl"
NEEDS = "our-widths>=1.1\ntorch>=2"


def wheel() -> bytes:
    """A package that opens a file of its own, which cannot be imported out of a zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "our_widths/__init__.py", "from pathlib import Path\nWIDTH = int((Path(__file__).parent / 'n').read_text())"
        )
        archive.writestr("our_widths/n", "7")
        archive.writestr("our_widths-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: our-widths\nVersion: 1.2\n")
    return out.getvalue()


def test_an_architecture_imports_its_wheel_where_it_trains_and_where_it_answers(queue_code):
    source = own_code.ARCHITECTURE.replace("import torch\n", "import torch\nfrom our_widths import WIDTH\n", 1)
    source = source.replace("width=16", "width=WIDTH")
    run = ended(queue_code({"model.py": source, NAME: wheel(), "requirements.txt": NEEDS}, epochs=3))
    assert run.state == "succeeded", (run.error, log_of(run))
    assert f"code/{NAME}" in run.output_version.tree
    predictor = loaded(run.output_version)
    try:
        assert len(predictor.predict([{"length": 5.0, "width": 3.0, "colour": "red"}])) == 1
    finally:
        predictor.close()
    assert "our_widths" not in sys.modules and not any("wheel-" in path for path in sys.path)


def test_a_script_imports_its_wheel_and_a_damaged_one_is_named(queue_code):
    source = f"from our_widths import WIDTH\nprint('width', WIDTH)\n{own_code.SCRIPT}"
    run = ended(queue_code({"main.py": source, NAME: wheel(), "requirements.txt": NEEDS}, {"steps": 6}))
    assert run.state == "succeeded" and "width 7" in log_of(run), (run.error, log_of(run))
    spoilt = bytearray(wheel())
    spoilt[40:80] = bytes(40)
    for content in (b"PK\3\4 no wheel", bytes(spoilt)):
        broken = ended(queue_code({"main.py": source, NAME: content}))
        assert (broken.state, broken.error["code"]) == ("failed", "code_error") and NAME in broken.error["sentence"]


@pytest.mark.parametrize(
    ("name", "needs", "told"),
    [
        (NAME, "our-widths>=2", "1.2 is there"),
        ("wheels/widths.whl", "", "named as a wheel"),
        ("wheels/our_widths-1.2-cp27-cp27m-win32.whl", "", "other machines"),
        ("other/our_widths-1.2-py3-none-any.whl", "our-widths", "bring its wheel in wheels/"),
    ],
)
def test_wheels_that_do_not_fit_are_named_before_queueing(queue_code, name, needs, told):
    with pytest.raises(ValidationError) as refused:
        queue_code({"main.py": "x = 1", name: wheel(), "requirements.txt": needs})
    assert told in str(refused.value.message_dict["code"]) and Run.objects.count() == 0
