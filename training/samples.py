"""Sample datasets from scikit-learn's bundled data, and one run, so that a fresh start shows something live."""

import csv
import io
import time
import zipfile
from collections.abc import Iterator

from datasets import services as datasets
from datasets.models import Dataset, DatasetVersion
from dlplatform.accounts.models import Organization, User

from . import services
from .models import Run

SAMPLES = {
    "breast cancer": ("load_breast_cancer", "diagnosis", "classification",
                      "Wisconsin diagnostic breast cancer: 569 tumours, 30 measurements of cell nuclei."),
    "digits": ("load_digits", "digit", "classification", "1,797 handwritten digits as 8 × 8 pixels from 0 to 16."),
    "wine": ("load_wine", "cultivar", "classification", "Chemical analysis of 178 Italian wines from three cultivars."),
    "diabetes": ("load_diabetes", "progression", "regression",
                 "442 patients: ten measurements, and the progression of the disease a year later."),
}  # fmt: skip
IMAGES = "digits images"
IMAGES_DESCRIPTION = "The digits once more, as 1,797 pictures of 8 × 8 pixels in ten class folders."
LIVE_SAMPLE = "digits"
WAIT_SECONDS = 120.0


def load_samples(actor: User, organization: Organization) -> list[DatasetVersion]:
    """Create the sample datasets that are missing; the versions that were created, still to be ingested."""
    created = []
    for name, (loader, target, _, description) in SAMPLES.items():
        if not _exists(organization, name):
            content, label = sample_csv(loader, target), ("text/csv", "csv")
            created.append(_create(actor, organization, name, description, content, *label))
    if not _exists(organization, IMAGES):
        content, label = sample_images(), ("application/zip", "zip")
        created.append(_create(actor, organization, IMAGES, IMAGES_DESCRIPTION, content, *label))
    return created


def _exists(organization: Organization, name: str) -> bool:
    return Dataset.objects.filter(organization=organization, name=name).exists()


def _create(
    actor: User,
    organization: Organization,
    name: str,
    description: str,
    content: Iterator[bytes],
    kind: str,
    ending: str,
) -> DatasetVersion:
    dataset = datasets.create_dataset(actor=actor, organization=organization, name=name, description=description)
    stored = datasets.object_store(organization.pk).put_stream(content)
    filename = f"{name}.{ending}"
    return datasets.create_version(actor=actor, dataset=dataset, stored=stored, filename=filename, content_type=kind)


def sample_images() -> Iterator[bytes]:
    """scikit-learn's digits as a zip of PNG files, one folder for each digit; 0 to 16 becomes 0 to 255."""
    import sklearn.datasets
    from PIL import Image

    bunch = sklearn.datasets.load_digits()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for index, (pixels, digit) in enumerate(zip(bunch.images, bunch.target.tolist(), strict=True)):
            picture = io.BytesIO()
            Image.fromarray((pixels * 255 / 16).astype("uint8")).save(picture, "PNG")
            archive.writestr(f"{digit}/{index:04d}.png", picture.getvalue())
    yield out.getvalue()


def sample_csv(loader: str, target: str) -> Iterator[bytes]:
    """One of scikit-learn's datasets as CSV, the target last; class numbers become their names."""
    import sklearn.datasets

    options = {"scaled": False} if loader == "load_diabetes" else {}
    bunch = getattr(sklearn.datasets, loader)(**options)
    names = getattr(bunch, "target_names", None) if target != "progression" else None
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*bunch.feature_names, target])
    for row, label in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True):
        writer.writerow([*row, label if names is None else names[label]])
    yield text.getvalue().encode()


def launch_sample_run(actor: User, organization: Organization) -> Run | None:
    """Train on one sample once its ingestion is done; None when it does not become ready."""
    deadline = time.monotonic() + WAIT_SECONDS
    name, (_, target, task, _) = LIVE_SAMPLE, SAMPLES[LIVE_SAMPLE]
    while time.monotonic() < deadline:
        version = DatasetVersion.objects.filter(dataset__organization=organization, dataset__name=name).first()
        if version and version.state == DatasetVersion.State.READY:
            return services.create_run(actor=actor, dataset_version=version, task=task, target=target)
        if version is None or version.ended:
            return None
        time.sleep(0.3)
    return None
