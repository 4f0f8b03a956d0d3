"""Throw-away Redis and PostgreSQL servers, on this machine alone, gone when the tests are.

Each lives in a temporary folder and on a free loopback port, writes without fsync, and is killed by the kernel when
the process that started it dies, even by `kill -9`. A folder that such a death left behind is removed by the next
start. Missing servers are installed where that needs no question (Debian, root or password-less sudo).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_FOLDER_PREFIX = "modelport-test-"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.01
# A free port can be taken by somebody else before the server binds it.
_START_ATTEMPTS = 5

# Runs between fork and exec of the server. Dropping root must come before the death signal, which a change of user
# clears; the parent may already be gone by then, so it is looked at once more.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
libc = ctypes.CDLL(None, use_errno=True)
if uid != os.getuid():
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if libc.prctl(1, signal.SIGKILL) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed")
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[4], sys.argv[4:])
"""


class ServiceMissing(RuntimeError):
    """A server is not on this machine and could not be installed."""


class Service:
    """One running server. `url` stays the same when it is stopped and started again."""

    def __init__(
        self, url: str, command: list[str], folder: Path, *, user: pwd.struct_passwd, ready: Callable[[], bool]
    ) -> None:
        self.url = url
        self.folder = folder
        self._command = command
        self._user = user
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process id. Raises: RuntimeError when it is not running."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Return when the server answers. Raises: RuntimeError with the end of its log when it does not."""
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                _launched(self._command, self._user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                # A group of its own, so that ^C does not reach it.
                process_group=0,
                env=_environment(),
            )
        give_up = time.monotonic() + _START_TIMEOUT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._command[0]} did not start:\n{tail}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Shut the server down; nothing when it is not running."""
        self.resume()
        # PostgreSQL reads SIGINT as 'disconnect everybody and stop'; Redis stops on it as well.
        self._signal(signal.SIGINT)
        self._reap()

    def kill(self) -> None:
        """`kill -9`, every process of it."""
        self._signal(signal.SIGKILL)
        self._reap()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port with the data it had on disk."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Kill the server and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        # PostgreSQL's children lead groups of their own. SIGINT goes to the server alone, which tells its children.
        children = [] if number == signal.SIGINT else _children(self._process.pid)
        for pid in (self._process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait(_STOP_TIMEOUT_S)
        self._process = None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            found += map(int, task.read_text().split())
    return found


def start_redis(*options: str) -> Service:
    """A running Redis that keeps nothing on disk; `options` go to `redis-server` (`--requirepass`, `secret`)."""
    binary = _find("redis-server", "valkey-server")
    user = pwd.getpwuid(os.getuid())

    def build(port: int, folder: Path) -> Service:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        command += ["--appendonly", "no", "--daemonize", "no", *options]
        return Service(f"redis://127.0.0.1:{port}/0", command, folder, user=user, ready=lambda: _answers_redis(port))

    return _started(build)


def start_postgres() -> Service:
    """A running PostgreSQL; `url` is a superuser's on its `postgres` database."""
    postgres, initdb, isready = (_find(name) for name in ("postgres", "initdb", "pg_isready"))
    user = _unprivileged()

    def build(port: int, folder: Path) -> Service:
        data = folder / "data"
        if os.getuid() != user.pw_uid:
            os.chown(folder, user.pw_uid, user.pw_gid)
        make = [initdb, "--pgdata", str(data), "--username", "modelport", "--auth", "trust", "--no-sync"]
        make += ["--encoding", "UTF8", "--locale", "C.UTF-8", "--no-instructions"]
        _run(_launched(make, user), cwd=folder)
        command = [postgres, "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        # A commit that was answered survives `kill -9`, as with any PostgreSQL that keeps its promise, so
        # `synchronous_commit` stays on: what is not waited for is the disk.
        for setting in ("fsync=off", "full_page_writes=off", "shared_buffers=32MB"):
            command += ["-c", setting]
        command += ["-c", f"unix_socket_directories={folder}"]
        check = [isready, "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "modelport", "-d", "postgres"]
        url = f"postgresql://modelport@127.0.0.1:{port}/postgres"
        return Service(
            url, command, folder, user=user, ready=lambda: subprocess.run(check, check=False).returncode == 0
        )

    return _started(build)


def create_database(server_url: str, name: str) -> str:
    """The URL of a new, empty database on the PostgreSQL at `server_url`."""
    _run([_find("psql"), "-q", "-d", server_url, "-c", f'CREATE DATABASE "{name}"'])
    return server_url.rpartition("/")[0] + "/" + name


def drop_database(server_url: str, name: str) -> None:
    """Remove a database, whoever is still connected to it."""
    _run([_find("psql"), "-q", "-d", server_url, "-c", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'])


def free_port() -> int:
    """A loopback TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(build: Callable[[int, Path], Service]) -> Service:
    _sweep()
    for attempt in range(_START_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
        try:
            service = build(free_port(), folder)
            service.start()
        except RuntimeError:
            shutil.rmtree(folder, ignore_errors=True)
            if attempt == _START_ATTEMPTS - 1:
                raise
        else:
            return service
    raise AssertionError("unreachable")


def _sweep() -> None:
    """Delete the folders of test runs that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _answers_redis(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            # A server that wants a password first is up as well, and says so.
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _unprivileged() -> pwd.struct_passwd:
    """Who runs PostgreSQL, which refuses root: ourselves, or `postgres`, or `nobody`."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _launched(command: list[str], user: pwd.struct_passwd) -> list[str]:
    uid, gid = str(user.pw_uid), str(user.pw_gid)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), uid, gid, *command]


def _environment() -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C.UTF-8"}


def _run(command: list[str], *, cwd: Path | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=_environment())
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[-6:])}: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def _find(*names: str) -> str:
    """The path of the first of these programs. Raises: ServiceMissing when none is here nor can be installed."""
    found = _look_up(names)
    if found is None:
        _install(names[0])
        found = _look_up(names)
    if found is None:
        raise ServiceMissing(
            f"the tests need {names[0]}, which is neither on PATH nor below /usr/lib/postgresql. "
            "On Debian or Ubuntu: sudo apt-get install postgresql redis-server; elsewhere by their own installers."
        )
    return found


def _look_up(names: tuple[str, ...]) -> str | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major_version, reverse=True)
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *map(str, folders)])
    return next((path for name in names if (path := shutil.which(name, path=places))), None)


def _major_version(folder: Path) -> int:
    text = folder.parent.name.partition(".")[0]
    return int(text) if text.isdigit() else 0


def _install(name: str) -> None:
    if shutil.which("apt-get") is None:
        return
    as_root: list[str] = []
    if os.getuid() != 0:
        if shutil.which("sudo") is None or subprocess.run(["sudo", "-n", "true"], check=False).returncode != 0:
            return
        as_root = ["sudo", "-n"]
    print(
        f"tests: installing PostgreSQL and Redis with apt-get, because {name} is missing", file=sys.stderr, flush=True
    )
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    packages = ["install", "-y", "--no-install-recommends", "postgresql", "redis-server"]
    if subprocess.run([*apt, *packages], check=False).returncode != 0:
        subprocess.run([*apt, "update"], check=False)
        subprocess.run([*apt, *packages], check=False)
