"""Idempotency-Key at the door: one run, the same bytes for whoever repeats it, and nothing for anybody else."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import APIStatusError, OpenAI

from modelport.db.engine import open_database
from tests.inside import in_flight
from tests.problems import check
from tests.rawhttp import Answer, RawClient, chat
from tests.serving import Server
from tests.store.world import Tenant, World, open_world
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { input_usd_per_mtok = "1", output_usd_per_mtok = "2" }
[[models]]
id = "vectors"
kind = "embedding"
backend = "sandbox"
[[models]]
id = "picture"
kind = "image"
backend = "sandbox"
[idempotency]
max_answer_bytes = 20_000
[limits]
management_per_minute = 100_000
"""
POSTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "sandbox", "messages": [{"role": "user", "content": "[[tokens:5]]"}]},
    "/v1/completions": {"model": "sandbox", "prompt": "[[tokens:5]]"},
    "/v1/embeddings": {"model": "vectors", "input": "x"},
    "/v1/predict": {"model": "picture", "inputs": ["x"]},
    "/v1/images/classify": {"model": "picture", "image": "eA=="},
    "/v1/api_keys": {"name": "made once"},
}
CHAT = "/v1/chat/completions"
_keys = (f"key-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("idempotency"), config=CONFIG) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(server: Server) -> AsyncIterator[World]:
    db = open_database("", data_dir=server.data_dir, pool_size=1)
    async with open_world(db) as made:
        yield made
    await db.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mallory(world: World) -> Tenant:
    return await world.tenant("Mallory")


@pytest.fixture
def once() -> str:
    """An Idempotency-Key that no other test uses."""
    return next(_keys)


def body(text: str = "[[tokens:5]]", **members: Any) -> dict[str, Any]:
    return {"model": "sandbox", "messages": [{"role": "user", "content": text}], **members}


def post(server: Server, once: str, sent: Any = None, *, path: str = CHAT, key: str = "", **headers: str) -> Answer:
    named = {"idempotency-key": once, **{name.replace("_", "-"): value for name, value in headers.items()}}
    key = key or server.credentials["api_key"]
    return Answer(*server.request("POST", path, body=sent or POSTS[path], key=key, headers=named))


def new_key(server: Server, **options: Any) -> str:
    made = post(server, next(_keys), {"name": "x", **options}, path="/v1/api_keys")
    return str(made.json()["key"])


def calls(server: Server) -> tuple[int, str]:
    """How many calls the organization made, and what they cost."""
    totals = server.get("/v1/usage", key=server.credentials["api_key"])[1]["totals"]
    return totals["calls"], totals["cost_usd"]


def database_bytes(server: Server) -> bytes:
    return b"".join(path.read_bytes() for path in server.data_dir.glob("modelport.db*"))


def is_replay(answer: Answer, first: Answer) -> bool:
    """Whether it is the same answer in every byte and header, and says so."""
    ours = ("date", "idempotent-replayed")
    told = [{name: value for name, value in one.headers.items() if name not in ours} for one in (answer, first)]
    same = (answer.status, answer.body) == (first.status, first.body) and told[0] == told[1]
    return same and "idempotent-replayed" not in first.headers and answer.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("path", POSTS)
async def test_a_repeat_is_the_same_answer_byte_for_byte_and_free(server: Server, once: str, path: str) -> None:
    before = calls(server)[0]
    first = post(server, once, path=path)
    assert first.status in (200, 201)
    for quoted in (once, f'"{once}"'):
        assert is_replay(post(server, quoted, path=path), first)
    assert calls(server)[0] == before + (path != "/v1/api_keys")


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_is_repeated_as_a_stream(server: Server, once: str, include_usage: bool) -> None:
    sent = body(stream=True, **({"stream_options": {"include_usage": True}} if include_usage else {}))
    first = post(server, once, sent)
    assert first.body.endswith(b"data: [DONE]\n\n")
    again = post(server, once, sent)
    assert is_replay(again, first)
    assert again.headers["transfer-encoding"] == "chunked"


async def test_the_official_sdk_gets_the_same_answer_and_pays_once(server: Server, once: str) -> None:
    headers = {"Idempotency-Key": once}
    with OpenAI(base_url=f"{server.base_url}/v1", api_key=server.credentials["api_key"], max_retries=0) as sdk:
        ask = sdk.chat.completions.with_raw_response.create
        first, again = (ask(**POSTS[CHAT], extra_headers=headers) for _ in range(2))
        assert first.parse() == again.parse()
        assert first.headers["x-request-id"] == again.headers["x-request-id"]
        chunks = [
            list(sdk.chat.completions.create(**POSTS[CHAT], stream=True, extra_headers={"Idempotency-Key": once + "s"}))
            for _ in range(2)
        ]
        assert chunks[0] == chunks[1]
        with pytest.raises(APIStatusError) as other:
            ask(model="sandbox", messages=[{"role": "user", "content": "other"}], extra_headers=headers)
        assert other.value.status_code == 422
        assert other.value.code == "idempotency_mismatch"


class TestRefusals:
    async def test_another_body_or_path_under_the_key_is_a_mismatch_for_good(self, server: Server, once: str) -> None:
        post(server, once)
        for sent, path in ((body("other"), CHAT), ({"model": "sandbox", "prompt": "x"}, "/v1/completions")):
            answer = post(server, once, sent, path=path)
            check(answer, 422, "idempotency_mismatch")
            assert answer.headers["x-should-retry"] == "false"

    async def test_a_request_in_flight_is_told_to_come_back(self, server: Server, once: str) -> None:
        sent = body("[[latency:1s]] [[tokens:1]]")
        first = asyncio.create_task(asyncio.to_thread(post, server, once, sent))
        await wait_until(lambda: in_flight(server) == 1, "the first is in flight")
        answer = post(server, once, sent)
        check(answer, 409, "idempotency_in_flight")
        assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")
        check(post(server, once, body("other")), 422, "idempotency_mismatch")
        ended = await first
        assert is_replay(post(server, once, sent), ended)

    @pytest.mark.parametrize("wrong", ["", '""', "k" * 256, "kéy"])
    async def test_what_is_no_key_is_refused(self, server: Server, wrong: str) -> None:
        with RawClient(server.port) as client:
            client.send(chat(server.credentials["api_key"], "x", f"idempotency-key: {wrong}"))
            answer = client.answer("POST")
            check(answer, 400, "invalid_request_error")
            assert "Idempotency-Key" in answer.json()["detail"]

    async def test_two_keys_are_none(self, server: Server) -> None:
        with RawClient(server.port) as client:
            client.send(chat(server.credentials["api_key"], "x", "idempotency-key: a", "idempotency-key: b"))
            answer = client.answer("POST")
            check(answer, 400, "invalid_request_error")
            assert "more than once" in answer.json()["detail"]

    async def test_without_an_api_key_nothing_is_claimed(self, server: Server, once: str) -> None:
        for path in (CHAT, "/v1/api_keys"):
            answer = Answer(*server.request("POST", path, body=POSTS[path], headers={"idempotency-key": once}))
            check(answer, 401, "invalid_api_key")
        assert post(server, once).status == 200


class TestWhatIsKept:
    @pytest.mark.parametrize("error", ["400", "context_length_exceeded", "429", "503"])
    async def test_refusals_run_anew(self, server: Server, once: str, error: str) -> None:
        sent = body(f"[[error:{error}]]")
        first, again = post(server, once, sent), post(server, once, sent)
        assert first.status == again.status >= 400
        assert "idempotent-replayed" not in again.headers
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert post(server, once, body("now it is right")).status == 200

    async def test_a_body_that_is_not_valid_may_be_mended_under_its_key(self, server: Server, once: str) -> None:
        check(post(server, once, {"model": "sandbox"}), 400, "invalid_request_error")
        check(post(server, once, {"name": ""}, path="/v1/api_keys"), 400, "invalid_request_error")
        assert post(server, once).status == 200

    @pytest.mark.parametrize("error", ["500", "502", "504"])
    async def test_a_failure_of_a_request_that_ran_is_its_answer(self, server: Server, once: str, error: str) -> None:
        """And SDKs are told that the same key fails for good, instead of finding out by retries."""
        sent = body(f"[[error:{error}]]")
        first = post(server, once, sent)
        assert first.headers["x-should-retry"] == "false"
        assert is_replay(post(server, once, sent), first)

    async def test_a_stream_that_broke_off_is_repeated_with_its_error(self, server: Server, once: str) -> None:
        sent = body("[[tokens:9]] [[cut:3]]", stream=True)
        first = post(server, once, sent)
        assert (first.status, b'"error"' in first.body, b"[DONE]" in first.body) == (200, True, False)
        assert is_replay(post(server, once, sent), first)

    async def test_who_hung_up_has_no_answer_and_may_ask_again(self, server: Server, once: str) -> None:
        slow = "[[tokens:200]] [[per_token:20ms]]"
        head = f"idempotency-key: {once}"
        with RawClient(server.port) as client:
            client.send(chat(server.credentials["api_key"], slow, head, stream=True))
            while not client.line().startswith(b"data:"):
                pass

        async def free() -> bool:
            return (await asyncio.to_thread(post, server, once, body("again"))).status == 200

        await wait_until(free, "the key is free again")

    async def test_an_answer_too_large_to_keep_is_not_run_again(self, server: Server, once: str) -> None:
        for stream in (False, True):
            sent, key = body("[[tokens:9000]]", stream=stream), f"{once}-{stream}"
            first, before = post(server, key, sent), calls(server)
            assert (first.status, len(first.body) > 20_000) == (200, True)
            answer = post(server, key, sent)
            check(answer, 409, "idempotency_not_kept")
            assert answer.headers["x-should-retry"] == "false"
            assert first.headers["x-request-id"] in answer.json()["detail"]
            assert calls(server) == before

    async def test_each_client_gets_the_encoding_that_it_reads(self, server: Server, once: str) -> None:
        sent = body("[[tokens:800]]")
        packed = post(server, once, sent, accept_encoding="gzip")
        plain = post(server, once, sent)
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert plain.body == gzip.decompress(packed.body)
        assert int(plain.headers["content-length"]) == len(plain.body)

    async def test_each_origin_gets_its_own_permission(self, server: Server, once: str) -> None:
        assert "access-control-allow-origin" not in post(server, once).headers
        assert post(server, once, origin="https://app.example").headers["access-control-allow-origin"] == "*"


class TestWhoGetsIt:
    async def test_mallory_gets_nothing_of_alices(self, server: Server, once: str, mallory: Tenant) -> None:
        for path in (CHAT, "/v1/api_keys"):
            first = post(server, once + path, path=path)
            hers = post(server, once + path, path=path, key=mallory.secret)
            assert hers.status == first.status
            assert "idempotent-replayed" not in hers.headers
            assert hers.headers["x-request-id"] != first.headers["x-request-id"]

    async def test_another_key_of_the_organization_gets_it_if_it_may_use_the_model(
        self, server: Server, once: str
    ) -> None:
        first = post(server, once)
        assert is_replay(post(server, once, key=new_key(server)), first)
        check(post(server, once, key=new_key(server, models=["vectors"])), 404, "model_not_found")
        check(post(server, once, key=new_key(server, scopes=["models:read"])), 403, "permission_denied")

    async def test_a_test_key_has_requests_of_its_own(self, server: Server, once: str) -> None:
        post(server, once)
        assert "idempotent-replayed" not in post(server, once, key=server.credentials["test_api_key"]).headers

    async def test_a_revoked_key_gets_nothing(self, server: Server, once: str) -> None:
        made = post(server, next(_keys), path="/v1/api_keys").json()
        post(server, once, key=made["key"])
        server.request("DELETE", f"/v1/api_keys/{made['id']}", key=server.credentials["api_key"])
        check(post(server, once, key=made["key"]), 401, "invalid_api_key")

    async def test_a_repeat_counts_as_a_request_and_uses_no_tokens(self, server: Server, once: str) -> None:
        limits = {"requests_per_minute": 3, "tokens_per_minute": 40}
        key = new_key(server, limits=limits)
        sent = body("[[tokens:20]]", max_tokens=20)
        first = post(server, once, sent, key=key)
        assert first.status == 200
        # There is no room for these tokens a second time, and none is needed.
        assert [post(server, once, sent, key=key).status for _ in range(3)] == [200, 200, 429]


class TestSecrets:
    async def test_a_new_api_key_is_shown_again_and_lies_nowhere_in_the_clear(self, server: Server, once: str) -> None:
        first = post(server, once, path="/v1/api_keys")
        again = post(server, once, path="/v1/api_keys")
        assert is_replay(again, first)
        secret = first.json()["key"].encode()
        stored = database_bytes(server)
        assert b"made once" in stored
        assert secret not in stored

    async def test_only_the_api_key_that_made_it_opens_it(self, server: Server, once: str) -> None:
        post(server, once, path="/v1/api_keys")
        other = new_key(server, scopes=["keys", "inference", "models:read"])
        answer = post(server, once, path="/v1/api_keys", key=other)
        check(answer, 422, "idempotency_mismatch")
        assert "another API key" in answer.json()["detail"]


async def test_what_was_kept_survives_a_restart(tmp_path: Path) -> None:
    server = Server(tmp_path, config=CONFIG)
    with server:
        first = post(server, "k")
        stream = post(server, "s", body(stream=True))
        key = post(server, "a", path="/v1/api_keys")
    with server:
        assert is_replay(post(server, "k"), first)
        assert is_replay(post(server, "s", body(stream=True)), stream)
        assert is_replay(post(server, "a", path="/v1/api_keys"), key)
        totals = json.loads(server.request("GET", "/v1/usage", key=server.credentials["api_key"])[2])["totals"]
        assert totals["calls"] == 2
