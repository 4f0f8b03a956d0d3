"""From the one setting `database.url` to what the two drivers want to hear. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

# The words of libpq that asyncpg takes under the same name.
_SAME_NAME = frozenset({"direct_tls", "passfile", "target_session_attrs"})
_SSL_WORDS = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword"})
_SERVER_SETTINGS = {"application_name": "application_name", "search_path": "search_path"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a database is. `path` is a SQLite file's; None for a server."""

    url: URL
    path: Path | None = None
    connect_args: dict[str, Any] = field(default_factory=dict)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.url.get_backend_name()


def find_place(url: str, *, data_dir: Path) -> Place:
    """Read a setting as people write it: as for psql, as for SQLAlchemy, or empty.

    Raises: ValueError that says what is wrong and never repeats the password.
    """
    if not url:
        return _file(data_dir / "modelport.db")
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("database.url is no URL; write postgresql://USER@HOST/NAME or sqlite:///PATH") from None
    name = parsed.drivername.partition("+")[0]
    if name == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or parsed.query:
            raise ValueError("database.url: a SQLite database is a file and no options: sqlite:///PATH")
        return _file(Path(parsed.database))
    if name in ("postgresql", "postgres"):
        return _server(parsed)
    raise ValueError(f"database.url: {name!r} is neither postgresql nor sqlite")


def _file(path: Path) -> Place:
    return Place(URL.create("sqlite+aiosqlite", database=str(path)), path=path)


def _server(parsed: URL) -> Place:
    """asyncpg reads libpq's words only in a DSN of its own, so the ones about TLS are handed over as one."""
    query = {key: value if isinstance(value, str) else value[-1] for key, value in parsed.query.items()}
    connect_args: dict[str, Any] = {}
    tls: dict[str, str] = {}
    settings: dict[str, str] = {}
    kept: dict[str, str] = {}
    for key, value in query.items():
        if key in _SSL_WORDS:
            tls[key] = value
        elif key in _SERVER_SETTINGS:
            settings[_SERVER_SETTINGS[key]] = value
        elif key in _SAME_NAME:
            connect_args[key] = value
        elif key == "host":
            kept[key] = value
        elif key != "connect_timeout":
            raise ValueError(
                f"database.url: the option {key!r} is not known; sslmode, sslrootcert and application_name are"
            )
    if set(tls) == {"sslmode"}:
        connect_args["ssl"] = tls["sslmode"]
    elif tls:
        connect_args["dsn"] = URL.create("postgresql", query=tls).render_as_string()
    if settings:
        connect_args["server_settings"] = settings
    if "connect_timeout" in query:
        connect_args["timeout"] = float(query["connect_timeout"])
    return Place(parsed.set(drivername="postgresql+asyncpg", query=kept), connect_args=connect_args)
