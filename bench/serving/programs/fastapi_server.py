"""FastAPI with the model in a thread: what one writes first."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from session import PORT, one, open_session, run

app = FastAPI()
session = open_session()


@app.post("/predict")
async def predict(request: Request) -> Response:
    data = await request.body()
    scores = await run_in_threadpool(run, session, one(data)[None])
    return Response(scores[0].tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
