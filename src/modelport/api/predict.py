"""Predictions: any model that answers at once, by JSON or, for images, as an uploaded file."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from modelport.api.bodies import decode
from modelport.api.exchange import Exchange
from modelport.api.generate import cost_headers, new_call, served_headers
from modelport.api.platform import Platform
from modelport.api.problems import error_member
from modelport.calls import Caller, ModelKind, Operation
from modelport.errors import BadRequest, ModelNotFound, ModelportError, UnsupportedMedia
from modelport.inference.corridor import SCOPE
from modelport.inference.run import Run
from modelport.requests import ModelName, PredictRequest

MAX_UPLOADS = 16
_encode = msgspec.json.Encoder().encode


class ClassifyRequest(msgspec.Struct, kw_only=True):
    """An image as base64 or as a data URL."""

    image: Annotated[str, msgspec.Meta(min_length=1)]
    model: ModelName | None = None
    model_version: Annotated[str, msgspec.Meta(max_length=80)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    metadata: dict[str, Any] | None = None


async def predict(exchange: Exchange) -> None:
    """`POST /v1/predict`."""
    secret, caller = await authenticate(exchange)
    request, fields = await read_request(exchange)
    run, value = await _run(exchange, caller, secret, request=request, fields=fields)
    await _respond(exchange, run, {"predictions": value, "prediction_id": prediction_id(exchange)})


async def predict_each(exchange: Exchange) -> None:
    """`POST /v2/predict`: each input has a result of its own, a prediction or an error."""
    secret, caller = await authenticate(exchange)
    request, fields = await read_request(exchange)
    run, value = await _run(exchange, caller, secret, request=request, fields=fields, partial=True)
    failed = sum(isinstance(item, ModelportError) for item in value)
    counts = {"total": len(value), "succeeded": len(value) - failed, "failed": failed}
    results = [_result(index, item) for index, item in enumerate(value)]
    await _respond(exchange, run, {"results": results, "counts": counts, "prediction_id": prediction_id(exchange)})


async def read_request(exchange: Exchange) -> tuple[PredictRequest, dict[str, msgspec.Raw]]:
    """The request in a JSON body, its model named. Raises: BadRequest, ModelNotFound."""
    exchange.require_json()
    body = await exchange.body()
    request, fields = decode(body, PredictRequest, max_depth=exchange.platform.settings.server.max_json_depth)
    if request.model is msgspec.UNSET:
        request.model = default_model(exchange.platform, None)
    return request, fields


def _result(index: int, item: Any) -> dict[str, Any]:
    if isinstance(item, ModelportError):
        return {"index": index, "status": "failed", "error": error_member(item)}
    return {"index": index, "status": "succeeded", "prediction": item}


async def classify(exchange: Exchange) -> None:
    """`POST /v1/images/classify`: JSON, a multipart form, or the image itself as the body."""
    secret, caller = await authenticate(exchange)
    request = await _image_request(exchange)
    if request.model is msgspec.UNSET:
        request.model = default_model(exchange.platform, ModelKind.IMAGE)
    model, _ = exchange.platform.catalog.get(request.model)
    if model.kind is not ModelKind.IMAGE and model.settings.backend != "sandbox":
        raise BadRequest(f"The model {model.id!r} does not classify images.", param="model")
    run, value = await _run(exchange, caller, secret, request=request, fields={})
    await _respond(exchange, run, {"predictions": value[0]})


async def authenticate(exchange: Exchange) -> tuple[str, Caller]:
    """The key and whose it is. Raises: Unauthenticated, PermissionDenied."""
    secret = exchange.secret()
    admission = exchange.platform.admission
    return secret, await admission.authenticate(secret, address=exchange.address, scope=SCOPE)


async def _run(
    exchange: Exchange, caller: Caller, secret: str, *, request: PredictRequest, fields: Any, partial: bool = False
) -> tuple[Run, list[Any]]:
    run = await admit(exchange, caller, secret, request=request, fields=fields, partial=partial)
    return run, await collect(run)


async def admit(
    exchange: Exchange, caller: Caller, secret: str, *, request: PredictRequest, fields: Any, partial: bool = False
) -> Run:
    """The prediction's run, stopped when the client hangs up. Nothing may be awaited between this and its deltas."""
    call = new_call(exchange, caller, operation=Operation.PREDICT, request=request, fields=fields)
    call.partial = partial
    run = await exchange.platform.corridor.admit(call, secret)
    exchange.levels = run.reservation.levels
    exchange.guard(run.interrupt)
    return run


async def collect(run: Run) -> list[Any]:
    """One prediction for each input."""
    value: list[Any] = []
    async for delta in run.deltas():
        value = delta.value
    return value


async def _respond(exchange: Exchange, run: Run, body: dict[str, Any]) -> None:
    body |= facts(exchange, run)
    headers = [*served_headers(exchange, run), *cost_headers(exchange, run)]
    await exchange.respond(200, _encode(body), headers=headers)


def facts(exchange: Exchange, run: Run) -> dict[str, Any]:
    """What every answer tells beside its predictions."""
    served = run.plan.served
    return {
        "model": served.model,
        "model_version": served.version,
        "request_id": exchange.request_id,
        "latency_ms": round(exchange.elapsed_s() * 1000, 3),
    }


def prediction_id(exchange: Exchange) -> str:
    """The id of a request's predictions."""
    return f"pred_{exchange.request_id[4:]}"


def default_model(platform: Platform, kind: ModelKind | None) -> str:
    """The first configured model that predicts (of this kind), for requests that name none."""
    kinds = (kind,) if kind is not None else (ModelKind.IMAGE, ModelKind.TABULAR, ModelKind.CUSTOM)
    for model in platform.catalog.models.values():
        if model.kind in kinds:
            return model.id
    raise ModelNotFound("No model of this kind is configured; name one in 'model'.", param="model")


async def _image_request(exchange: Exchange) -> PredictRequest:
    declared = (exchange.header(b"content-type") or "application/json").lower()
    if declared.startswith("multipart/form-data"):
        return await _from_form(exchange)
    if declared.startswith("image/"):
        return PredictRequest(inputs=[await exchange.body()])
    if "json" not in declared:
        raise UnsupportedMedia("Send JSON with a base64 'image', a multipart form with a file 'image', or image/*.")
    body = await exchange.body()
    parsed, _ = decode(body, ClassifyRequest, max_depth=exchange.platform.settings.server.max_json_depth)
    return PredictRequest(
        inputs=[parsed.image],
        model=parsed.model or msgspec.UNSET,
        model_version=parsed.model_version,
        options={} if parsed.top_k is None else {"top_k": parsed.top_k},
        metadata=parsed.metadata,
    )


async def _from_form(exchange: Exchange) -> PredictRequest:
    body = await exchange.body()
    request = Request(exchange.scope, exchange.receive_once(body))
    try:
        async with request.form(max_files=MAX_UPLOADS, max_fields=MAX_UPLOADS) as form:
            upload = form.get("image") or form.get("file")
            if not isinstance(upload, UploadFile):
                raise BadRequest("The form has no file called 'image'.", param="image")
            model, version = form.get("model"), form.get("model_version")
            return PredictRequest(
                inputs=[await upload.read()],
                model=model if isinstance(model, str) and model else msgspec.UNSET,
                model_version=version if isinstance(version, str) and version else None,
                options=_top_k(form.get("top_k")),
            )
    except HTTPException as error:
        raise BadRequest(f"The multipart form can't be read: {error.detail}.") from None


def _top_k(text: object) -> dict[str, Any]:
    if text is None:
        return {}
    if not isinstance(text, str) or not text.isdigit():
        raise BadRequest("top_k is a whole number.", param="top_k")
    return {"top_k": int(text)}
