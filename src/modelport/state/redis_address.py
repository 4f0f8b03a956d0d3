"""Where a Redis is and how to be let in, read from its URL."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

_DEFAULT_PORT = 6379
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True)
class Address:
    """One Redis server. `tls` is None for a plain connection."""

    host: str
    port: int
    database: int
    username: str
    password: str
    tls: ssl.SSLContext | None


def parse_address(url: str) -> Address:
    """The server of `redis://[[user]:password@]host[:port][/database]`; `rediss://` is the same over TLS.

    TLS checks the server's certificate and name. `?ssl_ca_certs=FILE` replaces the system's authorities;
    `ssl_certfile` and `ssl_keyfile` are our own certificate. Raises: ValueError that says what is wrong, without
    the password; OSError when a file of certificates can't be read.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError(f"a Redis URL begins with redis:// or rediss://, not {parts.scheme}://")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = sorted(set(options) - set(_TLS_FILES if parts.scheme == "rediss" else ()))
    if unknown:
        raise ValueError(f"the Redis URL has an option that is not known: {unknown[0]}")
    path = parts.path.strip("/") or "0"
    if not path.isdigit():
        raise ValueError("the path of a Redis URL is the number of a database, such as /0")
    try:
        port = parts.port or _DEFAULT_PORT
    except ValueError:
        # Its own words would show a piece of a password that holds a slash.
        raise ValueError("the Redis URL has no valid port; percent-encode /, @ and : in a password") from None
    password = unquote(parts.password or "")
    return Address(
        host=parts.hostname or "127.0.0.1",
        port=port,
        database=int(path),
        # Redis calls the user of a bare password `default`.
        username=unquote(parts.username or "") or ("default" if password else ""),
        password=password,
        tls=_tls(options) if parts.scheme == "rediss" else None,
    )


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context
