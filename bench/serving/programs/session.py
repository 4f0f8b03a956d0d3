"""The model as every Python server under measurement opens it: one thread, no spinning.

What to serve comes in the environment: MODEL (the file), INPUT, OUTPUT, DTYPE, SHAPE (of one input), MAX_BATCH, PORT.
"""

from __future__ import annotations

import base64
import os
from typing import Any

import numpy as np
import onnxruntime

INPUT, OUTPUT = os.environ["INPUT"], os.environ["OUTPUT"]
DTYPE = np.dtype(os.environ["DTYPE"])
SHAPE = tuple(int(size) for size in os.environ["SHAPE"].split(","))
MAX_BATCH = int(os.environ["MAX_BATCH"])
PORT = int(os.environ["PORT"])


def open_session() -> Any:
    """An onnxruntime session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


def run(session: Any, batch: Any) -> Any:
    """The model's numbers for a batch of inputs."""
    return session.run([OUTPUT], {INPUT: batch})[0]


def one(data: bytes) -> Any:
    """One input out of its bytes."""
    return np.frombuffer(data, DTYPE).reshape(SHAPE)


def one_of_base64(text: str) -> Any:
    """One input out of base64."""
    return one(base64.b64decode(text))
