"""Which calls ask the same: a cache that mistakes one for another answers the wrong question."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelport.calls import Call, Operation
from modelport.replay.cache import rules
from modelport.replay.cache.rules import CacheControl, cache_key, hit_discount, is_cacheable, parse_cache_control
from modelport.requests import ChatRequest, PredictRequest
from modelport.settings import ModelCacheSettings
from tests.store.metering import caller

OPTIONS = ModelCacheSettings()
_plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    _plain | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=8)}),
    min_size=1,
    max_size=3,
)


def chat(text: str, *, organization: str = "org_alice", key: str = "key_1", model: str = "m") -> Call:
    """The call that a body of this text makes."""
    return Call(
        id="req_1",
        caller=caller(organization, key=key),
        endpoint="/v1/chat/completions",
        operation=Operation.CHAT,
        model=model,
        request=msgspec.json.decode(text, type=ChatRequest),
        fields=msgspec.json.decode(text, type=dict[str, msgspec.Raw]),
        started_us=0,
        started_s=0.0,
        deadline_s=60.0,
    )


def body(messages: Any = None, **members: Any) -> dict[str, Any]:
    return {"model": "m", "messages": messages or [{"role": "user", "content": "hi"}], **members}


def key_of(text: str, *, options: ModelCacheSettings = OPTIONS, version: str = "1", **call: str) -> str:
    return cache_key(chat(text, **call), options=options, version=version)


def shuffled(value: Any, *, draw: Any) -> Any:
    """The same JSON with the members of every object in another order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name], draw=draw) for name in draw(st.permutations(list(value)))}
    return [shuffled(item, draw=draw) for item in value] if isinstance(value, list) else value


class TestCanonical:
    @given(data=st.data(), extra=_json, messages=_messages, indent=st.sampled_from([None, 1, 4]), ascii_=st.booleans())
    def test_order_white_space_and_escapes_do_not_matter(
        self, data: st.DataObject, extra: Any, messages: Any, indent: int | None, ascii_: bool
    ) -> None:
        asked = body(messages, extra=extra)
        other = shuffled(asked, draw=data.draw)
        assert key_of(json.dumps(asked)) == key_of(json.dumps(other, indent=indent, ensure_ascii=ascii_))

    @given(one=_json, other=_json)
    def test_whatever_else_differs_is_another_question(self, one: Any, other: Any) -> None:
        texts = [json.dumps(body(extra=value), sort_keys=True) for value in (one, other)]
        assume(texts[0] != texts[1])
        # 1 and 1.0 may count as one or as two: a model can't tell them apart.
        assume(one != other)
        assert key_of(texts[0]) != key_of(texts[1])

    def test_how_it_is_sent_and_for_whom_is_no_part_of_the_question(self) -> None:
        plain = key_of(json.dumps(body()))
        told = body(stream=True, stream_options={"include_usage": True}, user="u", metadata={"feature": "x"})
        assert key_of(json.dumps(told)) == plain
        assert key_of(json.dumps(body(seed=1))) != plain

    def test_files_are_told_apart_by_their_bytes(self) -> None:
        def upload(data: bytes) -> str:
            call = chat(json.dumps(body()))
            call.operation, call.fields, call.request = Operation.PREDICT, {}, PredictRequest(inputs=[data], model="m")
            return cache_key(call, options=OPTIONS, version="1")

        assert upload(b"\xff\xd8one") == upload(b"\xff\xd8one")
        assert upload(b"\xff\xd8one") != upload(b"\xff\xd8two")


class TestTenants:
    def test_mallory_never_shares_an_answer_with_alice(self) -> None:
        text = json.dumps(body())
        assert key_of(text) != key_of(text, organization="org_mallory")

    def test_keys_share_unless_the_scope_is_the_key(self) -> None:
        text, by_key = json.dumps(body()), ModelCacheSettings(scope="key")
        assert key_of(text) == key_of(text, key="key_2")
        assert key_of(text, options=by_key) != key_of(text, options=by_key, key="key_2")

    def test_model_and_version_are_part_of_it(self) -> None:
        text = json.dumps(body())
        assert len({key_of(text), key_of(text, model="m@1"), key_of(text, version="2")}) == 3


class TestCacheControl:
    @pytest.mark.parametrize(
        ("field", "meaning"),
        [
            (None, CacheControl()),
            ("", CacheControl()),
            ("no-cache", CacheControl(no_cache=True)),
            ("No-Store", CacheControl(no_store=True)),
            ("max-age=60", CacheControl(max_age_s=60)),
            ('max-age="7", no-store', CacheControl(no_store=True, max_age_s=7)),
            ("max-age=0", CacheControl(no_cache=True, max_age_s=0)),
            ("max-age=-1", CacheControl()),
            ("max-age=soon, private", CacheControl()),
            ("max-age=" + "9" * 30, CacheControl(max_age_s=999_999_999)),
        ],
    )
    def test_requests_say_what_they_want(self, field: str | None, meaning: CacheControl) -> None:
        assert parse_cache_control(field) == meaning

    def test_temperature_zero_alone_where_the_model_says_so(self) -> None:
        strict = ModelCacheSettings(temperature0_only=True)
        cases = [(body(temperature=0), True), (body(temperature=0.1), False), (body(), False)]
        for members, cacheable in cases:
            call = chat(json.dumps(members))
            assert is_cacheable(call, strict) is cacheable
            assert is_cacheable(call, OPTIONS)


class TestQuestions:
    def question(self, *messages: dict[str, Any], **members: Any) -> rules.Question | None:
        call = chat(json.dumps(body(list(messages), **members)))
        return rules.question_of(call, options=OPTIONS, version="1")

    def test_only_the_last_user_message_may_differ(self) -> None:
        def ask(text: str, before: str = "x", **members: Any) -> rules.Question:
            found = self.question(
                {"role": "user", "content": before}, {"role": "user", "content": text},
                {"role": "assistant", "content": "well,"}, **members,
            )  # fmt: skip
            assert found is not None
            return found

        assert (ask("a").text, ask("b").text) == ("a", "b")
        assert ask("a").rest == ask("b").rest
        assert len({ask("a").rest, ask("a", before="y").rest, ask("a", seed=2).rest}) == 3

    def test_parts_of_text_are_a_text_and_pictures_are_none(self) -> None:
        text = {"type": "text", "text": "a"}
        picture = {"type": "image_url", "image_url": {"url": "data:,"}}
        found = self.question({"role": "user", "content": [text, text]})
        assert found is not None
        assert found.text == "a\na"
        assert self.question({"role": "user", "content": [text, picture]}) is None
        assert self.question({"role": "assistant", "content": "a"}) is None


@given(discount=st.integers(0, 10_000), share=st.integers(0, 10_000))
def test_a_hit_never_costs_more_than_its_share(discount: int, share: int) -> None:
    both = hit_discount(discount, price_basis_points=share)
    assert 0 <= (10_000 - both) * 10_000 <= (10_000 - discount) * share
    assert (10_000 - discount) * share - (10_000 - both) * 10_000 < 10_000
