"""Which variant a call gets. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from modelport.calls import Call
from modelport.experiments.model import Experiment, Variant

TAG = "tag:"
_STEPS = 2.0**64


def choose(experiment_id: str, unit: str, variants: Sequence[Variant]) -> Variant:
    """The unit's variant: always the same one for the same weights.

    Each unit has a lot for each variant, drawn by hash, and the least lot by weight wins. When weights change, units
    move only to variants whose share has grown; different experiments draw independently of each other.
    Source: weighted rendezvous hashing; Schindelhauer and Schomaker, "Weighted Distributed Hash Tables" (2005).
    """
    return min((variant for variant in variants if variant.weight), key=lambda one: _lot(experiment_id, unit, one))


def _lot(experiment_id: str, unit: str, variant: Variant) -> float:
    text = f"{experiment_id}\0{variant.name}\0{unit}".encode()
    drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    return -math.log((drawn + 1) / (_STEPS + 1)) / variant.weight


def unit_of(experiment: Experiment, call: Call) -> str:
    """What decides the call's variant; its key, where it lacks the tag that should."""
    sticky, caller = experiment.sticky, call.caller
    if sticky == "call":
        return call.id
    if sticky == "organization":
        return caller.organization_id
    if sticky.startswith(TAG):
        return call.metadata.get(sticky[len(TAG) :]) or caller.key_id
    return caller.key_id
