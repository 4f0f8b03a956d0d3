"""`/v1/admin/models`: versions added, aliases moved and rolled back, ends announced, while serving."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from modelport.api.auth import PlatformDep, require
from modelport.api.keys import microseconds
from modelport.api.platform import Platform
from modelport.api.registry_bodies import (
    AdminModel,
    AdminModelList,
    AliasBody,
    AliasPut,
    DeprecationPut,
    Removed,
    Rollback,
    VersionAdd,
    VersionBody,
)
from modelport.api.registry_views import alias_body, model_body, version_body
from modelport.api.responses import errors
from modelport.calls import Caller
from modelport.catalog.model import Model
from modelport.catalog.registered import Retirement
from modelport.catalog.registry import NewVersion
from modelport.errors import BadRequest, ModelNotFound
from modelport.settings import DeprecationSettings

router = APIRouter(tags=["Operation"])
_ROOT = "/v1/admin/models"
_ONE = _ROOT + "/{model_id:path}"
_VERSION = _ONE + "/versions/{version}"
_ALIAS = _ONE + "/aliases/{alias}"
OperatorDep = Annotated[Caller, Depends(require("admin"))]
ModelId = Annotated[str, Path(description="The model's id.", max_length=200, examples=["iris"])]
VersionId = Annotated[str, Path(description="One of its versions.", max_length=64, examples=["3"])]
Alias = Annotated[
    str, Path(description="A moving name.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", examples=["latest"])
]


@router.post(
    _ROOT,
    status_code=201,
    operation_id="add_model_version",
    summary="Add a version",
    description="It is fetched, checked and loaded on every server, then aliases lead to it. Versions never change: "
    "the same one with another file is refused. 200 where it was there already.",
    responses=errors(400, 401, 403, 404, 409, 422, 429, 503),
)
async def add_version(body: VersionAdd, platform: PlatformDep, caller: OperatorDep, response: Response) -> VersionBody:
    new = NewVersion(
        model=body.id,
        source=body.source,
        version=body.version or "",
        sha256=body.sha256 or "",
        kind=body.kind or "",
        options=body.options,
        description=body.description,
        aliases=body.aliases,
    )
    version, made = await platform.registry.add(caller, new)
    response.status_code = 201 if made else 200
    return version_body(platform, _model(platform, body.id), version.version)


@router.get(
    _ROOT,
    operation_id="list_registered_models",
    summary="List models with their versions and aliases",
    description="Every model of the installation, with where its versions come from and what its aliases meant.",
    responses=errors(401, 403, 429),
)
async def list_registered(platform: PlatformDep, _operator: OperatorDep) -> AdminModelList:
    data = [model_body(platform, model) for model in platform.catalog.models.values()]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return AdminModelList(object="list", data=data, first_id=first, last_id=last, has_more=False)


@router.get(
    _VERSION,
    operation_id="get_registered_version",
    summary="Get a version",
    description="How far it is with loading, and what its file is.",
    responses=errors(401, 403, 404, 429),
)
async def get_version(
    model_id: ModelId, version: VersionId, platform: PlatformDep, _operator: OperatorDep
) -> VersionBody:
    return version_body(platform, _model(platform, model_id), version)


@router.delete(
    _VERSION,
    operation_id="remove_model_version",
    summary="Remove a version",
    description="It is asked no more from now on, and unloaded after its last call. No alias may mean it.",
    responses=errors(401, 403, 404, 409, 429, 503),
)
async def remove_version(
    model_id: ModelId, version: VersionId, platform: PlatformDep, _operator: OperatorDep
) -> Removed:
    await platform.registry.remove(model_id, version)
    return Removed(id=f"{model_id}@{version}")


@router.put(
    _VERSION + "/deprecation",
    operation_id="deprecate_model_version",
    summary="Announce a version's end",
    description="Told in headers and lists from now on; refused with 410 after the sunset.",
    responses=errors(400, 401, 403, 404, 429, 503),
)
async def deprecate(
    model_id: ModelId, version: VersionId, body: DeprecationPut, platform: PlatformDep, caller: OperatorDep
) -> VersionBody:
    try:
        DeprecationSettings.model_validate(body.model_dump())
    except ValueError as error:
        raise BadRequest(f"These dates can't be: {_reason(error)}.") from None
    end = Retirement(
        model=model_id,
        version=version,
        deprecated_us=microseconds(body.deprecated_at),
        sunset_us=None if body.sunset_at is None else microseconds(body.sunset_at),
        successor=body.successor,
        link=body.link,
        created_us=platform.clock.now_us(),
        created_by=caller.key_id,
    )
    await platform.registry.retire(end)
    return version_body(platform, _model(platform, model_id), version)


@router.delete(
    _VERSION + "/deprecation",
    operation_id="keep_model_version",
    summary="Take a version's end back",
    description="What was announced here; what the configuration announces stays.",
    responses=errors(401, 403, 404, 429, 503),
)
async def keep(model_id: ModelId, version: VersionId, platform: PlatformDep, _operator: OperatorDep) -> VersionBody:
    await platform.registry.keep(model_id, version)
    return version_body(platform, _model(platform, model_id), version)


@router.put(
    _ALIAS,
    operation_id="move_model_alias",
    summary="Move an alias",
    description="It leads to the version as soon as that can answer; until then, and where it can't be loaded, to what "
    "it meant before. No call fails meanwhile.",
    responses=errors(400, 401, 403, 404, 409, 422, 429, 503),
)
async def move_alias(
    model_id: ModelId, alias: Alias, body: AliasPut, platform: PlatformDep, caller: OperatorDep
) -> AliasBody:
    await platform.registry.move(caller, model_id, alias, version=body.version, expected=body.expected)
    return alias_body(platform, _model(platform, model_id), alias)


@router.delete(
    _ALIAS,
    operation_id="drop_model_alias",
    summary="Take an alias back",
    description="It means what the configuration says again, or nothing.",
    responses=errors(401, 403, 404, 429, 503),
)
async def drop_alias(model_id: ModelId, alias: Alias, platform: PlatformDep, caller: OperatorDep) -> Removed:
    await platform.registry.drop_alias(caller, model_id, alias)
    return Removed(id=f"{model_id}@{alias}")


@router.post(
    _ALIAS + "/rollback",
    operation_id="roll_model_alias_back",
    summary="Roll an alias back",
    description="To what it meant before its last move.",
    responses=errors(400, 401, 403, 404, 409, 429, 503),
)
async def roll_back(
    model_id: ModelId, alias: Alias, platform: PlatformDep, caller: OperatorDep, body: Rollback | None = None
) -> AliasBody:
    expected = body.expected if body is not None else None
    await platform.registry.roll_back(caller, model_id, alias, expected=expected)
    return alias_body(platform, _model(platform, model_id), alias)


@router.get(
    _ONE,
    operation_id="get_registered_model",
    summary="Get a model with its versions and aliases",
    description="Where its versions come from, how far they are, and what its aliases meant.",
    responses=errors(401, 403, 404, 429),
)
async def get_registered(model_id: ModelId, platform: PlatformDep, _operator: OperatorDep) -> AdminModel:
    return model_body(platform, _model(platform, model_id))


@router.delete(
    _ONE,
    operation_id="remove_model",
    summary="Remove a model",
    description="One that was added, with all its versions and aliases.",
    responses=errors(401, 403, 404, 409, 429, 503),
)
async def remove_model(model_id: ModelId, platform: PlatformDep, _operator: OperatorDep) -> Removed:
    await platform.registry.remove_model(model_id)
    return Removed(id=model_id)


def _model(platform: Platform, model_id: str) -> Model:
    model = platform.catalog.models.get(model_id)
    if model is None:
        raise ModelNotFound(f"The model {model_id!r} does not exist; GET {_ROOT} lists those that do.")
    return model


def _reason(error: ValueError) -> str:
    errors_of = getattr(error, "errors", None)
    return str(errors_of()[0]["msg"]) if errors_of is not None else str(error)
