"""Downloads one large file: goes on where it stopped, never grows beyond a bound, never leaves encryption."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

# Called with the bytes that are here and, where the server said it, the whole; an exception it raises ends the work.
Progress = Callable[[int, int | None], None]

_CHUNK_BYTES = 1 << 18
_USER_AGENT = "modelport"
# A disk that is full to the last byte stops the database too.
_SPARE_DISK_BYTES = 200_000_000
_FINAL_STATUSES = {
    401: "asks for a login",
    403: "refuses it",
    404: "does not have it",
    410: "does not have it any more",
}


class SourceError(Exception):
    """A model's file can't be had. The message is for the operator; it reaches the log and the model's status."""


class _Interrupted(Exception):
    """The connection broke; what has come stays."""


@dataclass(frozen=True, slots=True)
class Download:
    """How files are downloaded.

    `timeout_s` bounds each wait for the network, `max_bytes` one file. Between attempts, which are only made when
    the network failed, twice as long is waited each time, from `backoff_s` on.
    """

    timeout_s: float = 30.0
    max_bytes: int = 50_000_000_000
    attempts: int = 4
    backoff_s: float = 1.0
    tls: ssl.SSLContext | None = None

    def run(self, url: str, partial: Path, *, progress: Progress | None = None) -> Path:
        """Bring the whole file to `partial` and return that path. One call at a time for one path.

        Raises: SourceError. What has come by then stays, and the next call goes on from there.
        """
        partial.parent.mkdir(parents=True, exist_ok=True)
        opener = self._opener()
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.backoff_s * 2 ** (attempt - 1))
            try:
                self._attempt(opener, url, partial, progress)
                return partial
            except _Interrupted as error:
                reason = str(error)
        raise SourceError(
            f"{_shown(url)} could not be downloaded ({reason}): is there a network? It can be tried again"
        )

    def _opener(self) -> urllib.request.OpenerDirector:
        opener = urllib.request.OpenerDirector()
        # Only these: urllib's usual set also opens files and FTP, to which a redirect could lead.
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=self.tls),
            _SafeRedirects(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        return opener

    def _attempt(
        self, opener: urllib.request.OpenerDirector, url: str, partial: Path, progress: Progress | None
    ) -> None:
        tag = partial.with_name(partial.name + ".etag")
        have = partial.stat().st_size if partial.is_file() and tag.is_file() else 0
        # The scheme was checked where the address was made; the opener knows no others than http and https.
        request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})  # noqa: S310
        if have:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", tag.read_text(encoding="ascii"))
        try:
            with opener.open(request, timeout=self.timeout_s) as response:
                self._receive(response, url, partial, tag, progress)
        except urllib.error.HTTPError as error:
            self._refused(error, url, partial)
        except (OSError, http.client.HTTPException) as error:
            raise _translated(error, url, partial) from error

    def _refused(self, error: urllib.error.HTTPError, url: str, partial: Path) -> None:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                # What is here is as long as the file or longer, and was never confirmed as whole: from the start.
                partial.unlink(missing_ok=True)
                raise _Interrupted("the part that was here does not fit") from error
            if error.code >= 500 or error.code in (408, 429):
                raise _Interrupted(f"HTTP {error.code}") from error
            said = _FINAL_STATUSES.get(error.code, f"answers {error.code}")
            raise SourceError(f"{urlsplit(url).hostname} {said}: {_shown(url)}") from error

    def _receive(self, response: Any, url: str, partial: Path, tag: Path, progress: Progress | None) -> None:
        have = partial.stat().st_size if response.status == http.client.PARTIAL_CONTENT else 0
        if have and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            partial.unlink(missing_ok=True)
            raise _Interrupted("the server sent another part than was asked for")
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        self._check_size(have, total, url, partial)
        if not have:
            _remember_tag(tag, response.headers.get("ETag", ""))
        with partial.open("ab" if have else "wb") as file:
            done = self._copy(response, file, have, total=total, url=url, progress=progress)
        if total is not None and done < total:
            raise _Interrupted(f"it ended after {done:,} of {total:,} bytes")
        tag.unlink(missing_ok=True)

    def _copy(
        self, response: IO[bytes], file: IO[bytes], done: int, *, total: int | None, url: str, progress: Progress | None
    ) -> int:
        while chunk := response.read(_CHUNK_BYTES):
            done += len(chunk)
            if done > self.max_bytes:
                raise SourceError(f"{_shown(url)} is larger than {self.max_bytes:,} bytes")
            file.write(chunk)
            if progress is not None:
                progress(done, total)
        return done

    def _check_size(self, have: int, total: int | None, url: str, partial: Path) -> None:
        if total is None:
            return
        if total > self.max_bytes:
            raise SourceError(f"{_shown(url)} is larger than {self.max_bytes:,} bytes")
        free = shutil.disk_usage(partial.parent).free
        if total - have > free - _SPARE_DISK_BYTES:
            raise SourceError(f"{_shown(url)} needs {total - have:,} bytes, but only {free:,} are free on the disk")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted address to an open one."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and (req.type == "https" or scheme != "http"):
            raise SourceError(f"{_shown(req.full_url)} leads to an address that is not https")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            # urllib drops these two on the way, and the file's own server is the one that must see them.
            for name in ("Range", "If-range"):
                if req.has_header(name):
                    following.add_header(name, str(req.get_header(name)))
        return following


def _translated(error: OSError | http.client.HTTPException, url: str, partial: Path) -> Exception:
    cause = getattr(error, "reason", error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return SourceError(f"the certificate of {urlsplit(url).hostname} is not valid: {cause.verify_message}")
    if isinstance(error, OSError) and error.filename is not None:
        return SourceError(f"{partial} can't be written: {error.strerror}")
    return _Interrupted(type(cause).__name__)


def _remember_tag(tag: Path, etag: str) -> None:
    """Keep the server's name for this very content; without a strong one nothing can be resumed."""
    if etag.startswith('"') and etag.isascii():
        tag.write_text(etag, encoding="ascii")
    else:
        with contextlib.suppress(FileNotFoundError):
            tag.unlink()


def _shown(url: str) -> str:
    """An address without its query, which may hold a signature."""
    return url.split("?", 1)[0]
