"""Redis goes away in every way it can: nothing hangs, nothing passes unseen, and all is right when it is back."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelport.errors import StateUnavailable
from modelport.state.protocol import Bucket, Subscription
from modelport.state.redis import RedisState
from modelport.state.redis_address import parse_address
from tests.services import Service, free_port, start_redis
from tests.store.redis_command import redis_command
from tests.waiting import wait_until

_RATE = Bucket("org:rpm", "rpm", 1_000, 3_600, 1)
_CALLS = Bucket("org:calls", "calls", 3, 0, 1)
_MANY = Bucket("org:calls", "calls", 100, 0, 1)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelport.state.redis.COMMAND_TIMEOUT_S", 0.3)


@pytest.fixture
async def state(redis_service: Service) -> AsyncIterator[RedisState]:
    state = RedisState(redis_service.url)
    await state.start()
    yield state
    await state.close()


async def _answers(state: RedisState) -> bool:
    try:
        await state.ping()
    except StateUnavailable:
        return False
    return True


async def _does_not_answer(state: RedisState) -> bool:
    return not await _answers(state)


async def _all(subscription: Subscription) -> list[bytes]:
    return [message async for message in subscription]


@pytest.mark.parametrize("way", ["killed", "stopped", "paused"])
async def test_every_operation_fails_soon_while_redis_is_away_and_works_again_when_it_is_back(
    way: str, state: RedisState, redis_service: Service
) -> None:
    held = await state.take("c", [_CALLS])
    {"killed": redis_service.kill, "stopped": redis_service.stop, "paused": redis_service.pause}[way]()
    for operation in (
        lambda: state.take("c", [_RATE]),
        lambda: state.settle(held, [1]),
        lambda: state.peek([_RATE]),
        lambda: state.raise_fence("keys"),
        lambda: state.get("k"),
        lambda: state.set("k", b"x", ttl_s=1),
        lambda: state.add("k", b"x", ttl_s=1),
        lambda: state.delete("k"),
        lambda: state.lease("k", "me", ttl_s=1),
        lambda: state.release("k", "me"),
        lambda: state.publish("c", b"x"),
        lambda: state.subscribe("c").__aenter__(),
        state.ping,
    ):
        with pytest.raises(StateUnavailable):
            async with asyncio.timeout(20):
                await operation()
    redis_service.resume() if way == "paused" else redis_service.restart()
    await wait_until(lambda: _answers(state), "the state is back")
    assert (await state.take("c", [_RATE, _CALLS])).levels[1].remaining == 2


@pytest.mark.parametrize("way", ["killed", "paused"])
async def test_a_subscription_is_lost_the_moment_the_connection_is(
    way: str, state: RedisState, redis_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with state.subscribe("c") as subscription:
        reader = asyncio.create_task(_all(subscription))
        redis_service.kill() if way == "killed" else redis_service.pause()
        # A frozen server says nothing: it is noticed by the next command or renewal.
        await wait_until(lambda: _does_not_answer(state), "the loss is noticed")
        assert not subscription.alive
        assert await reader == []
    redis_service.restart() if way == "killed" else redis_service.resume()
    await wait_until(lambda: _answers(state), "the state is back")
    async with state.subscribe("c") as subscription:
        await state.publish("c", b"again")
        async for message in subscription:
            assert message == b"again"
            break


async def test_what_is_held_still_counts_in_a_redis_that_lost_its_memory(
    state: RedisState, redis_service: Service
) -> None:
    held = [await state.take("c", [_CALLS]) for _ in range(3)]
    redis_service.kill()
    redis_service.start()
    await wait_until(lambda: _answers(state), "the state is back")
    assert not (await state.take("d", [_CALLS])).allowed
    await state.settle(held[0], [1])
    assert (await state.take("d", [_CALLS])).allowed


async def test_takes_and_settlements_cut_off_in_flight_leave_no_wrong_hold(
    state: RedisState, redis_service: Service
) -> None:
    held = [await state.take("c", [_MANY]) for _ in range(10)]
    redis_service.pause()
    lost = [state.take("lost", [_MANY]) for _ in range(20)] + [state.settle(one, [1]) for one in held[:4]]
    outcomes = await asyncio.gather(*lost, return_exceptions=True)
    assert all(isinstance(outcome, StateUnavailable) for outcome in outcomes)
    # The frozen server finds those takes in its socket and runs them now, for nobody.
    redis_service.resume()
    await wait_until(lambda: _answers(state), "the state is back")
    assert (await state.peek([_MANY]))[0].remaining == 100 - 6


async def test_a_fence_never_has_an_earlier_value_again(state: RedisState, redis_service: Service) -> None:
    seen = [(await state.take("c", [], fence="keys")).fence, await state.raise_fence("keys")]
    for _ in range(2):
        await redis_command(redis_service, "FLUSHALL")
        seen.append((await state.take("c", [], fence="keys")).fence)
        seen.append(await state.raise_fence("keys"))
    assert seen == sorted(set(seen))


async def test_flushed_scripts_and_data_are_put_back(state: RedisState, redis_service: Service) -> None:
    held = await state.take("c", [_CALLS])
    await redis_command(redis_service, "SCRIPT", "FLUSH")
    assert (await state.take("c", [_CALLS])).levels[0].remaining == 1
    await state.settle(held, [1])
    await redis_command(redis_service, "FLUSHALL")
    assert (await state.take("c", [_CALLS])).levels[0].remaining == 1


async def test_a_redis_that_is_not_there_at_start_is_found_later(redis_service: Service) -> None:
    redis_service.stop()
    state = RedisState(redis_service.url)
    await state.start()
    with pytest.raises(StateUnavailable):
        await state.take("c", [_RATE])
    redis_service.start()
    await wait_until(lambda: _answers(state), "the state is reached")
    await state.close()


async def test_password_user_and_database_come_from_the_url() -> None:
    users = ["--user", "worker", "on", ">pw", "~*", "&*", "+@all"]
    users += ["--user", "modest", "on", ">pw", "~*", "&*", "+@all", "-info"]
    service = start_redis("--requirepass", "s3cret/ü", *users)
    address = service.url.removeprefix("redis://").removesuffix("/0")
    try:
        for credentials, lets_in in (
            (":s3cret%2F%C3%BC@", True),
            ("worker:pw@", True),
            ("modest:pw@", True),
            (":wrong@", False),
            ("", False),
        ):
            state = RedisState(f"redis://{credentials}{address}/3")
            await state.start()
            assert await _answers(state) == lets_in
            await state.close()
    finally:
        service.remove()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=redis"]
    subprocess.run([*make, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return certificate, key


async def test_tls_checks_the_server(certificate: tuple[Path, Path]) -> None:
    (certificate_file, key_file), port = certificate, free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate_file), "--tls-key-file", str(key_file)]
    service = start_redis(*tls, "--tls-ca-cert-file", str(certificate_file), "--tls-auth-clients", "no")
    try:
        for option, lets_in in ((f"?ssl_ca_certs={certificate_file}", True), ("", False)):
            state = RedisState(f"rediss://127.0.0.1:{port}/0{option}")
            await state.start()
            assert await _answers(state) == lets_in
            await state.close()
    finally:
        service.remove()


def test_a_wrong_url_says_what_is_wrong_and_never_the_password() -> None:
    for url in (
        "http://:pw@h",
        "redis://:pw@h/x",
        "redis://user:pw/rest@h",
        "redis://:pw@h:99999",
        "redis://:pw@h?ssl_ca_certs=/x",
        "rediss://:pw@h?other=1",
    ):
        with pytest.raises(ValueError) as raised:
            parse_address(url)
        assert "pw" not in str(raised.value)
