"""Which models this installation offers: the operator's rows, then those that come with the platform."""

from __future__ import annotations

from modelport.catalog.defaults import default_models
from modelport.settings import ModelSettings, Settings


def all_models(settings: Settings) -> list[ModelSettings]:
    """The configured models, then the default ones that no configured model replaces."""
    configured = {row.id for row in settings.models}
    extra = [row for row in default_models() if row.id not in configured] if settings.default_models else []
    return [*settings.models, *extra]
