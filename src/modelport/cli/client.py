"""The commands' own HTTP client: the standard library's, so that a command starts in a tenth of a second."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlencode, urlsplit

import typer

from modelport import __version__
from modelport.cli.output import Failure

BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", envvar="MODELPORT_BASE_URL", help="The server's address; else credentials.json's."),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="MODELPORT_API_KEY", help="The key; else credentials.json's.")
]
DataDir = Annotated[Path, typer.Option("--data-dir", envvar="MODELPORT_DATA_DIR", help="Where credentials.json lies.")]

DEFAULT_DATA_DIR = Path(".modelport")
_DEFAULT_BASE_URL = "http://127.0.0.1:8000"
_TIMEOUT_S = 660.0
_MAX_LINE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer; header names in lower case."""

    headers: dict[str, str]
    body: Any


class Client:
    """Requests to one server with one key. Every failure is a `Failure` that says what to do."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._url = _parse(self.base_url)
        self._api_key = api_key

    @classmethod
    def from_options(cls, base_url: str | None, api_key: str | None, data_dir: Path) -> Client:
        """The client that flags, environment and `credentials.json` lead to, in that order."""
        stored = _credentials(data_dir) if not (base_url and api_key) else {}
        # A stored key belongs to the stored server and is not sent to another one.
        if base_url and base_url.rstrip("/") != stored.get("base_url", "").rstrip("/"):
            stored = {}
        key = api_key or stored.get("api_key", "")
        if not key:
            raise Failure(
                f"there is no API key: none was given (--api-key, MODELPORT_API_KEY) and {data_dir}/credentials.json "
                "has none for this server. Run the command where the server was started, or name its --data-dir.",
                exit_code=2,
            )
        return cls(base_url or stored.get("base_url") or _DEFAULT_BASE_URL, key)

    def get(self, path: str, **query: str | None) -> Answer:
        """GET; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._request("GET", f"{path}?{urlencode(given)}" if given else path, None)

    def post(self, path: str, body: Any) -> Answer:
        return self._request("POST", path, body)

    def put(self, path: str, body: Any) -> Answer:
        return self._request("PUT", path, body)

    def delete(self, path: str) -> Answer:
        return self._request("DELETE", path, None)

    def stream(self, path: str, body: Any) -> Stream:
        """POST and read server-sent events as they come."""
        connection, response = self._send("POST", path, body)
        return Stream(connection, response)

    def _request(self, method: str, path: str, body: Any) -> Answer:
        connection, response = self._send(method, path, body)
        try:
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the connection to {self.base_url} broke off: {error}") from error
        finally:
            connection.close()
        return Answer(_headers(response), json.loads(content) if content else None)

    def _send(self, method: str, path: str, body: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        headers = {"Authorization": f"Bearer {self._api_key}", "User-Agent": f"modelport-cli/{__version__}"}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            connection.request(method, self._url.path + path, body=content, headers=headers)
            response = connection.getresponse()
        except ConnectionRefusedError as error:
            raise Failure(f"nothing answers at {self.base_url}. Is the server running? `modelport serve`") from error
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"{self.base_url} can't be reached: {error}") from error
        if response.status >= 400:
            problem = _problem(response)
            connection.close()
            raise Failure(problem)
        return connection, response

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S)
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)


class Stream:
    """Server-sent events of one answer. Closing it hangs up, which stops the model."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.headers = _headers(response)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each event's JSON until the last one. Raises: Failure when the server says that it failed."""
        try:
            while line := self._response.readline(_MAX_LINE_BYTES):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise Failure(event["error"]["message"])
                yield event
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the answer broke off: {error}") from error
        raise Failure("the answer broke off before its end")

    def close(self) -> None:
        self._response.close()
        self._connection.close()


def _credentials(data_dir: Path) -> dict[str, str]:
    try:
        stored: dict[str, str] = json.loads((data_dir / "credentials.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Failure(f"{data_dir}/credentials.json can't be read: {error}", exit_code=2) from error
    return stored


def _parse(base_url: str) -> SplitResult:
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise Failure(f"{base_url!r} is no address such as http://127.0.0.1:8000", exit_code=2)
    return url


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _problem(response: http.client.HTTPResponse) -> str:
    try:
        body = json.loads(response.read(_MAX_LINE_BYTES))
        message, code = body["error"]["message"], body["error"]["code"]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return f"the server answered {response.status} {response.reason}"
    wait = response.getheader("retry-after")
    again = f" Try again in {wait} s." if wait else ""
    return f"{message} ({response.status} {code}; request {response.getheader('x-request-id', 'unknown')}){again}"
