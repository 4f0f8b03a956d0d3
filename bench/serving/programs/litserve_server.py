"""LitServe with base64 in JSON (it reads JSON or forms) and its batching."""

from __future__ import annotations

from typing import Any

import litserve as ls
import numpy as np
from session import MAX_BATCH, PORT, one_of_base64, open_session, run


class Model(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.session = open_session()

    def decode_request(self, request: dict[str, str]) -> Any:
        return one_of_base64(request["data"])

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return run(self.session, x)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"scores": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Model(max_batch_size=MAX_BATCH, batch_timeout=0.01), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
