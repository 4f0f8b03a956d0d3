"""Keys: what is a key and what is not, and that nobody gives more than they have."""

from __future__ import annotations

import re
import zlib
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from modelport.access import grants
from modelport.access.model import Grant, KeyChange
from modelport.access.rules import (
    ALPHABET,
    KEY_CHARS,
    SCOPES,
    check_scopes,
    checksum,
    find_mode,
    hash_key,
    is_within,
    make_key,
    parse_networks,
)
from modelport.calls import Limits, Mode
from modelport.errors import BadRequest, PermissionDenied

MODES = st.sampled_from(["live", "test"])
_NETWORKS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24", "2001:db8::/32")
_OPTIONAL_LIMIT = st.none() | st.integers(0, 1000)
GRANTS = st.builds(
    Grant,
    mode=MODES,
    scopes=st.frozensets(st.sampled_from(sorted(SCOPES)), min_size=1),
    models=st.none() | st.frozensets(st.sampled_from(["a", "b", "c"])),
    limits=st.builds(Limits, _OPTIONAL_LIMIT, _OPTIONAL_LIMIT, _OPTIONAL_LIMIT),
    allowed_ips=st.none() | st.lists(st.sampled_from(_NETWORKS), min_size=1, max_size=3).map(tuple),
    expires_us=st.none() | st.integers(1, 1000),
)
FULL = Grant(mode="live", scopes=frozenset(SCOPES))


@given(MODES)
def test_a_made_key_has_the_published_format(mode: Mode) -> None:
    key = make_key(mode)
    assert re.fullmatch(rf"mp_{mode}_[0-9A-Za-z]{{40}}[0-9A-Za-z]{{6}}", key)
    assert len(key) == KEY_CHARS
    assert find_mode(key) == mode


@given(st.text(max_size=60))
def test_the_checksum_is_crc_32_in_base62(body: str) -> None:
    number = 0
    for character in checksum(body):
        number = number * 62 + ALPHABET.index(character)
    assert number == zlib.crc32(body.encode())


@given(MODES, st.integers(0, KEY_CHARS - 1), st.sampled_from(ALPHABET))
def test_any_one_wrong_character_is_noticed_without_a_look_up(mode: Mode, place: int, character: str) -> None:
    key = make_key(mode)
    wrong = key[:place] + character + key[place + 1 :]
    assert find_mode(wrong) == (mode if wrong == key else None)


@given(MODES, st.integers(0, KEY_CHARS - 2))
def test_two_swapped_characters_are_noticed(mode: Mode, place: int) -> None:
    key = make_key(mode)
    swapped = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    assert find_mode(swapped) == (mode if swapped == key else None)


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_anything_that_is_no_key_is_refused_and_never_fails(text: str) -> None:
    assert find_mode(text) is None
    assert len(hash_key(text)) == 32


def test_no_two_keys_are_alike() -> None:
    assert len({make_key("live") for _ in range(1000)}) == 1000


def test_an_unknown_scope_is_named_beside_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"'everything'.*inference"):
        check_scopes(["inference", "everything"])
    with pytest.raises(BadRequest, match="at least one"):
        check_scopes([])


@pytest.mark.parametrize(
    ("address", "networks", "inside"),
    [
        ("203.0.113.9", ["203.0.113.0/24"], True),
        ("203.0.114.9", ["203.0.113.0/24"], False),
        ("::ffff:203.0.113.9", ["203.0.113.0/24"], True),
        ("2001:db8::1", ["203.0.113.0/24", "2001:db8::/32"], True),
        ("fe80::1%eth0", ["fe80::/10"], True),
        ("", ["0.0.0.0/0"], False),
        ("/run/socket", ["0.0.0.0/0"], False),
    ],
)
def test_an_address_is_inside_of_a_network_or_outside(address: str, networks: list[str], inside: bool) -> None:
    assert is_within(address, parse_networks(networks)) is inside


@pytest.mark.parametrize("text", ["203.0.113.9/24", "localhost", "", "10.0.0.0/33"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(BadRequest, match="no IP address"):
        parse_networks([text])


def covers(giver: Grant, wanted: Grant) -> bool:
    """The rule, in other words than the code's: everything `wanted` allows, `giver` allows."""
    own_networks = None if giver.allowed_ips is None else parse_networks(giver.allowed_ips)
    wanted_networks = None if wanted.allowed_ips is None else parse_networks(wanted.allowed_ips)
    return (
        (giver.mode == "live" or wanted.mode == "test")
        and wanted.scopes <= giver.scopes
        and (giver.models is None or (wanted.models is not None and wanted.models <= giver.models))
        and all(
            (own := getattr(giver.limits, field.name)) is None
            or ((new := getattr(wanted.limits, field.name)) is not None and new <= own)
            for field in fields(Limits)
        )
        and (
            own_networks is None
            or (
                wanted_networks is not None
                and all(
                    any(new.version == own.version and new.subnet_of(own) for own in own_networks)  # type: ignore[arg-type]
                    for new in wanted_networks
                )
            )
        )
        and (giver.expires_us is None or (wanted.expires_us is not None and wanted.expires_us <= giver.expires_us))
    )


@given(GRANTS, GRANTS)
def test_a_grant_passes_exactly_when_the_giver_has_all_of_it(giver: Grant, wanted: Grant) -> None:
    if covers(giver, wanted):
        grants.check_within(wanted, giver)
    else:
        with pytest.raises(PermissionDenied):
            grants.check_within(wanted, giver)


@given(GRANTS, GRANTS)
def test_what_was_not_asked_for_is_inherited_and_never_more(giver: Grant, wanted: Grant) -> None:
    bare = Grant(mode=wanted.mode, scopes=wanted.scopes & giver.scopes)
    full = grants.inherit(bare, giver)
    assert full == replace(giver, mode=bare.mode, scopes=bare.scopes)


@pytest.mark.parametrize(
    ("giver", "wanted", "param"),
    [
        ({"scopes": frozenset({"keys"})}, {"scopes": frozenset({"keys", "billing"})}, "scopes"),
        ({"mode": "test"}, {}, "mode"),
        ({"models": frozenset({"a"})}, {"models": frozenset({"a", "b"})}, "models"),
        ({"limits": Limits(10)}, {"limits": Limits(11)}, "limits.requests_per_minute"),
        ({"limits": Limits(None, 10)}, {"limits": Limits()}, "limits.tokens_per_minute"),
        ({"allowed_ips": ("10.0.0.0/8",)}, {"allowed_ips": ("11.0.0.0/8",)}, "allowed_ips"),
        ({"expires_us": 10}, {"expires_us": 11}, "expires_at"),
    ],
)
def test_each_escalation_is_refused_by_name(giver: dict[str, Any], wanted: dict[str, Any], param: str) -> None:
    with pytest.raises(PermissionDenied) as refused:
        grants.check_within(replace(FULL, **wanted), replace(FULL, **giver))
    assert refused.value.param == param


@given(GRANTS, GRANTS)
def test_a_change_touches_what_it_names_and_nothing_else(grant: Grant, giver: Grant) -> None:
    assert grants.change(grant, KeyChange(name="other"), giver) == grant
    changed = grants.change(grant, KeyChange(expires_us=None, limits=None), giver)
    assert changed == replace(grant, expires_us=giver.expires_us, limits=giver.limits)


@given(GRANTS)
def test_lifting_every_restriction_gives_at_most_what_the_giver_has(giver: Grant) -> None:
    lifted = grants.change(
        replace(giver, mode="test"), KeyChange(models=None, limits=None, allowed_ips=None, expires_us=None), giver
    )
    grants.check_within(lifted, giver)
    assert KeyChange().models is UNSET
