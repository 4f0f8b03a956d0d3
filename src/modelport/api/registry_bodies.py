"""What `/v1/admin/models` takes and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from modelport.api.deprecations import DeprecationBody

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,198}$")]
_VERSION: dict[str, Any] = {
    "id": "3",
    "object": "admin.model.version",
    "model": "iris",
    "origin": "added",
    "status": "ready",
    "detail": "",
    "source": "/srv/models/iris-3.onnx",
    "format": "onnx",
    "sha256": "363692a94ecbd92e11b316a78fb53eac5de18404dbf977a05929b35089d65176",
    "size_bytes": 1432,
    "done_bytes": 0,
    "total_bytes": 0,
    "options": {},
    "aliases": ["latest"],
    "created_at": "2026-11-26T10:00:00Z",
    "created_by": "key_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
    "deprecation": None,
}
_ALIAS: dict[str, Any] = {
    "alias": "latest",
    "object": "admin.model.alias",
    "version": "2",
    "pending": "3",
    "detail": "iris@3 is loading.",
    "previous": "2",
    "history": [
        {"version": "3", "created_at": "2026-11-26T10:00:00Z", "created_by": "key_0199d1c2a7f07c3e8f6b5a4d3c2b1a09"}
    ],
}


class VersionAdd(BaseModel):
    """A new version, of a model that there is or of a new one."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"id": "iris", "source": "/srv/models/iris-3.onnx", "aliases": ["latest"]}]},
    )

    id: ModelName = Field(description="The model.")
    source: str = Field(
        min_length=1,
        max_length=2000,
        description="A file on the server, hf:OWNER/REPO/FILE or https://…; it ends in .onnx or .gguf.",
    )
    version: Name | None = Field(None, description="Null: the next number.")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = Field(None, description="What it must be.")
    kind: Literal["chat", "embedding", "image", "tabular"] | None = Field(
        None, description="Null: the model's, or what the file can only be."
    )
    options: dict[str, Any] = Field(default={}, max_length=100, description="The backend's own.")
    description: str = Field("", max_length=2000, description="Of a new model.")
    aliases: Annotated[list[Name], Field(max_length=16, description="Lead to it once it can answer.")] = []


class AliasPut(BaseModel):
    """What an alias is to mean."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": "3", "expected": "2"}]})

    version: Name
    expected: str | None = Field(
        None, max_length=64, description="What it means by your knowledge: 409 where that has changed."
    )


class Rollback(BaseModel):
    """Back to what the alias meant before."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"expected": "3"}]})

    expected: str | None = Field(
        None, max_length=64, description="What it means by your knowledge: 409 where that has changed."
    )


class DeprecationPut(BaseModel):
    """When a version, or a model, ends."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"deprecated_at": "2027-01-01T00:00:00Z", "sunset_at": "2027-07-01T00:00:00Z"}]
        },
    )

    deprecated_at: AwareDatetime = Field(description="Not to be used from then on, though it still works.")
    sunset_at: AwareDatetime | None = Field(None, description="Gone from then on; null: no end is set.")
    successor: str = Field("", max_length=400, description="What to use instead.")
    link: str = Field("", max_length=2000, description="A page about it.")


class VersionBody(BaseModel):
    """A version as operators see it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_VERSION]})

    id: str
    object: Literal["admin.model.version"]
    model: str
    origin: Literal["configuration", "added"]
    status: str = Field(description="`loading`, `ready`, `failed` or `removed`, in the process that answers.")
    detail: str = Field(description="Why it is not ready; empty when it is.")
    source: str
    format: str
    sha256: str | None = Field(description="Null until its file has come.")
    size_bytes: int | None
    done_bytes: int = Field(description="Of a download that is under way.")
    total_bytes: int = Field(description="0: not known.")
    options: dict[str, Any]
    aliases: list[str]
    created_at: str | None
    created_by: str | None = Field(description="The key that added it.")
    deprecation: DeprecationBody | None


class StepBody(BaseModel):
    """What an alias meant from an instant on. An empty version: as configured."""

    version: str
    created_at: str
    created_by: str


class AliasBody(BaseModel):
    """An alias as operators see it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ALIAS]})

    alias: str
    object: Literal["admin.model.alias"]
    version: str = Field(description="What it leads to now, in the process that answers.")
    pending: str | None = Field(description="What it leads to as soon as that can answer.")
    detail: str = Field(description="Why it does not yet; empty when nothing is pending.")
    previous: str | None = Field(description="Where a rollback leads.")
    history: list[StepBody] = Field(description="The latest first.")


class AdminModel(BaseModel):
    """A model with its versions and aliases."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "iris",
                    "object": "admin.model",
                    "kind": "tabular",
                    "backend": "onnx",
                    "description": "",
                    "origin": "configuration",
                    "versions": [_VERSION],
                    "aliases": [_ALIAS],
                }
            ]
        }
    )

    id: str
    object: Literal["admin.model"]
    kind: str
    backend: str | None
    description: str
    origin: Literal["configuration", "added"]
    versions: list[VersionBody]
    aliases: list[AliasBody]


class AdminModelList(BaseModel):
    object: Literal["list"]
    data: list[AdminModel]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Removed(BaseModel):
    """It is served no more, and unloaded after its last call."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "iris@3", "object": "removed", "removed": True}]})

    id: str
    object: Literal["removed"] = "removed"
    removed: Literal[True] = True
