"""A run has the images of its rows in its directory."""

import pytest

from datasets import services
from dlplatform.objects.models import StoredObject
from tests.integration.images.conftest import FILES, digest
from training.models import Run
from training.orchestrator import Orchestrator
from training.run_form import initial_of
from training.services import cancel_run, create_run

pytestmark = pytest.mark.django_db(transaction=True)
KIND = {"task": "classification", "target": "label"}


@pytest.fixture
def queued(pets, trainer):
    def make(**more):
        return create_run(actor=trainer, dataset_version=pets, **KIND, **more)

    return make


def test_names_of_files_are_left_out_of_the_features_unless_they_are_asked_for(queued, pets):
    assert queued().features == ["image"]
    assert queued(features=["file", "image"]).features == ["file", "image"]
    assert initial_of(pets)["features"] == ["image"] and initial_of(pets)["target"] == "label"


def test_a_run_finds_every_image_in_its_directory(queued):
    orchestrator = Orchestrator(Run.claim(queued().pk))
    orchestrator._prepare()
    folder = orchestrator.directory / "data" / "images"
    for content in FILES.values():
        assert (folder / digest(content)[:2] / digest(content)).read_bytes() == content
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 12


def test_images_that_are_there_stay_and_damaged_ones_come_again(queued, monkeypatch):
    run = Run.claim(queued().pk)
    Orchestrator(run)._prepare()
    first, second, *_ = (digest(content) for content in FILES.values())
    again = Orchestrator(run)
    folder = again.directory / "data" / "images"
    (folder / first[:2] / first).unlink()
    (folder / second[:2] / second).write_bytes(b"half")
    fetched = []
    whole = services.ObjectStore.fetch_many
    monkeypatch.setattr(
        services.ObjectStore, "fetch_many", lambda self, files, beat: (fetched.extend(files), whole(self, files, beat))
    )
    again._prepare()
    assert set(fetched) == {first, second}
    assert digest((folder / second[:2] / second).read_bytes()) == second


def test_a_run_without_images_fetches_none(queued):
    orchestrator = Orchestrator(Run.claim(queued(features=["file"]).pk))
    orchestrator._prepare()
    assert not (orchestrator.directory / "data" / "images").exists()


def test_a_run_is_cancelled_while_its_images_are_fetched(queued, trainer):
    run = Run.claim(queued().pk)
    cancel_run(actor=trainer, run=run)
    orchestrator = Orchestrator(run)
    orchestrator._renewed = 0.0
    orchestrator.work()
    run.refresh_from_db()
    assert run.state == "cancelled"


def test_a_run_whose_images_are_lost_fails_with_a_sentence(queued, pets):
    StoredObject.objects.filter(sha256=digest(FILES["pets/cat/0.png"])).delete()
    run = Run.claim(queued().pk)
    Orchestrator(run).work()
    run.refresh_from_db()
    assert run.state == "failed" and run.error["code"] == "data_unavailable"
