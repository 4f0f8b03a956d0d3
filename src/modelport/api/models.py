"""`/v1/models`: what can be called, in OpenAI's list format with Anthropic's members and our facts beside it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from modelport.api.auth import PlatformDep, require
from modelport.api.deprecations import DeprecationBody, deprecation_body
from modelport.api.platform import Platform
from modelport.api.registry_views import pending_detail
from modelport.api.responses import errors
from modelport.backends.protocol import Health
from modelport.calls import Caller
from modelport.catalog.model import Model, Version
from modelport.catalog.service import model_health, model_info, version_health
from modelport.kit.clock import rfc3339
from modelport.kit.money import format_usd

router = APIRouter(tags=["Models"])


class ModelPrices(BaseModel):
    """Dollars as decimal strings, and the instant since which they hold."""

    input_usd_per_mtok: str
    cached_usd_per_mtok: str
    output_usd_per_mtok: str
    usd_per_request: str
    usd_per_image: str
    usd_per_second: str
    valid_from: str


class ModelVersion(BaseModel):
    """One immutable version."""

    id: str
    object: str = Field(description="Always `model.version`.")
    status: str = Field(description="`loading`, `ready` or `failed`.")
    detail: str = Field(description="Why it is not ready; empty when it is.")
    sha256: str | None = Field(description="The file's hash, where one is pinned.")
    aliases: list[str]
    deprecation: DeprecationBody | None = Field(description="When it ends; null: it stays.")


class ModelBody(BaseModel):
    """A model as OpenAI and Anthropic describe it, with state, kind, versions, schema and prices beside."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "iris",
                    "object": "model",
                    "created": 1767225600,
                    "owned_by": "modelport",
                    "type": "model",
                    "display_name": "iris",
                    "created_at": "2026-01-01T00:00:00Z",
                    "lifecycle": "active",
                    "name": "iris",
                    "description": "Species of an iris from four measurements.",
                    "kind": "tabular",
                    "status": "ready",
                    "detail": "",
                    "num_labels": 3,
                    "context_tokens": None,
                    "input_schema": {"type": "array"},
                    "output_schema": {"type": "object"},
                    "tensors": None,
                    "batching": None,
                    "versions": ["1", "2"],
                    "aliases": {"latest": "2", "stable": "2"},
                    "pending": {},
                    "prices": None,
                    "deprecation": None,
                }
            ]
        }
    )

    id: str
    object: str = Field(description="Always `model`.")
    created: int = Field(description="Unix seconds.")
    owned_by: str
    type: str = Field(description="Always `model`: Anthropic's word for `object`.")
    display_name: str
    created_at: str = Field(description="The same as `created`.")
    lifecycle: str = Field(description="Always `active`: Anthropic's word for a model that is served.")
    name: str
    description: str
    kind: str = Field(description="`chat`, `embedding`, `image` or `tabular`.")
    status: str = Field(description="`loading`, `ready` or `failed`, of the version that `latest` means.")
    detail: str = Field(description="Why it is not ready; empty when it is.")
    num_labels: int | None = Field(description="How many classes a classifier knows.")
    context_tokens: int | None
    input_schema: dict[str, Any] | None = Field(description="JSON Schema of one input of `/v1/predict`.")
    output_schema: dict[str, Any] | None
    tensors: dict[str, Any] | None = Field(
        description="Names, datatypes and shapes of inputs and outputs; -1: any size."
    )
    batching: dict[str, Any] | None = Field(
        description="How its calls are computed together, since it was loaded; for operators."
    )
    versions: list[str]
    aliases: dict[str, str]
    pending: dict[str, str] = Field(description="Of aliases that are to mean another version: why they do not yet.")
    prices: ModelPrices | None = Field(description="None where the model is free.")
    deprecation: DeprecationBody | None = Field(description="When it ends; null: it stays.")


class ModelList(BaseModel):
    object: str = Field(description="Always `list`.")
    data: list[ModelBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VersionList(BaseModel):
    object: str = Field(description="Always `list`.")
    data: list[ModelVersion]
    first_id: str | None
    last_id: str | None
    has_more: bool


ReaderDep = Annotated[Caller, Depends(require("models:read"))]


@router.get(
    "/v1/models",
    operation_id="list_models",
    summary="List models",
    description="Every model that this key may call, with its state and prices.",
    responses=errors(401, 403, 429),
)
async def list_models(platform: PlatformDep, caller: ReaderDep) -> ModelList:
    data = [model_body(platform, model) for model in platform.catalog.list_for(caller)]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return ModelList(object="list", data=data, first_id=first, last_id=last, has_more=False)


@router.get(
    "/v1/models/{model_id:path}/versions",
    operation_id="list_model_versions",
    summary="List a model's versions",
    description="Each version with its own state, and the aliases that mean it.",
    responses=errors(401, 403, 404, 429),
)
async def list_versions(model_id: str, platform: PlatformDep, caller: ReaderDep) -> VersionList:
    model = platform.catalog.get_for(caller, model_id)
    data = [_version_body(model, version) for version in model.versions.values()]
    return VersionList(object="list", data=data, first_id=data[0].id, last_id=data[-1].id, has_more=False)


@router.get(
    "/v1/models/{model_id:path}",
    operation_id="get_model",
    summary="Get a model",
    description="One model: its state, what it takes and gives, its versions and prices.",
    responses=errors(401, 403, 404, 429),
)
async def get_model(model_id: str, platform: PlatformDep, caller: ReaderDep) -> ModelBody:
    return model_body(platform, platform.catalog.get_for(caller, model_id), operator=caller.operator)


def model_body(platform: Platform, model: Model, *, operator: bool = False) -> ModelBody:
    """The public description of a model."""
    health: Health = model_health(model)
    latest = model.versions[model.aliases["latest"]]
    info = model_info(model)
    settings = model.settings
    return ModelBody(
        id=model.id,
        object="model",
        created=model.created_us // 1_000_000,
        owned_by=settings.targets[0].upstream if settings.targets else "modelport",
        type="model",
        display_name=model.id,
        created_at=rfc3339(model.created_us),
        lifecycle="active",
        name=model.id,
        description=settings.description,
        kind=model.kind.value,
        status=health.status.value,
        detail=health.detail,
        num_labels=info.get("num_labels"),
        context_tokens=settings.context_tokens,
        input_schema=info.get("input_schema"),
        output_schema=info.get("output_schema"),
        tensors=info.get("tensors"),
        batching=info.get("batching") if operator else None,
        versions=list(model.versions),
        aliases=model.aliases,
        pending={alias: pending_detail(model, alias) for alias in model.pending},
        prices=_prices(platform, model),
        deprecation=deprecation_body(latest.deprecation),
    )


def _version_body(model: Model, version: Version) -> ModelVersion:
    health = version_health(version)
    return ModelVersion(
        id=version.id,
        object="model.version",
        status=health.status.value,
        detail=health.detail,
        sha256=version.sha256,
        aliases=[alias for alias, means in model.aliases.items() if means == version.id],
        deprecation=deprecation_body(version.deprecation),
    )


def _prices(platform: Platform, model: Model) -> ModelPrices | None:
    price = platform.prices.at(model.id, at_us=platform.clock.now_us())
    if price is None:
        return None
    cached = price.cached_nanos_per_mtok
    return ModelPrices(
        input_usd_per_mtok=format_usd(price.input_nanos_per_mtok),
        cached_usd_per_mtok=format_usd(price.input_nanos_per_mtok if cached is None else cached),
        output_usd_per_mtok=format_usd(price.output_nanos_per_mtok),
        usd_per_request=format_usd(price.nanos_per_request),
        usd_per_image=format_usd(price.nanos_per_image),
        usd_per_second=format_usd(price.nanos_per_second),
        valid_from=rfc3339(price.valid_from_us),
    )
