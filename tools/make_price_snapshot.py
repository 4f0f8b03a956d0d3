"""Write `src/modelport/metering/price_snapshot.json`, the built-in price list for upstream models.

Run in an environment of its own that has PyPI `genai-prices` (its HTTP client is not wanted among our dependencies):

    python3 -m venv /tmp/prices && /tmp/prices/bin/pip install genai-prices
    /tmp/prices/bin/python tools/make_price_snapshot.py
"""

from __future__ import annotations

import importlib.metadata
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "src/modelport/metering/price_snapshot.json"
# Resellers with hundreds of rows each; whoever uses them sets prices of their own.
LEFT_OUT = {"openrouter", "cursor", "github-copilot", "openai-decisions", "vercel"}
_NANO_DOLLAR = Decimal("0.000000001")


def main() -> None:
    from genai_prices.data import providers

    found = {
        provider.id: {
            "address": provider.api_pattern,
            "prices": {name: rates for model in provider.models for name, rates in _rows(model)},
        }
        for provider in sorted(providers, key=lambda provider: provider.id)
        if provider.id not in LEFT_OUT
    }
    body = {
        "origin": f"PyPI genai-prices {importlib.metadata.version('genai-prices')}",
        "made": datetime.now(UTC).date().isoformat(),
        "unit": "USD per million tokens: input, cached input (null: as input), output",
        "providers": found,
    }
    TARGET.write_text(json.dumps(body, indent=None, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{TARGET}: {sum(len(p['prices']) for p in found.values())} names, {TARGET.stat().st_size:,} bytes")


def _rows(model: Any) -> list[tuple[str, list[str | None]]]:
    """The model's names, each with its three rates; nothing for a model without token prices."""
    price = model.prices[-1].prices if isinstance(model.prices, list) else model.prices
    rates = [_usd(price, name) for name in ("input_mtok", "cache_read_mtok", "output_mtok")]
    if rates[0] is None and rates[2] is None:
        return []
    return [(name, [rates[0] or "0", rates[1], rates[2] or "0"]) for name in {model.id, *_equals(model.match)}]


def _usd(price: Any, name: str) -> str | None:
    value = getattr(price, name, None)
    value = getattr(value, "base", value)
    # The origin holds residues of binary fractions, such as 0.18000000000000002; money here ends at a nano-dollar.
    return None if value is None else format(Decimal(value).quantize(_NANO_DOLLAR).normalize(), "f")


def _equals(clause: Any) -> list[str]:
    """The names that a match rule spells out; patterns are left out, since they would match what nobody checked."""
    if hasattr(clause, "or_"):
        return [name for part in clause.or_ for name in _equals(part)]
    return [clause.equals] if hasattr(clause, "equals") else []


if __name__ == "__main__":
    main()
