"""MLServer's own way for a model of one's own, with its adaptive batching; images as base64, numbers as numbers."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from session import DTYPE, one, open_session, run


class Model(MLModel):
    async def load(self) -> bool:
        self.session = open_session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (sent,) = payload.inputs
        decoded = self.decode(sent, default_codec=NumpyCodec)
        batch = np.stack([one(data) for data in decoded]) if sent.datatype == "BYTES" else decoded.astype(DTYPE)
        output = NumpyCodec.encode_output("scores", run(self.session, batch))
        return InferenceResponse(model_name=self.name, outputs=[output])
