"""The listening socket, bound once and shared by all workers, so that a restarted worker loses no connection."""

from __future__ import annotations

import errno
import socket

from modelport.supervisor.refusal import StartRefused

# Connections that may wait while a worker is busy or being replaced; the kernel caps it at net.core.somaxconn.
_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening, inheritable TCP socket; port 0 takes a free one.

    Raises: StartRefused when the address can't be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StartRefused(f"{host!r} is no address of this machine. Try --host 127.0.0.1.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it: small writes of a stream must leave at once.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartRefused(_why(error, host, port)) from error
    listener.setblocking(False)
    listener.set_inheritable(True)
    return listener


def base_url(listener: socket.socket) -> str:
    """The address at which this machine reaches the socket, such as `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not bound to
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another program. Choose another with --port (0 takes a free one)."
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has. Choose one above 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine. Try --host 127.0.0.1."
    return f"{host}:{port} can't be listened on: {error.strerror}."
