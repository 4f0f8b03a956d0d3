"""Logs are one JSON object a line, carry the request's id, and never a secret."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from modelport.observe import logs
from modelport.settings import LogSettings
from tests.waiting import wait_until

KEY = "mp_live_" + "aB3" * 15 + "z"


@pytest.fixture
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    monkeypatch.setattr(logs, "_sink", logs.Sink(fd))
    logs.configure(LogSettings(format="json"))
    yield path
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    os.close(fd)


def lines(path: Path) -> list[dict[str, object]]:
    logs.flush()
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_every_kind_of_line_is_json_with_time_level_and_event(log_file: Path) -> None:
    structlog.get_logger("modelport").info("began", workers=2)
    logging.getLogger("sqlalchemy.pool").warning("odd %s", "thing")
    logs.access_line(request_id="req_1", status=200)
    written = lines(log_file)
    assert [(line["level"], line["event"]) for line in written] == [
        ("info", "began"),
        ("warning", "odd thing"),
        ("info", "request"),
    ]
    assert all(str(line["time"]).endswith("Z") for line in written)


def test_a_line_carries_the_id_of_its_request(log_file: Path) -> None:
    token = logs.request_id.set("req_7")
    structlog.get_logger("modelport").info("one")
    logging.getLogger("modelport.x").warning("two")
    logs.request_id.reset(token)
    structlog.get_logger("modelport").info("three")
    assert [line.get("request_id") for line in lines(log_file)] == ["req_7", "req_7", None]


def test_secrets_never_reach_the_file_whoever_logs_them(log_file: Path) -> None:
    structlog.get_logger("modelport").info("oops", key=KEY, header=f"Bearer {KEY}", nested={"k": [KEY]})
    logging.getLogger("sqlalchemy.engine").warning("connect postgresql://modelport:hunter2secret@db/x")
    logs.access_line(path=f"/v1/models?key={KEY}", upstream="sk-proj-0123456789abcdef0123")
    try:
        raise ValueError(KEY)
    except ValueError:
        structlog.get_logger("modelport").exception("failed")
    lines(log_file)
    content = log_file.read_bytes()
    assert content.count(b"mp_live_***") >= 4
    for secret in (KEY[8:].encode(), b"hunter2secret", b"0123456789abcdef0123"):
        assert secret not in content


def test_an_exception_is_written_with_its_trace(log_file: Path) -> None:
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        structlog.get_logger("modelport").exception("broke")
        logging.getLogger("asyncio").exception("broke too")
    assert ["ZeroDivisionError" in str(line["exception"]) for line in lines(log_file)] == [True, True]


def test_what_can_not_be_json_and_what_is_endless_still_make_a_line(log_file: Path) -> None:
    structlog.get_logger("modelport").info("odd", thing=object(), path=Path("/x"))
    structlog.get_logger("modelport").info("long", text="x" * 1_000_000)
    # Straight to our handler: the test runner's own would stumble over this one.
    logs._Handler().emit(logging.LogRecord("modelport", logging.WARNING, "", 0, "%d arguments", ("no",), None))
    first, second, third = lines(log_file)
    assert "object object" in str(first["thing"])
    assert second.keys() == {"time", "level", "event", "cut_bytes"}
    assert third["event"] == "%d arguments"


def test_the_level_holds_for_libraries_too(log_file: Path) -> None:
    logging.getLogger("alembic.runtime").info("step")
    structlog.get_logger("modelport").debug("detail")
    assert lines(log_file) == []


async def test_lines_are_gathered_for_a_moment_and_then_written_by_themselves(log_file: Path) -> None:
    def written() -> int:
        return log_file.read_bytes().count(b"\n")

    logs.access_line(status=200)
    assert written() == 0
    await wait_until(lambda: written() == 1, "the line is written")


def test_a_log_that_can_not_be_written_stops_nothing() -> None:
    sink = logs.Sink(fd=-1)
    sink.write(b"lost\n", now=True)
