"""How a model, a version or a route is retired: announced, deprecated, gone. Pure: the instant is passed in."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from modelport.errors import Gone
from modelport.settings import DeprecationSettings, RouteDeprecationSettings

# A pattern of routes: everything below the path before it.
BELOW = "/*"


class Stage(enum.StrEnum):
    """How far a retirement is."""

    ANNOUNCED = "announced"
    DEPRECATED = "deprecated"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Deprecation:
    """One retirement. `successor` is what to use instead, of the same kind; empty where there is nothing."""

    kind: Literal["route", "model", "version"]
    name: str
    deprecated_at_s: int
    sunset_at_s: int | None = None
    successor: str = ""
    link: str = ""

    def stage(self, now_us: int) -> Stage:
        """Where it stands at this instant. The sunset is the first instant at which it is gone."""
        if self.sunset_at_s is not None and now_us >= self.sunset_at_s * 1_000_000:
            return Stage.GONE
        return Stage.DEPRECATED if now_us >= self.deprecated_at_s * 1_000_000 else Stage.ANNOUNCED

    def check(self, now_us: int) -> None:
        """Raises: Gone after the sunset, naming the successor."""
        if self.stage(now_us) is Stage.GONE:
            assert self.sunset_at_s is not None
            day = datetime.fromtimestamp(self.sunset_at_s, UTC).date().isoformat()
            instead = f"; use {self.successor!r} instead" if self.successor else ""
            raise Gone(f"The {self.kind} {self.name!r} was retired on {day}{instead}.", deprecation=self)


def deprecation_of(
    kind: Literal["route", "model", "version"], name: str, row: DeprecationSettings | None
) -> Deprecation | None:
    """The retirement that a row of the settings announces, or None where there is none."""
    if row is None:
        return None
    return Deprecation(
        kind,
        name,
        deprecated_at_s=int(row.deprecated_at.timestamp()),
        sunset_at_s=int(row.sunset_at.timestamp()) if row.sunset_at is not None else None,
        successor=row.successor,
        link=row.link,
    )


class RouteDeprecations:
    """Which routes are being retired."""

    __slots__ = ("_below", "_exact", "rows")

    def __init__(self, rows: Iterable[RouteDeprecationSettings]) -> None:
        made = [deprecation_of("route", row.route, row) for row in rows]
        self.rows = [row for row in made if row is not None]
        self._exact = {row.name: row for row in self.rows if not row.name.endswith(BELOW)}
        below = [(row.name.removesuffix("*"), row) for row in self.rows if row.name.endswith(BELOW)]
        # The longest prefix is the most particular one.
        self._below = sorted(below, key=lambda pair: len(pair[0]), reverse=True)

    def find(self, path: str) -> Deprecation | None:
        """The retirement of the route at `path`: its own before that of a path above it."""
        found = self._exact.get(path)
        if found is not None:
            return found
        return next((row for prefix, row in self._below if path.startswith(prefix)), None)
