"""A client that says exactly what it is told, byte by byte, for requests that no library would send."""

from __future__ import annotations

import http.client
import io
import json
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

_TIMEOUT_S = 30.0


@dataclass
class Answer:
    """One answer; header names in lower case, the last value where one is repeated."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Our code of an error; of an error in Anthropic's words its type."""
        error = self._error()
        return str(error.get("code", error.get("type")))

    @property
    def message(self) -> str:
        """What an error says."""
        return str(self._error()["message"])

    def _error(self) -> dict[str, Any]:
        body: dict[str, Any] = self.json()
        error = body["error"]
        # The Open Inference Protocol's is a sentence, with our code beside it.
        return {"message": error, "code": body["code"]} if isinstance(error, str) else dict(error)


class RawClient:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def local_port(self) -> int:
        return int(self._socket.getsockname()[1])

    def send(self, data: bytes) -> Self:
        self._socket.sendall(data)
        return self

    def send_until_cut(self, data: bytes, times: int) -> int:
        """Send `data` again and again, at most `times`; how often it went out before the server had enough."""
        for count in range(times):
            try:
                self._socket.sendall(data)
            except OSError:
                return count
        return times

    def answer(self, method: str = "GET") -> Answer:
        """The next answer. Raises: ConnectionError when there is none."""
        response = http.client.HTTPResponse(_Borrowed(self._file), method=method)  # type: ignore[arg-type]
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def line(self) -> bytes:
        return self._file.readline()

    def is_closed(self) -> bool:
        """Whether the server has ended the connection; waits until it has, or sends something."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def rest(self) -> bytes:
        """All bytes until the server closes."""
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class _Borrowed:
    """A socket for `HTTPResponse`, which would close the file that holds the next answer."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def makefile(self, *_: object) -> Any:
        return _Unclosable(self._file)


class _Unclosable:
    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        """The connection goes on."""


def request(method: str, target: str, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """A well-formed request; a body brings its Content-Length with it unless `headers` frame it."""
    lines = [f"{method} {target} HTTP/{version}", "host: test", *headers]
    framed = any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers)
    if body and not framed:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chat(key: str, text: str, *headers: str, stream: bool = False, **members: Any) -> bytes:
    """A chat with the sandbox."""
    body = {"model": "sandbox", "messages": [{"role": "user", "content": text}], "stream": stream, **members}
    return request(
        "POST",
        "/v1/chat/completions",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        *headers,
        body=json.dumps(body).encode(),
    )
