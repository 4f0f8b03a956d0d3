"""Which requests are the same, which answers are kept, and what a seal keeps from whom."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.errors import BadRequest, IdempotencyInFlight, IdempotencyMismatch, IdempotencyNotKept
from modelport.replay.idempotency.model import Claim, KeptAnswer, Record
from modelport.replay.idempotency.rules import answer_of, claim_of, is_kept, parse_key
from modelport.replay.idempotency.seal import pack, unpack
from tests.store.metering import caller

ANSWER = KeptAnswer(201, [(b"content-type", b"application/json")], b'{"key": "mp_live_secret"}', False)


def claim(key: str = "k", *, body: bytes = b"{}", path: str = "/v1/x", who: str = "org_alice", **of: str) -> Claim:
    return claim_of(caller(who, **of), key, method="POST", path=path, body=body, call_id="req_1")


class TestKeys:
    @pytest.mark.parametrize(
        ("field", "key"),
        [("abc", "abc"), ('"abc"', "abc"), ("  abc ", "abc"), (r'"a\"b\\c"', 'a"b\\c'), ('"', '"'), ("a b", "a b")],
    )
    def test_quoted_and_bare_are_one_key(self, field: str, key: str) -> None:
        assert parse_key(field) == key

    @given(key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255))
    def test_what_is_quoted_is_read_back(self, key: str) -> None:
        assert parse_key(json.dumps(key)) == key

    def test_the_longest_key_passes_and_a_longer_one_does_not(self) -> None:
        assert parse_key("k" * 255) == "k" * 255
        assert parse_key('"' + "k" * 255 + '"') == "k" * 255
        with pytest.raises(BadRequest, match="255"):
            parse_key("k" * 256)

    @pytest.mark.parametrize("field", ["", "   ", '""', "schlüssel", "a\tb", '"a\x00b"'])
    def test_what_is_no_key_is_refused(self, field: str) -> None:
        with pytest.raises(BadRequest):
            parse_key(field)


class TestFingerprints:
    def test_path_body_and_tenant_tell_requests_apart(self) -> None:
        same = claim()
        assert claim() == same
        assert claim(key="other").fingerprint == same.fingerprint
        for other in (claim(body=b"{} "), claim(path="/v1/y"), claim(who="org_mallory")):
            assert other.fingerprint != same.fingerprint

    def test_every_key_of_an_organization_repeats_the_same_request(self) -> None:
        assert claim(key="k") == claim_of(
            caller(key="key_2"), "k", method="POST", path="/v1/x", body=b"{}", call_id="req_1"
        )

    def test_test_mode_has_keys_of_its_own(self) -> None:
        """The sandbox's answer in a model's name is never given to a live call."""
        test = dataclasses.replace(caller(), mode="test")
        sandbox = claim_of(test, "k", method="POST", path="/v1/x", body=b"{}", call_id="req_1")
        assert sandbox.key_hash != claim().key_hash


@pytest.mark.parametrize(
    ("status", "kept"),
    [(200, True), (201, True), (204, True), (500, True), (502, True), (504, True)]
    + [(status, False) for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 499, 503)],
)
def test_refusals_and_hang_ups_are_not_kept(status: int, kept: bool) -> None:
    assert is_kept(status) is kept


class TestRepeats:
    def test_an_ended_request_gives_its_answer(self) -> None:
        mine = claim()
        assert answer_of(Record(mine.fingerprint, "req_0", None, b"x"), mine) == b"x"

    def test_another_request_under_the_key_is_a_mismatch_also_while_the_first_runs(self) -> None:
        for lease_us, answer in ((1, None), (None, b"x"), (None, None)):
            with pytest.raises(IdempotencyMismatch):
                answer_of(Record("another", "req_0", lease_us, answer), claim())

    def test_a_running_request_is_temporary_and_a_lost_answer_is_not(self) -> None:
        mine = claim()
        with pytest.raises(IdempotencyInFlight) as running:
            answer_of(Record(mine.fingerprint, "req_0", 1, None), mine)
        assert (running.value.should_retry, running.value.retry_after_s) == (True, 1.0)
        with pytest.raises(IdempotencyNotKept, match="req_0") as lost:
            answer_of(Record(mine.fingerprint, "req_0", None, None), mine)
        assert lost.value.should_retry is False


class TestSeals:
    @pytest.mark.parametrize("secret", [None, "mp_live_mine"])
    def test_who_asked_gets_every_byte_back(self, secret: str | None) -> None:
        assert unpack(pack(ANSWER, claim(), secret=secret), claim(), secret="mp_live_mine") == ANSWER

    def test_the_table_does_not_show_a_sealed_answer(self) -> None:
        stored = pack(ANSWER, claim(), secret="mp_live_mine")
        assert b"secret" not in stored
        assert stored != pack(ANSWER, claim(), secret="mp_live_mine")

    def test_another_api_key_and_another_row_open_nothing(self) -> None:
        stored = pack(ANSWER, claim(), secret="mp_live_mine")
        for where, secret in ((claim(), "mp_live_other"), (claim("other"), "mp_live_mine")):
            with pytest.raises(IdempotencyMismatch):
                unpack(stored, where, secret=secret)
