"""What the key ring remembers is used only while it is what was read last; what was forgotten holds for nobody."""

from __future__ import annotations

from dataclasses import replace

from modelport.access.cache import Entry, KeyCache
from modelport.calls import Caller

ALICE = Caller("org_a", "proj_a", "key_alice", "live", frozenset(), "free")
BOB = replace(ALICE, key_id="key_bob")
MALLORY = replace(ALICE, organization_id="org_m", key_id="key_mallory")


def cache_of(*callers: Caller, most: int = 8) -> KeyCache:
    cache = KeyCache(most)
    for caller in callers:
        cache.put(caller.key_id.encode(), Entry(caller, 0, None, None))
    return cache


def test_a_caller_holds_until_its_key_is_read_anew() -> None:
    cache = cache_of(ALICE, BOB)
    assert cache.holds(ALICE)
    assert not cache.holds(replace(ALICE)), "an equal caller that was read another time is another one"
    cache.put(ALICE.key_id.encode(), Entry(replace(ALICE, models=frozenset()), 0, None, None))
    assert not cache.holds(ALICE)
    assert cache.holds(BOB)


def test_what_was_forgotten_refused_or_pushed_out_holds_no_more() -> None:
    cache = cache_of(ALICE, BOB, MALLORY)
    cache.forget(ALICE.key_id.encode())
    cache.refuse(BOB.key_id.encode(), "revoked", 0)
    assert [cache.holds(caller) for caller in (ALICE, BOB, MALLORY)] == [False, False, True]
    cache.forget(b"", organization_id="org_m")
    assert not cache.holds(MALLORY)
    small = cache_of(ALICE, BOB, most=1)
    assert [small.holds(ALICE), small.holds(BOB)] == [False, True]
    small.clear()
    assert not small.holds(BOB)


def test_nothing_is_kept_of_keys_that_are_gone() -> None:
    cache = cache_of(*(replace(ALICE, key_id=f"key_{number}") for number in range(100)), most=4)
    assert len(cache) == len(cache._digests) == 4
