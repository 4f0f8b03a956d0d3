"""`/v1/api_keys`: create, list, read, change and revoke the organization's keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from msgspec import UNSET
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from modelport.access.model import ApiKey, Grant, KeyChange, NewKey
from modelport.api.auth import PlatformDep, require
from modelport.api.responses import errors
from modelport.calls import Caller, Limits
from modelport.kit.clock import rfc3339

router = APIRouter(tags=["API keys"])

_ID = "key_0199d1c2a7f07c3e8f6b5a4d3c2b1a09"
_FIELDS: dict[str, Any] = {
    "id": _ID,
    "object": "api_key",
    "name": "staging",
    "prefix": "mp_live_",
    "last4": "x7Qa",
    "mode": "live",
    "scopes": ["inference", "models:read"],
    "models": ["smollm2-135m-instruct"],
    "model_versions": None,
    "limits": {"requests_per_minute": 60, "tokens_per_minute": None, "concurrent_calls": None},
    "allowed_ips": ["203.0.113.0/24"],
    "expires_at": "2027-12-31T00:00:00Z",
    "created_at": "2026-11-21T09:30:00Z",
    "last_used_at": None,
    "revoked_at": None,
    "project_id": "proj_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Limit = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Name = Annotated[str, Field(min_length=1, max_length=200, description="What it is for.")]
_Model = Annotated[str, Field(min_length=1, max_length=200)]
_Scopes = Annotated[
    list[Annotated[str, Field(max_length=40)]],
    Field(max_length=32, description="What it may do; at most what your own key may."),
]
_Models = Annotated[list[_Model], Field(max_length=64, description="The only models it may call; null: all.")]
_Versions = Annotated[
    dict[_Model, Annotated[str, Field(min_length=1, max_length=64)]],
    Field(max_length=64, description="The version or alias that a model's bare name means; null: `latest` for all."),
]
_Addresses = Annotated[
    list[Annotated[str, Field(max_length=50)]],
    Field(min_length=1, max_length=64, description="IP addresses or CIDR blocks; null: from anywhere."),
]


class KeyLimits(BaseModel):
    """A key's own limits, within the organization's; null is without one."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    concurrent_calls: _Limit | None = None


class KeyCreate(BaseModel):
    """A new key. What is left out is what your own key has."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "staging", "scopes": ["inference", "models:read"], "limits": {"requests_per_minute": 60}}
            ]
        },
    )

    name: _Name
    mode: Literal["live", "test"] = Field(
        "live", description="A test key's calls are free; the sandbox plays upstreams."
    )
    scopes: _Scopes = ["inference", "models:read"]
    models: _Models | None = None
    model_versions: _Versions | None = None
    limits: KeyLimits | None = None
    allowed_ips: _Addresses | None = None
    expires_at: AwareDatetime | None = Field(None, description="RFC 3339; null: never.")
    project_id: Annotated[str, Field(max_length=64)] | None = Field(None, description="Null: your own key's project.")


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class KeyPatch(BaseModel):
    """What is to be different. A member that is left out stays as it is; `limits` is replaced as a whole."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "production"}]})

    # Neither can be null; their defaults only mark them as optional, and are no values that could be sent.
    name: _Name = Field("", json_schema_extra=_without_default)
    scopes: _Scopes = Field([], json_schema_extra=_without_default)
    models: _Models | None = None
    model_versions: _Versions | None = None
    limits: KeyLimits | None = None
    allowed_ips: _Addresses | None = None
    expires_at: AwareDatetime | None = None


class KeyBody(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FIELDS]})

    id: str
    object: Literal["api_key"]
    name: str
    prefix: str = Field(description="How the key begins.")
    last4: str = Field(description="How it ends.")
    mode: Literal["live", "test"]
    scopes: list[str]
    models: list[str] | None
    model_versions: dict[str, str] | None
    limits: KeyLimits
    allowed_ips: list[str] | None
    expires_at: str | None
    created_at: str
    last_used_at: str | None = Field(description="To within some seconds.")
    revoked_at: str | None
    project_id: str


class KeyCreated(KeyBody):
    """A key with its secret, which no other answer shows."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_FIELDS, "key": "mp_live_0123456789abcdefghijklmnopqrstuvwxyzABCD3KuKAd"}]}
    )

    key: str = Field(description="The key. Keep it now: it is stored as a hash alone.")


class KeyList(BaseModel):
    """A page of keys."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"object": "list", "data": [_FIELDS], "first_id": _ID, "last_id": _ID, "has_more": False}]
        }
    )

    object: Literal["list"]
    data: list[KeyBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


KeysDep = Annotated[Caller, Depends(require("keys"))]
KeyId = Annotated[str, Path(description="The key's id, `key_…`.", max_length=64, examples=[_ID])]


@router.post(
    "/v1/api_keys",
    status_code=201,
    operation_id="create_api_key",
    summary="Create an API key",
    description="A key that may do at most what your own may. The answer is the only one that shows it.",
    responses=errors(400, 401, 403, 404, 409, 422, 429, 503),
)
async def create_api_key(body: KeyCreate, platform: PlatformDep, caller: KeysDep) -> KeyCreated:
    grant = Grant(
        mode=body.mode,
        scopes=frozenset(body.scopes),
        models=_set(body.models),
        limits=_limits(body.limits) or Limits(),
        allowed_ips=_tuple(body.allowed_ips),
        expires_us=_us(body.expires_at),
        model_versions=body.model_versions,
    )
    key, secret = await platform.keys.create(caller, NewKey(body.name, grant, body.project_id))
    return KeyCreated(**_body(key).model_dump(), key=secret)


@router.get(
    "/v1/api_keys",
    operation_id="list_api_keys",
    summary="List API keys",
    description="The organization's keys, revoked ones among them.",
    responses=errors(400, 401, 403, 429, 503),
)
async def list_api_keys(
    platform: PlatformDep,
    caller: KeysDep,
    after: Annotated[str | None, Query(description="The id behind which the page begins.", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="How many at most.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By creation; newest first by default.")] = "desc",
) -> KeyList:
    page = await platform.keys.list_page(caller, after=after, limit=limit, order=order)
    data = [_body(key) for key in page.keys]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return KeyList(object="list", data=data, first_id=first, last_id=last, has_more=page.has_more)


@router.get(
    "/v1/api_keys/{key_id}",
    operation_id="get_api_key",
    summary="Get an API key",
    description="One of the organization's keys, without its secret.",
    responses=errors(401, 403, 404, 429, 503),
)
async def get_api_key(key_id: KeyId, platform: PlatformDep, caller: KeysDep) -> KeyBody:
    return _body(await platform.keys.get(caller, key_id))


@router.patch(
    "/v1/api_keys/{key_id}",
    operation_id="update_api_key",
    summary="Change an API key",
    description="Within what your own key may do. It holds at the key's next call, on every server.",
    responses=errors(400, 401, 403, 404, 409, 429, 503),
)
async def update_api_key(key_id: KeyId, body: KeyPatch, platform: PlatformDep, caller: KeysDep) -> KeyBody:
    return _body(await platform.keys.update(caller, key_id, _change(body)))


@router.delete(
    "/v1/api_keys/{key_id}",
    operation_id="revoke_api_key",
    summary="Revoke an API key",
    description="It is refused from now on, on every server, and stays in the list as revoked.",
    responses=errors(401, 403, 404, 429, 503),
)
async def revoke_api_key(key_id: KeyId, platform: PlatformDep, caller: KeysDep) -> KeyBody:
    return _body(await platform.keys.revoke(caller, key_id))


def _change(body: KeyPatch) -> KeyChange:
    """The members that were sent; null lifts a restriction."""
    sent = body.model_fields_set
    return KeyChange(
        name=body.name if "name" in sent else UNSET,
        scopes=frozenset(body.scopes) if "scopes" in sent else UNSET,
        models=_set(body.models) if "models" in sent else UNSET,
        limits=_limits(body.limits) if "limits" in sent else UNSET,
        allowed_ips=_tuple(body.allowed_ips) if "allowed_ips" in sent else UNSET,
        expires_us=_us(body.expires_at) if "expires_at" in sent else UNSET,
        model_versions=body.model_versions if "model_versions" in sent else UNSET,
    )


def _body(key: ApiKey) -> KeyBody:
    grant = key.grant
    return KeyBody(
        id=key.id,
        object="api_key",
        name=key.name,
        prefix=key.prefix,
        last4=key.last4,
        mode=grant.mode,
        scopes=sorted(grant.scopes),
        models=None if grant.models is None else sorted(grant.models),
        model_versions=None if grant.model_versions is None else dict(grant.model_versions),
        limits=KeyLimits(
            requests_per_minute=grant.limits.requests_per_minute,
            tokens_per_minute=grant.limits.tokens_per_minute,
            concurrent_calls=grant.limits.concurrent_calls,
        ),
        allowed_ips=None if grant.allowed_ips is None else list(grant.allowed_ips),
        expires_at=_time(grant.expires_us),
        created_at=rfc3339(key.created_us),
        last_used_at=_time(key.last_used_us),
        revoked_at=_time(key.revoked_us),
        project_id=key.project_id,
    )


def _limits(body: KeyLimits | None) -> Limits | None:
    if body is None:
        return None
    return Limits(body.requests_per_minute, body.tokens_per_minute, body.concurrent_calls)


def _set(members: list[str] | None) -> frozenset[str] | None:
    return None if members is None else frozenset(members)


def _tuple(members: list[str] | None) -> tuple[str, ...] | None:
    return None if members is None else tuple(members)


def _us(moment: AwareDatetime | None) -> int | None:
    return None if moment is None else microseconds(moment)


def microseconds(moment: AwareDatetime) -> int:
    """An instant as the platform keeps it: microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _time(us: int | None) -> str | None:
    return None if us is None else rfc3339(us)
