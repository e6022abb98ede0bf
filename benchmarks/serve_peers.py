"""What `benchmarks.serve` compares with: a server of its own each, with an MLP of the same size written by hand, or with the
network in the folder BENCHMARK_PACKAGE for images (BENCHMARK_CASE=cnn). BENCHMARK_PROCESSES answer.

python -m benchmarks.serve_peers ceiling|bare|fastapi|litserve|mlflow PORT
"""

import base64
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import uvicorn

FEATURES = ("a", "b", "c", "d")
WIDTH = 64
CONSTANT = orjson.dumps(
    {"predictions": [{"label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}], "version": "0" * 36}
)
PROCESSES = int(os.environ.get("BENCHMARK_PROCESSES", "1"))
CNN = os.environ.get("BENCHMARK_CASE") == "cnn"


def network() -> Any:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    if CNN:
        from dlplatform.engine import package

        return package.load(Path(os.environ["BENCHMARK_PACKAGE"])).network.eval()
    return nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)).eval()


def read(row: Any) -> Any:
    """A row as the network takes it: numbers, or the pixels of an image (1, side, side)."""
    import numpy as np
    from PIL import Image

    if not CNN:
        return [row[name] for name in FEATURES]
    with Image.open(io.BytesIO(base64.b64decode(row["image"]))) as image:
        return np.asarray(image.convert("L"), np.uint8)[None]


def answer(model: Any, rows: list[Any]) -> list[dict[str, Any]]:
    """Class and probabilities of each row."""
    import numpy as np
    import torch

    with torch.inference_mode():
        if CNN:
            from dlplatform.engine.network import Batch

            pixels = torch.from_numpy(np.stack(rows))[None, :, None]
            nothing = torch.empty(1, len(rows), 0)
            shares = model(Batch(nothing, nothing, nothing, None, pixels))[0, 0].softmax(-1).tolist()
        else:
            shares = model(torch.tensor(rows)).softmax(1).tolist()
    names = [str(place) for place in range(len(shares[0]))]
    return [
        {"label": names[row.index(max(row))], "probabilities": dict(zip(names, row, strict=True))} for row in shares
    ]


def on_asgi(answered: Callable[[bytes], bytes]) -> Any:
    """An ASGI application that answers each body with another, and knows nothing else."""

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": answered(body)})

    return application


def ceiling() -> Any:
    """The application that answers the same, always."""
    return on_asgi(lambda _: CONSTANT)


def bare() -> Any:
    """The application that runs the network on what it is sent, each request by itself, and looks at nothing."""
    model = network()
    return on_asgi(
        lambda body: orjson.dumps(
            {"predictions": answer(model, [read(row) for row in orjson.loads(body)["instances"]])}
        )
    )


def fastapi() -> Any:
    """The application."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Numbers(BaseModel):
        a: float
        b: float
        c: float
        d: float

    class Picture(BaseModel):
        image: str

    class AskedNumbers(BaseModel):
        instances: list[Numbers]

    class AskedPictures(BaseModel):
        instances: list[Picture]

    model, application = network(), FastAPI()
    Asked: Any = AskedPictures if CNN else AskedNumbers

    @application.post("/predict")
    async def predict(asked: Asked) -> dict[str, Any]:
        return {"predictions": answer(model, [read(row.model_dump()) for row in asked.instances])}

    return application


def run_by_uvicorn(name: str, port: int) -> None:
    application = f"benchmarks.serve_peers:{name}"
    uvicorn.run(application, factory=True, port=port, log_level="error", access_log=False, workers=PROCESSES)


def run_litserve(port: int) -> None:
    import litserve

    from benchmarks.serve_litserve import Api

    server = litserve.LitServer(
        Api(max_batch_size=64, batch_timeout=0.002), accelerator="cpu", workers_per_device=PROCESSES
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


def run_mlflow(port: int) -> None:
    """By its own command, in this environment."""
    from benchmarks.serve_mlflow import save

    folder = Path(os.environ["BENCHMARK_PACKAGE"]).parent / f"mlflow {port}"
    save(folder)
    command = ["-m", "mlflow", "models", "serve", "--model-uri", str(folder), "--env-manager", "local"]
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it looks for uvicorn
    os.execv(sys.executable, [sys.executable, *command, "--port", str(port)])


if __name__ == "__main__":
    kind, at = sys.argv[1], int(sys.argv[2])
    if kind in ("ceiling", "bare", "fastapi"):
        run_by_uvicorn(kind, at)
    else:
        {"litserve": run_litserve, "mlflow": run_mlflow}[kind](at)
