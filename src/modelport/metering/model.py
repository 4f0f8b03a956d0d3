"""What metering keeps: the usage event of one call, and a dated price."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Attempt(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """One try at answering a call. `why` says what the try before it failed of, or that it was a second one for speed;
    None for the first. `upstream` is empty for a local model; `upstream_model` the target's own name for it.

    Journals hold it as an array, so members are only ever added at the end, with a default, and never reordered.
    """

    model: str
    version: str
    backend: str
    upstream: str
    upstream_model: str
    status: int
    error_code: str | None
    started_us: int
    latency_us: int
    first_token_us: int | None
    why: str | None


class UsageEvent(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """One call, as the table `usage_events` keeps it: one member for each column, in the table's order.

    Journals hold it as an array, so members are only ever added at the end, with a default, and never reordered.
    `metadata` is shared with the call: it is read, not changed.
    """

    call_id: str
    organization_id: str
    project_id: str
    key_id: str
    mode: str
    endpoint: str
    model: str
    version: str
    backend: str
    stream: bool
    status: int
    error_code: str | None
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    images: int
    exact: bool
    cost_nanos: int
    price_id: str | None
    discount_basis_points: int
    started_us: int
    latency_us: int
    first_token_us: int | None
    metadata: dict[str, str]
    # None for the plain case: one attempt, whose facts are the event's own.
    attempts: list[Attempt] | None = None
    # The variant that answered, `exp_…=name`, of a call that was in an experiment.
    experiment: str | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs from `valid_from_us` until its next price begins.

    `…_per_mtok` are nano-dollars per million tokens, the others nano-dollars each. `cached_nanos_per_mtok` is None
    where cached input costs what other input costs. `source` says who set it: `configuration`, `price list`,
    `operator`, or `none` for a model that became free.
    """

    id: str
    model: str
    valid_from_us: int
    input_nanos_per_mtok: int = 0
    cached_nanos_per_mtok: int | None = None
    output_nanos_per_mtok: int = 0
    nanos_per_request: int = 0
    nanos_per_image: int = 0
    nanos_per_second: int = 0
    source: str = "configuration"

    @property
    def rates(self) -> tuple[int | None, ...]:
        """The amounts alone: two prices with equal rates charge the same."""
        return (
            self.input_nanos_per_mtok,
            self.cached_nanos_per_mtok,
            self.output_nanos_per_mtok,
            self.nanos_per_request,
            self.nanos_per_image,
            self.nanos_per_second,
        )
