"""What was measured of the model servers, and what follows from it: medians, ratios inside a round, verdicts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.figures import MOST_FOREIGN_SHARE, Verdict

OURS = "modelport"
# With the SLO as the model's own: it refuses what would come later.
OURS_IN_TIME = "modelport-200ms"
_FAMILY = frozenset({OURS, OURS_IN_TIME})
SLO_MS = 200
# Answers are asked for at so many times the pace that the server itself reached.
OVERLOAD = 1.5


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load: `clients` that each wait for their answer, or none: calls that come at their own pace."""

    name: str
    title: str
    clients: int


ONE, SIXTEEN, SIXTY_FOUR = Load("1", "1 client", 1), Load("16", "16 clients", 16), Load("64", "64 clients", 64)
OPEN = Load("open", f"{OVERLOAD} × its capacity", 0)
CLOSED = (ONE, SIXTEEN, SIXTY_FOUR)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One load on one server. Latencies are those of right answers; `refused`: 429 or 503, which are no errors.

    `in_time_per_s`: right answers within the SLO; `due_per_s`: calls that an open load asked for.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    in_time_per_s: float
    due_per_s: float
    answers: int
    refused: int
    wrong: int
    errors: int
    unsent: int
    cpu_us_per_call: float
    foreign_share: float

    @property
    def clean(self) -> bool:
        """Whether every answer was right; where calls come too fast, a server may lose some, which then don't count."""
        return self.wrong == 0 and self.answers > 0 and (self.errors == 0 or self.due_per_s > 0)

    @property
    def quiet(self) -> bool:
        return self.foreign_share <= MOST_FOREIGN_SHARE


@dataclass(frozen=True, slots=True)
class Life:
    """A server outside of loads: seconds to its first answer, share of a core when idle, memory before and after."""

    ready_s: float
    idle_share: float
    idle_bytes: int
    after_bytes: int
    lag_p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """onnxruntime alone: milliseconds for one input, inputs a second one by one and in full batches."""

    lone_ms: float
    per_s: float
    batched_per_s: float
    foreign_share: float = 0.0

    @property
    def quiet(self) -> bool:
        return self.foreign_share <= MOST_FOREIGN_SHARE


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens a second of the raw engine and of Modelport at so many streams, of one round."""

    streams: int
    raw_per_s: float
    ours_per_s: float


@dataclass(slots=True)
class Round:
    """What one round found, by model; then by server; then by load."""

    raw: dict[str, Raw] = field(default_factory=dict)
    lives: dict[str, dict[str, Life]] = field(default_factory=dict)
    loads: dict[str, dict[str, dict[str, Measurement]]] = field(default_factory=dict)
    tokens: list[Tokens] = field(default_factory=list)

    def load(self, model: str, peer: str, load: Load) -> Measurement | None:
        return self.loads.get(model, {}).get(peer, {}).get(load.name)


@dataclass(slots=True)
class Figures:
    """All rounds."""

    rounds: list[Round] = field(default_factory=list)

    def life(self, model: str, peer: str, value: Callable[[Life], float | None]) -> float | None:
        lives = [one.lives.get(model, {}).get(peer) for one in self.rounds]
        return middle(value(life) for life in lives if life is not None)

    def raw(self, model: str, value: Callable[[Raw], float]) -> float | None:
        return middle(value(one.raw[model]) for one in self.rounds if model in one.raw)

    def load(self, model: str, peer: str, load: Load, value: Callable[[Measurement], float]) -> float | None:
        """The median of the clean rounds."""
        found = [one.load(model, peer, load) for one in self.rounds]
        return middle(value(one) for one in found if one is not None and one.clean)

    def of_raw(self, model: str, peer: str, load: Load) -> float | None:
        """The server's pace as a share of onnxruntime's alone, in the same round."""
        pairs = ((one.load(model, peer, load), one.raw.get(model)) for one in self.rounds)
        return middle(found.per_s / raw.per_s for found, raw in pairs if found is not None and found.clean and raw)

    def over_raw_ms(self, model: str, peer: str) -> float | None:
        """What a lone call takes beyond the model's own time."""
        pairs = ((one.load(model, peer, ONE), one.raw.get(model)) for one in self.rounds)
        return middle(found.p50_ms - raw.lone_ms for found, raw in pairs if found is not None and found.clean and raw)

    def in_time_share(self, model: str, peer: str) -> float | None:
        """Under overload: right answers in time, as a share of what the server can do at all."""
        return middle(
            found.in_time_per_s / (found.due_per_s / OVERLOAD)
            for one in self.rounds
            if (found := one.load(model, peer, OPEN)) is not None and found.wrong == 0 and found.due_per_s
        )

    def lead(
        self, model: str, load: Load, value: Callable[[Measurement], float], *, least: bool = False
    ) -> float | None:
        """How many times better we are than the best of the others in the same round (below 1: worse)."""
        return middle(_lead(one, model, load, value, least=least) for one in self.rounds)

    def quiet(self, model: str, load: Load) -> bool:
        """Whether in at least one round nobody else used the servers' core while this load was measured."""
        for one in self.rounds:
            row = [peers.get(load.name) for peers in one.loads.get(model, {}).values()]
            raw = one.raw.get(model)
            if raw is not None and raw.quiet and row and all(found is None or found.quiet for found in row):
                return True
        return False


def _lead(one: Round, model: str, load: Load, value: Callable[[Measurement], float], *, least: bool) -> float | None:
    found = {
        peer: value(measured)
        for peer, loads in one.loads.get(model, {}).items()
        if (measured := loads.get(load.name)) is not None and measured.clean
    }
    ours = found.get(OURS)
    found = {peer: measured for peer, measured in found.items() if peer not in _FAMILY}
    if ours is None or not found or not ours:
        return None
    return min(found.values()) / ours if least else ours / max(found.values())


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is there."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


def verdicts(figures: Figures) -> list[Verdict]:
    """The targets, one by one."""
    rows = []
    for model in ("image", "tabular"):
        for load in CLOSED:
            quiet = figures.quiet(model, load)
            pace = figures.lead(model, load, lambda m: m.per_s)
            tail = figures.lead(model, load, lambda m: m.p99_ms, least=True)
            rows.append(_least(f"{model}, {load.title}: answers/s, of the best other", pace, "×", 1.0, quiet))
            rows.append(
                _least(f"{model}, {load.title}: p99, the best other's is so many times ours", tail, "×", 1.0, quiet)
            )
    rows += _of_raw(figures)
    for model in ("image", "tabular"):
        share = figures.in_time_share(model, OURS_IN_TIME)
        title = f"{model}, {OVERLOAD} × overload: in time, of capacity: at least 0.95"
        rows.append(_least(title, share, "", 0.95, figures.quiet(model, OPEN)))
        idle = figures.life(model, OURS, lambda life: life.idle_share * 100)
        rows.append(_most(f"{model}, idle: below 0.5 % of a core", idle, "%", 0.5))
    lag = figures.life("image", OURS, lambda life: life.lag_p99_ms)
    quiet = figures.quiet("image", SIXTY_FOUR)
    rows.append(
        _most("image, event loop's lag at 1, 16 and 64 clients, p99: at most 5 ms", lag, "ms", 5.0, quiet=quiet)
    )
    return rows + _tokens(figures)


def _of_raw(figures: Figures) -> list[Verdict]:
    rows = [
        _least(
            f"image, {load.title}: at least 0.95 of onnxruntime alone",
            figures.of_raw("image", OURS, load),
            "×",
            0.95,
            figures.quiet("image", load),
        )
        for load in (SIXTEEN, SIXTY_FOUR)
    ]
    for model in ("image", "tabular"):
        over, own = figures.over_raw_ms(model, OURS), figures.raw(model, lambda raw: raw.lone_ms)
        title = f"{model}, 1 client: over the model's own time: at most 15 % of it and 2 ms"
        bound = 0.0 if own is None else 0.15 * own + 2
        rows.append(_most(title, over, "ms", bound, quiet=figures.quiet(model, ONE)))
    over = figures.over_raw_ms("image", OURS)
    title = "image, 1 client: over the model's own time: at most 0.8 ms"
    rows.append(_most(title, over, "ms", 0.8, quiet=figures.quiet("image", ONE)))
    return rows


def _tokens(figures: Figures) -> list[Verdict]:
    rows = []
    for streams in sorted({tokens.streams for one in figures.rounds for tokens in one.tokens}):
        title = f"SmolLM2, {streams} streams: at least 0.97 of the raw engine's tokens/s"
        rows.append(_least(title, tokens_ratio(figures, streams), "×", 0.97, quiet=True))
    return rows


def tokens_ratio(figures: Figures, streams: int) -> float | None:
    """Our tokens a second for one of the raw engine's, in the same round."""
    found = [tokens for one in figures.rounds for tokens in one.tokens if tokens.streams == streams]
    return middle(tokens.ours_per_s / tokens.raw_per_s for tokens in found)


def _least(target: str, found: float | None, unit: str, bound: float, quiet: bool) -> Verdict:
    return Verdict(target, found, unit, None if found is None or not quiet else found >= bound)


def _most(target: str, found: float | None, unit: str, bound: float, *, quiet: bool = True) -> Verdict:
    return Verdict(target, found, unit, None if found is None or not quiet else found <= bound)


def peers_of(figures: Figures, model: str, order: Sequence[str]) -> list[str]:
    """The servers that were measured with a model, in this order."""
    measured = {peer for one in figures.rounds for peer in one.loads.get(model, {})}
    return [peer for peer in order if peer in measured]
