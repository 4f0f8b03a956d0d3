"""What is counted of calls for those who keep it longer than a process lives."""

from __future__ import annotations

from typing import NamedTuple

CALL = "call"
CACHE = "cache"


class CountKey(NamedTuple):
    """What calls have in common that are counted together.

    `kind` CALL: `outcome` is the status, `stretch` the place in `kit.latency` of how long it took. CACHE: a call to a
    model with a cache, `outcome` says where its answer comes from.
    """

    kind: str
    endpoint: str
    model: str
    version: str
    outcome: str
    stretch: int
