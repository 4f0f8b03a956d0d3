"""The built-in price list: what well-known upstream models cost, for models whose prices nobody configured.

`price_snapshot.json` is written by `tools/make_price_snapshot.py` and says where it comes from and when.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib.resources import files

import msgspec

# Where the address tells nothing (a proxy, a private gateway), the makers of models are asked in this order.
_MAKERS = ("openai", "anthropic", "google", "mistral", "deepseek", "x-ai", "cohere", "moonshotai", "voyageai")


class _Provider(msgspec.Struct):
    address: str
    prices: dict[str, tuple[str, str | None, str]]


class _Snapshot(msgspec.Struct):
    origin: str
    made: str
    providers: dict[str, _Provider]


@dataclass(frozen=True, slots=True)
class ListedPrice:
    """Dollars per million tokens as decimal strings; `cached` is None where cached input costs what other does."""

    input: str
    cached: str | None
    output: str


def listed_price(base_url: str, model: str) -> ListedPrice | None:
    """What `model` costs at the provider behind `base_url`, or at its maker; None for a name nobody lists."""
    providers = _snapshot().providers
    at_address = [provider for provider in providers.values() if re.match(provider.address, base_url)]
    for provider in at_address or [providers[name] for name in _MAKERS]:
        found = provider.prices.get(model)
        if found is not None:
            return ListedPrice(*found)
    return None


@functools.cache
def _snapshot() -> _Snapshot:
    return msgspec.json.decode(files("modelport.metering").joinpath("price_snapshot.json").read_bytes(), type=_Snapshot)
