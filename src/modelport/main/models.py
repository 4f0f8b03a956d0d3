"""The catalogue's models out of their settings: which backend answers for each version."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from modelport.backends.anthropic import AnthropicBackend
from modelport.backends.ensemble.backend import EnsembleBackend, Find
from modelport.backends.ensemble.options import parse_options
from modelport.backends.gemini import GeminiBackend
from modelport.backends.openai import OpenAIBackend
from modelport.backends.protocol import Backend, Target
from modelport.backends.sandbox import SandboxBackend
from modelport.calls import ModelKind
from modelport.catalog.deprecation import Deprecation, deprecation_of
from modelport.catalog.handover import Place, Places
from modelport.catalog.model import Model, Version
from modelport.catalog.placed import PlacedBackend
from modelport.catalog.schemas import CheckedBackend
from modelport.kit.clock import Clock
from modelport.settings import ModelSettings, Settings, UpstreamSettings, VersionSettings

log = structlog.get_logger("modelport")


class Assembly:
    """Makes the catalogue's models out of their rows, at the start and whenever one is added. Starts nothing."""

    def __init__(self, settings: Settings, places: Places, *, clock: Clock, find: Find) -> None:
        """`find` is who answers for a model now: an ensemble asks it."""
        self._places = places
        self._find = find
        self._clock = clock
        self._upstreams = {row.name: _upstream(row, settings) for row in settings.upstreams}

    def model(self, row: ModelSettings, before: Model | None = None) -> Model:
        """The model of a row. Versions that it had `before` keep what answers for them, since versions don't change."""
        ends = deprecation_of("model", row.id, row.deprecation)
        known = {} if before is None else before.versions
        if row.targets:
            had = known.get("1")
            targets = self._targets(row) if had is None else had.targets
            versions = {"1": Version("1", targets, deprecation=ends)}
        else:
            versions = {
                one.version: self._version(row, one, known.get(one.version), ends) for one in row.all_versions()
            }
        created_us = self._clock.now_us() if before is None else before.created_us
        # Where aliases lead depends on what can answer: the catalogue's follower fills them in.
        return Model(row.id, ModelKind(row.kind), row, versions, created_us=created_us)

    def _version(
        self, row: ModelSettings, version: VersionSettings, before: Version | None, ends: Deprecation | None
    ) -> Version:
        if before is None:
            targets: tuple[Target, ...] = (Target(_checked(row, self._backend(row, version)), row.id),)
        else:
            targets = before.targets
        own = deprecation_of("version", f"{row.id}@{version.version}", version.deprecation)
        return Version(version.version, targets, sha256=version.sha256, deprecation=own or ends)

    def _backend(self, row: ModelSettings, version: VersionSettings) -> Backend:
        if row.backend == "ensemble":
            return EnsembleBackend(parse_options(row.options | version.options), find=self._find)
        return _local(row, version, self._places)

    def _targets(self, row: ModelSettings) -> tuple[Target, ...]:
        found = self._upstreams
        return tuple(Target(found[t.upstream], t.model or row.id, t.upstream, t.weight) for t in row.targets)


def _upstream(row: UpstreamSettings, settings: Settings) -> Backend:
    api_key = os.environ.get(row.api_key_env, "") if row.api_key_env else ""
    if row.api_key_env and not api_key:
        log.warning("upstream_key_missing", upstream=row.name, variable=row.api_key_env)
    if row.kind == "anthropic":
        return AnthropicBackend(row, api_key=api_key, default_output_tokens=settings.limits.default_output_tokens)
    return GeminiBackend(row, api_key=api_key) if row.kind == "gemini" else OpenAIBackend(row, api_key=api_key)


def _checked(row: ModelSettings, backend: Backend) -> Backend:
    """The backend behind the schemas of its row, where those are to be held to."""
    own = ModelKind(row.kind) is ModelKind.CUSTOM
    if row.input_schema is None and row.output_schema is None and not own:
        return backend
    return CheckedBackend(backend, input_schema=row.input_schema, output_schema=row.output_schema, own=own)


def _local(row: ModelSettings, version: VersionSettings, places: Places) -> Backend:
    if row.backend == "sandbox":
        return SandboxBackend()

    def build(place: Place) -> Backend:
        if row.backend == "llamacpp":
            from modelport.backends.llamacpp.backend import LlamaCppBackend
            from modelport.backends.llamacpp.options import LlamaCppOptions

            options = LlamaCppOptions.parse(row.options | version.options)
            return LlamaCppBackend(Path(place.socket), options=options)
        if row.backend == "python":
            from modelport.backends.python.backend import build_python

            return build_python(row, version, Path(place.path))
        from modelport.backends.onnx import build_onnx

        return build_onnx(row, version, Path(place.path))

    return PlacedBackend(row.backend or "", model=row.id, version=version.version, places=places, build=build)
