"""The network of `serve_peers` as LitServe takes it, which starts its workers by this module's name."""

from typing import Any

import litserve

from benchmarks.serve_peers import answer, network, read


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = network()

    def decode_request(self, request: dict[str, Any]) -> Any:
        (row,) = request["instances"]
        return read(row)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: list[Any]) -> list[dict[str, Any]]:
        return answer(self.model, x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return {"predictions": [output]}
