"""Images in the form that tries a model."""

import base64
import re

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from datasets import deletion
from registry.serving import client as inference
from tests import factories
from tests.fixtures.pictures import picture
from tests.integration.images.conftest import FILES, digest

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def model(organization, pets):
    example = digest(FILES["pets/dog/1.png"])
    inputs = [
        {"name": "image", "type": "image", "nullable": False, "example": example},
        {"name": "age", "type": "number", "nullable": True, "example": 2.0},
    ]
    return factories.ModelVersionFactory(
        model__organization=organization, dataset_version=pets, signature={"inputs": inputs}, number=1
    )


@pytest.fixture
def asked(monkeypatch):
    """What the inference process was asked."""
    sent = []

    def predict(version, instances):
        sent.extend(instances)
        return [{"label": "cat", "probabilities": {"cat": 0.9, "dog": 0.1}}]

    monkeypatch.setattr(inference, "predict", predict)
    monkeypatch.setattr("registry.availability.require_files", lambda version: None)
    return sent


def test_the_form_sends_the_chosen_file(web, viewer, model, asked):
    chosen = SimpleUploadedFile("x.png", picture(3), "image/png")
    answer = web(viewer).post(reverse("version-try", args=[model.pk]), {"input-0": chosen, "input-1": "4"})
    assert "cat" in answer.content.decode()
    assert asked == [{"image": base64.b64encode(picture(3)).decode(), "age": 4}]
    assert base64.b64encode(picture(3)).decode() not in answer.content.decode(), "no megabytes in the command"


def test_without_a_file_the_image_of_the_training_data_is_sent_and_shown(web, viewer, model, asked):
    page = web(viewer).get(reverse("model-version", args=[model.pk])).content.decode()
    assert re.search(r'<form[^>]*enctype="multipart/form-data"', page)
    assert f"{digest(FILES['pets/dog/1.png'])}?thumbnail=1" in page and "BASE64_OF_AN_IMAGE_FILE" in page
    web(viewer).post(reverse("version-try", args=[model.pk]), {"input-1": ""})
    assert asked == [{"image": base64.b64encode(FILES["pets/dog/1.png"]).decode(), "age": None}]


def test_without_the_data_there_is_only_a_chooser(web, viewer, maintainer, model, pets, asked):
    deletion.delete_version(actor=maintainer, version=pets)
    page = web(viewer).get(reverse("model-version", args=[model.pk])).content.decode()
    assert "?thumbnail=1" not in page and 'type="file"' in page
    web(viewer).post(reverse("version-try", args=[model.pk]), {"input-1": ""})
    assert asked == [{"image": None, "age": None}]


@pytest.mark.parametrize("content", [b"", b"x" * (5 * 1024 * 1024 + 1)])
def test_an_empty_or_too_large_file_is_refused_beside_its_field(web, viewer, model, asked, content):
    chosen = SimpleUploadedFile("x.png", content, "image/png")
    answer = web(viewer).post(reverse("version-try", args=[model.pk]), {"input-0": chosen})
    assert answer.status_code == 200 and answer.context["try_form"].errors["input-0"] and asked == []
