"""What the protocol tells of the server and its models: liveness, readiness, names and shapes of tensors.

Source: Open Inference Protocol V2, "Health", "Server Metadata" and "Model Metadata".
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from modelport import __version__
from modelport.api.auth import PlatformDep, require
from modelport.api.health import health_body
from modelport.api.oip.infer import named
from modelport.api.responses import errors
from modelport.backends.protocol import Status
from modelport.calls import Caller
from modelport.catalog.model import Model, Version
from modelport.catalog.service import version_health
from modelport.errors import ModelNotFound

router = APIRouter(tags=["Open Inference Protocol"])
CallerDep = Annotated[Caller, Depends(require("inference"))]
_NOT_READY = 400
_YES_OR_NO: dict[int | str, dict[str, Any]] = {200: {"description": "Yes."}, _NOT_READY: {"description": "No."}}


class ServerBody(BaseModel):
    """The server, and which extensions of the protocol it has."""

    name: str
    version: str
    extensions: list[str]


class TensorBody(BaseModel):
    """A tensor of a model; -1 in its shape is any size."""

    name: str
    datatype: str
    shape: list[int]


class MetadataBody(BaseModel):
    """A model, its versions, and the tensors that it takes and gives."""

    name: str
    versions: list[str]
    platform: str = Field(description="What runs it.")
    inputs: list[TensorBody]
    outputs: list[TensorBody]


@router.get("/v2", operation_id="oip_server", summary="The server", description="Name, version and extensions.")
async def server() -> ServerBody:
    return ServerBody(name="modelport", version=__version__, extensions=["binary_tensor_data"])


@router.get(
    "/v2/health/live",
    operation_id="oip_live",
    summary="Is it alive",
    description="200 while it runs; the body is empty.",
    response_class=Response,
)
async def live() -> Response:
    return Response()


@router.get(
    "/v2/health/ready",
    operation_id="oip_ready",
    summary="Can it take calls",
    description="200, or 400 while it drains, or while the database or the shared state is away; the body is empty.",
    response_class=Response,
    responses=_YES_OR_NO,
)
async def ready(platform: PlatformDep) -> Response:
    body = await health_body(platform)
    away = body.status == "draining" or "failed" in (body.database.status, body.state.status)
    return Response(status_code=_NOT_READY if away else 200)


@router.get(
    "/v2/models/{model_path:path}/ready",
    operation_id="oip_model_ready",
    summary="Can the model be called",
    description="200, or 400 while it is not loaded; `/versions/{version}` may stand behind the model's name.",
    response_class=Response,
    responses={**_YES_OR_NO, **errors(401, 403, 404, 429, style="inference")},
)
async def model_ready(model_path: str, platform: PlatformDep, caller: CallerDep) -> Response:
    _, version, _ = _found(model_path, platform, caller)
    return Response(status_code=200 if version_health(version).status is Status.READY else _NOT_READY)


@router.get(
    "/v2/models/{model_path:path}",
    operation_id="oip_model",
    summary="A model's tensors",
    description="Versions, inputs and outputs; `/versions/{version}` may stand behind the model's name.",
    responses=errors(401, 403, 404, 429, style="inference"),
)
async def metadata(model_path: str, platform: PlatformDep, caller: CallerDep) -> MetadataBody:
    model, version, alone = _found(model_path, platform, caller)
    backend = version.targets[0].backend
    tell = getattr(backend, "info", None)
    tensors = (tell() if tell is not None else {}).get("tensors") or {"inputs": [], "outputs": []}
    return MetadataBody(
        name=model.id,
        versions=[version.id] if alone else list(model.versions),
        platform=backend.kind,
        inputs=[TensorBody(**tensor) for tensor in tensors["inputs"]],
        outputs=[TensorBody(**tensor) for tensor in tensors["outputs"]],
    )


def _found(path: str, platform: PlatformDep, caller: Caller) -> tuple[Model, Version, bool]:
    """The model and version that the path names, and whether it names a version. Raises: ModelNotFound."""
    name, wanted = named(path)
    model, version = platform.catalog.get(name, version=wanted)
    if not caller.may_use(model.id):
        raise ModelNotFound(f"The model {name!r} does not exist.", param="model")
    return model, version, wanted is not None
