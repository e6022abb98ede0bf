"""What `benchmarks.serve` compares with: a server of its own each, with an MLP of the same size written by hand.

python -m benchmarks.serve_peers ceiling|fastapi|litserve PORT
"""

import sys
from typing import Any

import orjson
import uvicorn

FEATURES = ("a", "b", "c", "d")
WIDTH = 64
CONSTANT = orjson.dumps(
    {"predictions": [{"label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}], "version": "0" * 36}
)


def network() -> Any:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    return nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)).eval()


def answer(model: Any, rows: list[list[float]]) -> list[dict[str, Any]]:
    """Class and probabilities of each row."""
    import torch

    with torch.inference_mode():
        shares = model(torch.tensor(rows)).softmax(1).tolist()
    return [{"label": ("no", "yes")[yes > no], "probabilities": {"no": no, "yes": yes}} for no, yes in shares]


async def constant(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI application that reads the body and answers the same, always: the ceiling."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": CONSTANT})


def run_fastapi(port: int) -> None:
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Row(BaseModel):
        a: float
        b: float
        c: float
        d: float

    class Asked(BaseModel):
        instances: list[Row]

    model, application = network(), FastAPI()

    @application.post("/predict")
    async def predict(asked: Asked) -> dict[str, Any]:
        return {"predictions": answer(model, [[row.a, row.b, row.c, row.d] for row in asked.instances])}

    uvicorn.run(application, port=port, log_level="error", access_log=False)


def run_litserve(port: int) -> None:
    import litserve

    from benchmarks.serve_litserve import Api

    server = litserve.LitServer(Api(max_batch_size=64, batch_timeout=0.002), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    kind, at = sys.argv[1], int(sys.argv[2])
    if kind == "ceiling":
        uvicorn.run(constant, port=at, log_level="error", access_log=False)
    elif kind == "fastapi":
        run_fastapi(at)
    else:
        run_litserve(at)
