"""Logs: one JSON object a line on standard error, from us and from the libraries, without keys, passwords or prompts.

Lines are gathered for a moment and written together; warnings and worse are written at once. Every line passes
`redact`, whoever wrote it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

import msgspec
import structlog

from modelport.kit.clock import rfc3339
from modelport.settings import LogSettings

# The request that a line belongs to; set by the door, in every line written while it is served.
request_id: ContextVar[str] = ContextVar("request_id", default="")

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
# Lines written together: fewer system calls, and at most this late.
_GATHER_LINES = 64
_GATHER_S = 0.05
_MAX_LINE_BYTES = 32_000
_STDERR = 2
_SECRETS = re.compile(
    rb"(?P<key>mp_(?:live|test)_)[0-9A-Za-z]{8,}"
    rb"|(?P<bearer>[Bb]earer )[A-Za-z0-9._~+/=-]{8,}"
    rb"|(?P<upstream>\bsk-)[A-Za-z0-9_-]{16,}"
    rb"|(?P<login>://[^/\s:@\"]{0,100}:)[^/\s@\"]{1,200}(?=@)"
)
_HINTS = (b"mp_", b"earer ", b"sk-", b"://")
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def redact(line: bytes) -> bytes:
    """`line` with API keys, bearer tokens, upstream keys and passwords in URLs replaced by `***`."""
    # The pattern takes 5 µs a line, these look-ups a tenth; nearly no line has any of them.
    if not any(hint in line for hint in _HINTS):
        return line
    return _SECRETS.sub(lambda found: (found[found.lastgroup or 0]) + b"***", line)


class Sink:
    """Where lines go. Concurrency: any thread; lines of one thread keep their order."""

    def __init__(self, fd: int = _STDERR) -> None:
        self._fd = fd
        self._lines: list[bytes] = []
        # The event loop that will flush; a loop that was closed before it did so is not waited for.
        self._flushing: asyncio.AbstractEventLoop | None = None

    def write(self, line: bytes, *, now: bool = False) -> None:
        """Take a line (with its line feed). `now`: it and all before it are written before this returns."""
        self._lines.append(line)
        if now or len(self._lines) >= _GATHER_LINES:
            self.flush()
        elif self._flushing is None or self._flushing.is_closed():
            self._flush_soon()

    def _flush_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # No event loop in this thread, so nobody would come back for the line.
            self.flush()
        else:
            loop.call_later(_GATHER_S, self.flush)
            self._flushing = loop

    def flush(self) -> None:
        """Write what was gathered. A log that can't be written stops nothing."""
        lines, self._lines, self._flushing = self._lines, [], None
        data = redact(b"".join(lines))
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._fd, data) :]


class _Stamp:
    """The time as RFC 3339 with milliseconds; the part above the second is made once a second."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second, self._prefix = -1, ""

    def now(self) -> str:
        nanos = time.time_ns()
        second = nanos // 1_000_000_000
        if second != self._second:
            self._second, self._prefix = second, rfc3339(second * 1_000_000)[:-1]
        return f"{self._prefix}.{nanos // 1_000_000 % 1000:03d}Z"


_stamp = _Stamp()
_sink = Sink()
_render: Callable[[Mapping[str, Any]], bytes]


def _json(fields: Mapping[str, Any]) -> bytes:
    line = _encode(fields)
    if len(line) > _MAX_LINE_BYTES:
        line = _encode({**{k: fields[k] for k in ("time", "level", "event")}, "cut_bytes": len(line)})
    return line + b"\n"


def _console(fields: Mapping[str, Any]) -> bytes:
    rest = " ".join(
        f"{k}={v}" for k, v in fields.items() if k not in ("time", "level", "event", "exception") and v != ""
    )
    text = f"{fields['time'][11:19]} {fields['level']:<7} {fields['event']}  {rest}".rstrip()
    if fields.get("exception"):
        text += f"\n{fields['exception']}"
    return text.encode("utf-8", "replace") + b"\n"


_render = _json


def configure(settings: LogSettings) -> None:
    """Route structlog, the standard library's loggers and warnings to standard error as `settings` says.

    May be called again; the last call counts.
    """
    global _render
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    _render = _console if console else _json
    level = _LEVELS[settings.level]
    structlog.configure(
        processors=[_emit],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Handler()]
    root.setLevel(level)
    for name, least in _LIBRARIES.items():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(max(level, least))
    logging.captureWarnings(True)
    atexit.register(_sink.flush)


# Libraries that tell each step at `info`.
_LIBRARIES = {
    "sqlalchemy": logging.WARNING,
    "alembic": logging.WARNING,
    "aiosqlite": logging.WARNING,
    "asyncio": logging.WARNING,
}


def access_line(**fields: Any) -> None:
    """One line for one request, whatever the level. Carry facts, never bodies or header values."""
    _sink.write(_render({"time": _stamp.now(), "level": "info", "event": "request", **fields}))


def flush() -> None:
    """Write what was gathered so far."""
    _sink.flush()


def _emit(_logger: Any, level: str, fields: MutableMapping[str, Any]) -> str:
    """structlog's last processor: write the event; what is returned goes nowhere."""
    name = "error" if level == "exception" else level
    line: dict[str, Any] = {"time": _stamp.now(), "level": name, "event": fields.pop("event", "")}
    current = request_id.get()
    if current:
        line["request_id"] = current
    shown = fields.pop("exc_info", None)
    line.update(fields)
    if shown:
        line["exception"] = _exception(shown)
    _write(line, _LEVELS.get(name, logging.INFO))
    return ""


def _exception(shown: Any) -> str:
    error = shown if isinstance(shown, BaseException) else shown[1] if isinstance(shown, tuple) else sys.exc_info()[1]
    return "" if error is None else "".join(traceback.format_exception(error))


def _write(line: Mapping[str, Any], level: int) -> None:
    _sink.write(_render(line), now=level >= logging.WARNING)


class _Handler(logging.Handler):
    """The standard library's records as the same kind of line."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = {"time": _stamp.now(), "level": record.levelname.lower(), "event": record.getMessage()}
        except (TypeError, ValueError):
            line = {"time": _stamp.now(), "level": record.levelname.lower(), "event": str(record.msg)}
        line["logger"] = record.name
        current = request_id.get()
        if current:
            line["request_id"] = current
        if record.exc_info:
            line["exception"] = _exception(record.exc_info)
        _write(line, record.levelno)
