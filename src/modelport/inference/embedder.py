"""The platform's own use of an embedding model: a text's vector, for comparing questions."""

from __future__ import annotations

from typing import Any

import msgspec

from modelport.calls import Call, Caller, Operation
from modelport.catalog.rules import check_operation
from modelport.catalog.service import Catalog
from modelport.errors import UpstreamFailed
from modelport.kit.clock import Clock
from modelport.kit.ids import IdSource
from modelport.requests import EmbeddingRequest

# What comparing questions may hold a call up; a local model takes some milliseconds.
TIMEOUT_S = 5.0
# Nobody is billed for it: it is the operator's means of saving work.
_PLATFORM = Caller(
    organization_id="", project_id="", key_id="", mode="live", scopes=frozenset({"inference"}), plan_id=""
)


class _Answer(msgspec.Struct):
    data: list[dict[str, Any]]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Answer).decode


class Embedder:
    """Concurrency: any number of tasks."""

    def __init__(self, catalog: Catalog, *, ids: IdSource, clock: Clock) -> None:
        self._catalog = catalog
        self._ids = ids
        self._clock = clock

    async def embed(self, name: str, text: str) -> list[float]:
        """The vector of `text`. Raises: ModelNotFound, BadRequest, Overloaded, ModelLoading, UpstreamFailed."""
        model, version = self._catalog.get(name)
        check_operation(model, Operation.EMBEDDING)
        target = version.targets[0]
        request = EmbeddingRequest(model=model.id, input=text, encoding_format="float")
        now_s = self._clock.monotonic_s()
        call = Call(
            id=self._ids.new("req_"),
            caller=_PLATFORM,
            endpoint="/v1/embeddings",
            operation=Operation.EMBEDDING,
            model=model.id,
            request=request,
            fields={"model": msgspec.Raw(_encode(model.id)), "input": msgspec.Raw(_encode(text))},
            started_us=self._clock.now_us(),
            started_s=now_s,
            deadline_s=now_s + TIMEOUT_S,
        )
        body = b""
        async for delta in target.backend.stream(call, model=target.upstream_model, max_output_tokens=None):
            body = delta.raw
        try:
            vector: list[float] = _decode(body).data[0]["embedding"]
        except (msgspec.DecodeError, KeyError, IndexError) as error:
            raise UpstreamFailed(internal=f"no embedding in {body[:200]!r}") from error
        return vector
