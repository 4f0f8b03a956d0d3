"""All settings: one frozen tree, nested by feature, units in the names, defaults that run on a bare laptop.

Read once, in `main.py`, from the TOML file, then `MODELPORT_…` in the environment (nested with `__`), then flags;
passed on as values. `docs/settings.md` is generated from this file.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from modelport.kit.latency import BOUNDS_US
from modelport.kit.money import parse_usd

# Backends whose models are files on this machine.
FILES = ("llamacpp", "onnx", "python")
ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,198}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Strategy = Literal["priority", "weighted", "least_outstanding", "lowest_latency", "cheapest"]
Override = Literal["strategy", "attempts", "fallback", "hedge", "timeouts"]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Group):
    """The HTTP server."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free port and prints it.")
    workers: int = Field(1, ge=1, le=256, description="Gateway processes on this machine.")
    max_body_bytes: int = Field(20_000_000, ge=1024, description="A larger body is refused with 413 while it arrives.")
    max_json_depth: int = Field(64, ge=4, le=500, description="JSON nested deeper is refused with 400.")
    max_header_bytes: int = Field(65_536, ge=4096, description="Address and headers together; more is 431.")
    header_timeout_s: float = Field(20.0, gt=0, description="The headers must have arrived by then, or 408.")
    send_timeout_s: float = Field(60.0, gt=0, description="Who reads nothing of an answer for so long is cut off.")
    body_timeout_s: float = Field(30.0, gt=0, description="A body must have arrived by then, or 408.")
    call_timeout_s: float = Field(600.0, gt=0, description="The deadline of a call that sets none of its own.")
    keep_alive_s: float = Field(75.0, gt=0, description="How long an idle connection is kept.")
    stream_keep_alive_s: float = Field(15.0, gt=0, description="A comment is sent after this much silence in a stream.")
    stream_gather_s: float = Field(
        0.005,
        ge=0,
        le=0.1,
        description="While a worker is short of processor time, pieces of one stream that come within up to this time "
        "of each other leave together; 0 passes each on at once.",
    )
    drain_s: float = Field(30.0, ge=0, description="How long SIGTERM waits for calls in flight.")
    longest_wait_ms: float = Field(
        1000.0,
        gt=0,
        description="A call that would wait longer for its worker to come to it gets 503 at once.",
    )
    max_connections: int = Field(4096, ge=1, description="Open connections per worker; more are answered 503.")
    max_socket_calls: int = Field(32, ge=1, description="Calls that run at once on one WebSocket.")
    max_socket_message_bytes: int = Field(
        8_000_000, ge=1024, description="A larger WebSocket message closes its connection with 1009."
    )
    socket_ping_s: float = Field(
        20.0, gt=0, description="A WebSocket that is silent for so long is pinged; twice as long, and it is closed."
    )
    gzip_min_bytes: int = Field(1400, ge=0, description="Answers from this size on are compressed where accepted.")
    public_url: str = Field("", description="The address customers use, in links and documents; guessed when empty.")
    cors_origins: list[str] = Field(default=["*"], description="Origins that browsers may call from.")


class DatabaseSettings(_Group):
    """Where durable records live."""

    url: str = Field("", description="postgresql://… or sqlite:///PATH; empty: modelport.db in the data directory.")
    pool_size: int = Field(5, ge=1, description="PostgreSQL connections per worker.")


class StateSettings(_Group):
    """Short-lived state that processes share."""

    url: str = Field(
        "auto",
        description="auto (memory for one worker, a SQLite file for several), memory, sqlite, redis://… or rediss://…",
    )
    namespace: str = Field("modelport", description="Prefix of every Redis key.")


class AccessSettings(_Group):
    """API keys."""

    cache_keys: int = Field(100_000, ge=1, description="Keys held in each worker's cache.")
    cache_ttl_s: float = Field(300.0, gt=0, description="A cached key is read again after this, whatever was pushed.")
    touch_interval_s: float = Field(5.0, gt=0, description="How often 'last used' is written.")


class MeteringSettings(_Group):
    """Journal and usage."""

    commit_interval_s: float = Field(0.2, gt=0, description="How often the journal is committed into the database.")
    commit_batch: int = Field(500, ge=1, description="Usage events in one transaction.")
    segment_bytes: int = Field(16_000_000, ge=4096, description="Size at which a journal file is closed.")
    fsync: Literal["never", "interval", "always"] = Field(
        "interval", description="A killed process loses nothing either way; this is about power loss."
    )


class LimitsSettings(_Group):
    """Limits that no plan sets."""

    management_per_minute: int = Field(600, ge=1, description="Calls per key to the management API.")
    default_output_tokens: int = Field(
        4096, ge=1, description="Reserved for a call without max_tokens to a model without max_output_tokens."
    )


class RoutingSettings(_Group):
    """What bounds the attempts of all calls of a worker together."""

    retry_ratio: float = Field(
        0.2, ge=0, le=1, description="Repeated and hedged attempts for each call, at most, beside one a second."
    )
    retry_reserve: float = Field(50, ge=0, description="So many may be made at once before the ratio holds.")


class BudgetsSettings(_Group):
    """Money that calls may spend."""

    wait_s: float = Field(
        5.0, ge=0, description="How long a call waits for money that running calls have reserved, before it gets 429."
    )
    max_waiting: int = Field(512, ge=0, description="Calls per worker that wait so at one time; more get 429 at once.")


class IdempotencySettings(_Group):
    """Requests that carry an `Idempotency-Key`."""

    keep_s: float = Field(86_400.0, gt=0, description="How long an answer is kept for whoever repeats its request.")
    max_answer_bytes: int = Field(
        1_000_000, ge=1024, description="A larger answer is not kept; a repeat is then refused, not run again."
    )
    lease_s: float = Field(
        15.0, gt=0, description="So long after the process that ran a request died, a repeat runs it anew."
    )


class CacheSettings(_Group):
    """Stored answers of models that have a `cache`. Where the state is Redis they lie there, for all instances."""

    memory_bytes: int = Field(64_000_000, ge=0, description="Per worker; the least recently used give way.")
    wait_s: float = Field(
        10.0, ge=0, description="How long a call waits for the same one that another instance is making; Redis only."
    )


def _latency_bound(value: float) -> float:
    if round(value * 1000) not in BOUNDS_US:
        raise ValueError(f"is one of {', '.join(f'{bound / 1000:g}' for bound in BOUNDS_US)}")
    return value


LatencyBound = Annotated[float, AfterValidator(_latency_bound)]


class ModelSloSettings(_Group):
    """What is promised of one model; what is empty is as for all."""

    latency_ms: LatencyBound | None = Field(None, description="Promised at every endpoint then.")
    latency_share: float | None = Field(None, gt=0, lt=1)
    error_rate: float | None = Field(None, gt=0, lt=1)
    availability: float | None = Field(None, gt=0, lt=1)


class RegistrySettings(_Group):
    """Models and versions that are added, moved and removed while serving."""

    poll_interval_s: float = Field(
        1.0, gt=0, description="How often each process looks whether something changed that it was not told of."
    )
    drain_s: float = Field(
        30.0, ge=0, description="A version that was removed is unloaded after this, and after its last call."
    )
    max_versions: int = Field(200, ge=1, description="Versions that can be added beside the configured ones.")
    alias_history: int = Field(50, ge=2, description="Earlier meanings of an alias that are kept for rollbacks.")


class SloSettings(_Group):
    """What is promised of the calls, and counted: see `/v1/metrics` and `/v1/admin/slo`."""

    latency_ms: LatencyBound = Field(200.0, description="A call that takes longer is late; a bound of the histogram.")
    latency_share: float = Field(0.95, gt=0, lt=1, description="The share of good calls that are not late.")
    latency_endpoints: list[str] = Field(
        default=["/v1/predict", "/v1/images/classify", "/v2/*"],
        description="Where latency is promised; `*` stands for anything.",
    )
    error_rate: float = Field(0.001, gt=0, lt=1, description="The share of calls that may fail through our fault.")
    availability: float = Field(
        0.999, gt=0, lt=1, description="The share of calls that are taken (no 503 or 504), and of minutes we are up."
    )
    alarm_burn_rate: float = Field(
        14.4, gt=0, description="Spent so many times too fast, over 5 minutes and an hour, a promise is logged."
    )
    interval_s: float = Field(10.0, gt=0, description="How often each worker adds its counts to the database.")


class LogSettings(_Group):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console", "auto"] = Field("auto", description="auto: console on a terminal, else JSON.")
    access: bool = Field(True, description="One line per call.")
    prompts: bool = Field(False, description="Log what users send and models answer. Off unless you must.")


class EgressSettings(_Group):
    """Which addresses the platform itself may connect to on a customer's behalf."""

    allowed_networks: list[str] = Field(default=[], description="CIDR blocks allowed although private.")


class PriceSettings(_Group):
    """What a model costs, in dollars as decimal strings."""

    input_usd_per_mtok: str = "0"
    cached_usd_per_mtok: str | None = Field(None, description="Cached input tokens; empty: as other input.")
    output_usd_per_mtok: str = "0"
    usd_per_request: str = "0"
    usd_per_image: str = "0"
    usd_per_second: str = "0"

    @field_validator("*", mode="before")
    @classmethod
    def _is_money(cls, value: object) -> object:
        if value is None:
            return None
        text = str(value)
        if isinstance(value, int | float | str | Decimal) and parse_usd(text) < 0:
            raise ValueError("a price is not negative")
        return text


class BreakerSettings(_Group):
    """When an upstream's target is left alone for a while: each of its models by itself, in every instance at once."""

    enabled: bool = True
    window_s: float = Field(30.0, gt=0, description="Calls of so many last seconds are looked at.")
    min_calls: int = Field(10, ge=1, description="Fewer calls in the window never open it.")
    error_rate: float = Field(0.5, gt=0, le=1, description="The share of failed ones that opens it.")
    slow_call_s: float | None = Field(
        None, gt=0, description="An answer that begins later is slow (one that does not stream: ends); empty: none is."
    )
    slow_rate: float = Field(0.5, gt=0, le=1, description="The share of slow ones that opens it.")
    open_s: float = Field(10.0, gt=0, description="How long it is left alone before one call at a time is let through.")
    probes: int = Field(2, ge=1, le=100, description="So many of these in a row must go well until it is closed.")


class DeprecationSettings(_Group):
    """When something ends: told in headers from now on, answered with 410 after the sunset."""

    deprecated_at: AwareDatetime = Field(description="Not to be used from then on, though it still works.")
    sunset_at: AwareDatetime | None = Field(None, description="Gone from then on; empty: no end is set.")
    successor: str = Field("", description="What to use instead: another model's id, or another route.")
    link: str = Field("", description="A page about it; empty: `/v1/deprecations`.")

    @field_validator("link", "successor")
    @classmethod
    def _fits_a_header(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable() or any(mark in value for mark in ' <>"'):
            raise ValueError("is an address or an id: ASCII without spaces, quotes or angle brackets")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> DeprecationSettings:
        if self.sunset_at is not None and self.sunset_at < self.deprecated_at:
            raise ValueError("sunset_at is before deprecated_at")
        return self


class RouteDeprecationSettings(DeprecationSettings):
    """A route that ends."""

    route: str = Field(pattern=r"^/\S*$", description="Its path; `/v1/something/*` means all that lies below.")


class UpstreamSettings(_Group):
    """A server that answers for us."""

    name: Name
    kind: Literal["openai", "azure-openai", "anthropic", "gemini"] = Field(
        "openai", description="The dialect it speaks."
    )
    base_url: str = Field(
        description="Up to and including the version: /v1, /v1beta. Azure: the resource's address, see `api_version`."
    )
    api_version: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="`azure-openai` alone: its dated version, then models are deployments; empty: `base_url` ends in "
        "/openai/v1.",
    )
    api_key_env: str = Field("", description="The environment variable that holds its key.")
    headers: dict[str, str] = Field(default={}, description="Sent with every call.")
    connect_timeout_s: float = Field(5.0, gt=0)
    first_token_timeout_s: float = Field(120.0, gt=0)
    between_tokens_timeout_s: float = Field(60.0, gt=0)
    max_connections: int = Field(256, ge=1, description="Per worker; calls beyond wait, then get 503.")
    max_answer_bytes: int = Field(64_000_000, ge=1024, description="A larger answer is cut off with 502.")
    breaker: BreakerSettings = BreakerSettings()


class TargetSettings(_Group):
    """One upstream that can answer for a model."""

    upstream: Name
    model: str = Field("", description="The upstream's name for it; empty: the same.")
    weight: int = Field(1, ge=0, description="Its share of the calls; 0 stands by until the others fail.")
    prices: PriceSettings | None = Field(
        None,
        description="What it costs you, for the strategy `cheapest`; empty: the built-in price list, else nothing.",
    )


class RetrySettings(_Group):
    """Trying again, as long as the caller has not seen a byte."""

    attempts: int = Field(3, ge=1, le=10, description="At one model, over all of its targets; 1 never tries again.")
    budget_s: float | None = Field(
        None, gt=0, description="No attempt begins later than this after the call's arrival; empty: up to its deadline."
    )
    backoff_first_s: float = Field(
        0.1, ge=0, description="The pause before a target is asked again is a random one up to this, then up to twice…"
    )
    backoff_most_s: float = Field(2.0, ge=0, description="… and at most up to this.")


class TimeoutSettings(_Group):
    """How long a call waits; what is empty is the upstream's own."""

    connect_s: float | None = Field(None, gt=0, description="For a connection (upstreams).")
    queue_s: float | None = Field(None, gt=0, description="For a free connection when all are taken (upstreams).")
    first_token_s: float | None = Field(None, gt=0, description="For an attempt's first piece of output, in a stream.")
    answer_s: float | None = Field(None, gt=0, description="For an attempt's whole answer, where it does not stream.")
    between_tokens_s: float | None = Field(None, gt=0, description="In the middle of an answer (upstreams).")
    total_s: float | None = Field(None, gt=0, description="For the whole call, every attempt and pause included.")


class HedgeSettings(_Group):
    """A second attempt elsewhere when the first is slow to begin; who begins first answers, the other is stopped."""

    quantile: float | None = Field(
        None, gt=0, lt=1, description="After the time in which this share of the target's answers begin, such as 0.95."
    )
    after_s: float | None = Field(None, ge=0, description="Or after so many seconds.")

    @model_validator(mode="after")
    def _one_instant(self) -> HedgeSettings:
        if (self.quantile is None) == (self.after_s is None):
            raise ValueError("a hedge needs either quantile or after_s")
        return self


class FallbackSettings(_Group):
    """Models for one cause alone, before (rate_limit) or instead of (the others) the model's general `fallbacks`."""

    context: list[ModelId] = Field(default=[], description="The prompt is longer than the model's context.")
    content_policy: list[ModelId] = Field(default=[], description="The upstream refused the content.")
    rate_limit: list[ModelId] = Field(default=[], description="Every target has reached a limit of its own.")


class RouteSettings(_Group):
    """How the calls to a model are spread, repeated and given up."""

    strategy: Strategy = Field(
        "weighted", description="Which target is asked first; the others follow in the same spirit."
    )
    retry: RetrySettings = RetrySettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    hedge: HedgeSettings | None = Field(None, description="Empty: no second attempt for speed.")
    disconnect: Literal["cancel", "drain"] = Field(
        "cancel", description="When the caller hangs up: stop the engine, or read the answer on and charge all of it."
    )
    drain_s: float | None = Field(None, gt=0, description="Read on for at most so long; empty: to the end.")
    fallbacks: FallbackSettings = FallbackSettings()
    overrides: list[Override] = Field(
        default=["strategy", "attempts", "fallback", "hedge", "timeouts"],
        description="What a call may change for itself with `x-modelport-route`: any strategy, the others only down.",
    )


class VersionSettings(_Group):
    """One immutable version of a local model."""

    version: Name = "1"
    source: str = Field(
        description="A path, package:MODULE/FILE, prepared:FILE (made at set-up), hf:OWNER/REPO/FILE or https://…"
    )
    sha256: str | None = Field(None, description="Checked before the file is loaded.")
    options: dict[str, Any] = Field(default={}, description="The backend's own; see its guide.")
    deprecation: DeprecationSettings | None = Field(None, description="When this version ends.")


class ModelCacheSettings(_Group):
    """A model whose answers are given again to whoever asks the same. Without it, nothing is stored."""

    ttl_s: float = Field(300.0, gt=0, description="How old an answer may be.")
    scope: Literal["organization", "key"] = Field("organization", description="Who shares answers.")
    max_bytes: int = Field(256_000, ge=1024, description="A larger answer is not stored.")
    temperature0_only: bool = Field(False, description="Only calls that say `temperature: 0`.")
    hit_price_basis_points: int = Field(
        0, ge=0, le=10_000, description="What a hit costs, in hundredths of a percent of the price; 0 is free."
    )


class SemanticSettings(_Group):
    """A chat model with a `cache` whose answers are also given to whoever asks nearly the same."""

    threshold: float = Field(0.95, gt=0, le=1, description="The least cosine of the two last user messages.")
    embedder: ModelId = Field("all-minilm-l6-v2", description="The embedding model that compares them.")
    max_entries: int = Field(10_000, ge=1, description="Questions that each worker remembers; the oldest give way.")


class ModelSettings(_Group):
    """One public model: local (`backend` and `source` or `versions`) or upstream (`targets`)."""

    id: ModelId
    kind: Literal["chat", "embedding", "image", "tabular", "custom"] = "chat"
    backend: Literal["llamacpp", "onnx", "python", "ensemble", "sandbox"] | None = None
    source: str | None = Field(None, description="Short for one version called 1.")
    sha256: str | None = None
    options: dict[str, Any] = Field(default={}, description="The backend's own; see its guide.")
    versions: list[VersionSettings] = []
    aliases: dict[str, str] = Field(default={}, description="Moving names; `latest` and `stable`: the last version.")
    targets: list[TargetSettings] = []
    fallbacks: list[ModelId] = Field(
        default=[], description="Models that answer, at their own price, when no target of this one can."
    )
    route: RouteSettings = RouteSettings()
    prices: PriceSettings | None = Field(None, description="Empty: the built-in price list, else free.")
    cache: ModelCacheSettings | None = Field(None, description="Give answers again; empty: never.")
    semantic: SemanticSettings | None = Field(None, description="Also to nearly the same question; needs a cache.")
    slo: ModelSloSettings | None = Field(None, description="Promises of its own; empty: those of `[slo]`.")
    input_schema: dict[str, Any] | None = Field(
        None, description="JSON Schema of one input of `/v1/predict`, which every input is held to; empty: the model's."
    )
    output_schema: dict[str, Any] | None = Field(None, description="JSON Schema of one prediction, to be published.")
    description: str = ""
    context_tokens: int | None = Field(None, ge=1)
    max_output_tokens: int | None = Field(
        None, ge=1, description="Reserved for (and, on local engines, the bound of) a call that sets no max_tokens."
    )
    deprecation: DeprecationSettings | None = Field(None, description="When the model ends, all its versions with it.")

    @model_validator(mode="after")
    def _one_home(self) -> ModelSettings:
        if self.backend is None and not self.targets:
            raise ValueError(f"model {self.id!r} needs a backend (a local model) or targets (upstreams)")
        if self.backend is not None and self.targets:
            raise ValueError(f"model {self.id!r} has both a backend and targets: choose one")
        if self.backend in FILES and not (self.source or self.versions):
            raise ValueError(f"model {self.id!r} needs a source (a file) or versions")
        if self.source and self.versions:
            raise ValueError(f"model {self.id!r} has both a source and versions: choose one")
        if self.semantic is not None and self.cache is None:
            raise ValueError(f"model {self.id!r} has a semantic cache without a cache: give it one")
        return self

    def all_versions(self) -> list[VersionSettings]:
        """The versions, oldest first; a bare `source` is version 1."""
        if self.versions:
            return self.versions
        source = self.source or f"{self.backend or 'upstream'}:{self.id}"
        return [VersionSettings(version="1", source=source, sha256=self.sha256, options=self.options)]


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix="MODELPORT_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Field(Path(".modelport"), description="Everything that is written lies here.")
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    state: StateSettings = StateSettings()
    access: AccessSettings = AccessSettings()
    metering: MeteringSettings = MeteringSettings()
    limits: LimitsSettings = LimitsSettings()
    routing: RoutingSettings = RoutingSettings()
    budgets: BudgetsSettings = BudgetsSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    cache: CacheSettings = CacheSettings()
    registry: RegistrySettings = RegistrySettings()
    slo: SloSettings = SloSettings()
    log: LogSettings = LogSettings()
    egress: EgressSettings = EgressSettings()
    default_models: bool = Field(True, description="Serve the models that come with the platform beside your own.")
    upstreams: list[UpstreamSettings] = []
    models: list[ModelSettings] = []
    deprecations: list[RouteDeprecationSettings] = []

    @model_validator(mode="after")
    def _names_resolve(self) -> Settings:
        upstreams = [row.name for row in self.upstreams]
        for name in {name for name in upstreams if upstreams.count(name) > 1}:
            raise ValueError(f"two upstreams are called {name!r}")
        ids = [row.id for row in self.models]
        for id_ in {id_ for id_ in ids if ids.count(id_) > 1}:
            raise ValueError(f"two models are called {id_!r}")
        for model in self.models:
            for target in model.targets:
                if target.upstream not in upstreams:
                    raise ValueError(f"model {model.id!r} names upstream {target.upstream!r}, which is not configured")
        return self


def load(config_file: Path | None = None, **flags: Any) -> Settings:
    """The settings of this start: file, then environment, then flags (nested dictionaries).

    Raises: pydantic.ValidationError that names each wrong setting; FileNotFoundError for a missing file.
    """
    if config_file is not None and not config_file.is_file():
        raise FileNotFoundError(f"there is no configuration file {config_file}")

    class _Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = TomlConfigSettingsSource(settings_cls, toml_file=config_file)
            return (init_settings, env_settings, file)

    return Settings.model_validate(_Loaded(**flags), from_attributes=True)
