"""A call: one inference request on its way through the platform, and the answer's pieces on the way back.

These are the only types that every layer from the doors to the backends shares.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

Mode = Literal["live", "test"]
BudgetScope = Literal["organization", "project", "key", "tag"]
Period = Literal["day", "month", "total"]


class Operation(enum.StrEnum):
    """What is asked of a model. A model's `kind` says which of these it can do."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    PREDICT = "predict"
    INFER = "infer"


class ModelKind(enum.StrEnum):
    CHAT = "chat"
    EMBEDDING = "embedding"
    IMAGE = "image"
    TABULAR = "tabular"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings per minute and at one time; `None` is without a ceiling."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_calls: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How much the calls of one organization, project, key or tag may cost in a period, in nano-dollars.

    `target` is an id, or of a tag `name=value`. The soft limit is told of, the hard one lets nothing more through;
    None is without one.
    """

    id: str
    organization_id: str
    scope: BudgetScope
    target: str
    period: Period
    soft_nanos: int | None
    hard_nanos: int | None
    created_us: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: what a key or a token leads to. Immutable, so that it can be cached.

    `budgets` are all that may concern a call: the organization's, its tags', the project's and the key's. A test-mode
    caller has none, since its calls are free. `model_versions` says by model which version (or alias) is meant by a
    call that names none.
    """

    organization_id: str
    project_id: str
    key_id: str
    mode: Mode
    scopes: frozenset[str]
    plan_id: str
    organization_limits: Limits = Limits()
    key_limits: Limits = Limits()
    models: frozenset[str] | None = None
    operator: bool = False
    discount_basis_points: int = 0
    budgets: tuple[Budget, ...] = ()
    model_versions: Mapping[str, str] | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class Original:
    """A request as it came, where a door translated it: for upstreams that speak the dialect it came in.

    `fields` are the members of the body as bytes, `headers` what belongs to the dialect beside them. `shared`: others
    may get the answer too, so that it has to come in the dialect which every door reads.
    """

    dialect: str
    fields: Mapping[str, msgspec.Raw]
    headers: Mapping[str, str]
    shared: bool = False


class Patience(NamedTuple):
    """How long a call's route waits for what, in seconds; None leaves it to the upstream's own row."""

    connect_s: float | None = None
    queue_s: float | None = None
    first_token_s: float | None = None
    answer_s: float | None = None
    between_tokens_s: float | None = None
    total_s: float | None = None


class Relay:
    """A short cut for the pieces of a stream that has begun: a backend that can hands them to `put` as they arrive,
    and nobody's task is woken for each.

    `put` takes a piece, or returns false while the client has to catch up: that piece, and whatever ends the answer,
    the backend yields as ever. `count` is set by the backend, and tells the usage so far.
    """

    __slots__ = ("count", "put")

    def __init__(self, put: Callable[[bytes], bool]) -> None:
        self.put = put
        self.count: Callable[[], Usage] | None = None


@dataclass(slots=True)
class Call:
    """One request.

    `fields` holds each top-level member of the body as the bytes the client sent, so that what the platform
    does not know is forwarded unchanged; `request` is the typed view of what it does know (a chat, completion,
    embedding or predict request; see `modelport.requests`). Both are in OpenAI's dialect: a door of another one
    translates, and keeps what it was sent in `original`. `route` is what the caller asked of its routing, as it was
    sent (see `modelport.routing.override`); `patience` what the route it took says about waiting. `partial`: the inputs
    of a prediction may fail one by one (see `Delta.value`); without it the first that fails fails the call. `estimate`:
    what an upstream's backend took its input tokens for, once it was asked. `relay` is there once output has begun to
    flow to a door that can take it from anywhere. `experiment` names the variant that the call got, `exp_…=name`.
    """

    id: str
    caller: Caller
    endpoint: str
    operation: Operation
    model: str
    request: Any
    fields: Mapping[str, msgspec.Raw]
    started_us: int
    started_s: float
    deadline_s: float
    stream: bool = False
    version: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    traceparent: str | None = None
    original: Original | None = None
    route: str = ""
    patience: Patience | None = None
    cache_control: str | None = None
    partial: bool = False
    estimate: int | None = None
    relay: Relay | None = None
    experiment: str | None = None


class Tensor(msgspec.Struct, gc=False):
    """An array as the Open Inference Protocol has it.

    `data` holds the elements in row-major order, little-endian, without padding; those of datatype BYTES are each
    preceded by their length in four bytes. An element of BOOL takes one byte.
    Source: Open Inference Protocol V2, "Tensor Data Types" and "Binary Tensor Data Extension".
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


class Usage(msgspec.Struct):
    """What a call consumed. `input_tokens` includes the cached ones, as OpenAI counts.

    `exact` is false where an upstream reported nothing and the count was taken from the stream.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    images: int = 0
    exact: bool = True


class Delta(msgspec.Struct, gc=False):
    """A piece of an answer. Backends yield them; the door renders them.

    `raw`: language models answer in OpenAI's own dialect as bytes, so that an answer can pass through untouched:
      either one or more complete server-sent events (`data: {…}\\n\\n`, without the final `[DONE]`), or, when
      `whole`, the complete JSON body of an answer that was not asked to stream.
    `value`: models that predict answer with one whole delta holding a plain Python value instead: of a prediction a
      list with one member for each input, which for an input that failed is its `ModelportError` (only where the call
      is `partial`); of `Operation.INFER` a list of `Tensor`.
    `usage`: the totals so far, set whenever the backend knows them; the last one seen is what is charged. Every
      delta of a local engine carries it, so that a hang-up is charged for exactly what was produced.
    `timed`: true on deltas that carry model output (the first such delta ends the time to first token).
    `original`: `raw` is in the dialect of `call.original`, whose door passes it on as it is. Also there a stream leaves
      out its terminal frame.
    """

    raw: bytes = b""
    whole: bool = False
    value: Any = None
    usage: Usage | None = None
    timed: bool = True
    original: bool = False


class Served(NamedTuple):
    """Which model answered in the end."""

    model: str
    version: str
    backend: str
    upstream_model: str
