"""The catalogue's models out of their settings: which backend answers for each version."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from modelport.backends.anthropic import AnthropicBackend
from modelport.backends.gemini import GeminiBackend
from modelport.backends.openai import OpenAIBackend
from modelport.backends.protocol import Backend, Target
from modelport.backends.sandbox import SandboxBackend
from modelport.calls import ModelKind
from modelport.catalog.configured import all_models
from modelport.catalog.deprecation import deprecation_of
from modelport.catalog.handover import Place, Places
from modelport.catalog.model import Model, Version
from modelport.catalog.placed import PlacedBackend
from modelport.catalog.rules import aliases_of
from modelport.settings import ModelSettings, Settings, UpstreamSettings, VersionSettings

log = structlog.get_logger("modelport")


def build_models(settings: Settings, places: Places, *, now_us: int) -> list[Model]:
    """Every configured model with its versions; nothing is started."""
    upstreams = {row.name: _upstream(row, settings) for row in settings.upstreams}
    return [_model(row, upstreams, places, now_us=now_us) for row in all_models(settings)]


def _model(row: ModelSettings, upstreams: dict[str, Backend], places: Places, *, now_us: int) -> Model:
    ends = deprecation_of("model", row.id, row.deprecation)
    if row.targets:
        targets = tuple(Target(upstreams[t.upstream], t.model or row.id, t.upstream, t.weight) for t in row.targets)
        versions = {"1": Version("1", targets, deprecation=ends)}
    else:
        versions = {
            version.version: Version(
                version.version,
                (Target(_local(row, version, places), row.id),),
                sha256=version.sha256,
                deprecation=deprecation_of("version", f"{row.id}@{version.version}", version.deprecation) or ends,
            )
            for version in row.all_versions()
        }
    aliases = aliases_of(list(versions), row.aliases)
    return Model(row.id, ModelKind(row.kind), row, versions, created_us=now_us, aliases=aliases)


def _upstream(row: UpstreamSettings, settings: Settings) -> Backend:
    api_key = os.environ.get(row.api_key_env, "") if row.api_key_env else ""
    if row.api_key_env and not api_key:
        log.warning("upstream_key_missing", upstream=row.name, variable=row.api_key_env)
    if row.kind == "anthropic":
        return AnthropicBackend(row, api_key=api_key, default_output_tokens=settings.limits.default_output_tokens)
    return GeminiBackend(row, api_key=api_key) if row.kind == "gemini" else OpenAIBackend(row, api_key=api_key)


def _local(row: ModelSettings, version: VersionSettings, places: Places) -> Backend:
    if row.backend == "sandbox":
        return SandboxBackend()

    def build(place: Place) -> Backend:
        if row.backend == "llamacpp":
            from modelport.backends.llamacpp.backend import LlamaCppBackend
            from modelport.backends.llamacpp.options import LlamaCppOptions

            options = LlamaCppOptions.parse(row.options | version.options)
            return LlamaCppBackend(Path(place.socket), options=options)
        from modelport.backends.onnx import build_onnx

        return build_onnx(row, version, Path(place.path))

    return PlacedBackend(row.backend or "", model=row.id, version=version.version, places=places, build=build)
