"""Request bodies are bounded in depth and refused by the member that is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.api.bodies import check_depth, decode, metadata_tags
from modelport.errors import BadRequest
from modelport.requests import ChatRequest, PredictRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\[]{}', max_size=6),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=20,
)


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(child) for child in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(child) for child in value), default=0)
    return 0


@given(JSON, st.integers(0, 6))
def test_depth_is_judged_as_a_parser_would(value: object, most: int) -> None:
    body = json.dumps(value).encode()
    if _depth(value) > most:
        with pytest.raises(BadRequest):
            check_depth(body, most=most)
    else:
        check_depth(body, most=most)


def test_a_hundred_thousand_brackets_are_refused() -> None:
    with pytest.raises(BadRequest, match="nested deeper"):
        decode(b'{"model":"m","inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", PredictRequest, max_depth=64)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":[{"role":"robot","content":"x"}]}', "messages[0].role"),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":0}', "max_tokens"),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":"hot"}', "temperature"),
    ],
)
def test_a_wrong_member_is_named(body: bytes, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(body, ChatRequest, max_depth=64)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"  ", b"{", b"[]", b"nonsense", b'{"model":"\xff"}', b'"text"', b"null"])
def test_no_object_is_a_clear_refusal(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode(body, ChatRequest, max_depth=64)


def test_unknown_members_keep_their_bytes() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"new_thing":{"a": 1.50}}'
    _, fields = decode(body, ChatRequest, max_depth=64)
    assert bytes(fields["new_thing"]) == b'{"a": 1.50}'


def test_metadata_is_scalars_within_bounds() -> None:
    assert metadata_tags({"feature": "chat", "seat": 7, "beta": True}) == {
        "feature": "chat",
        "seat": "7",
        "beta": "true",
    }
    for wrong in ({"a": {}}, {"a": None}, {"x" * 65: "a"}, {"a": "x" * 513}, {str(n): "x" for n in range(17)}):
        with pytest.raises(BadRequest):
            metadata_tags(wrong)
