"""The first start on an empty database: everything a newcomer needs to make a call, and its credentials in a file.

Database and file can't be written at one instant, so a crash in between must be mended by the next start. The file
is written first, under a name that holds the new organization's id, and gets its real name once the database has
committed. A file that waits is taken over when its organization exists, and deleted when it does not.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from argon2 import PasswordHasher
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.accounts import store
from modelport.accounts.model import Organization, Project
from modelport.calls import Limits, Mode
from modelport.db.engine import Database
from modelport.kit.clock import Clock
from modelport.kit.ids import IdSource

FILE_NAME = "credentials.json"
OPERATOR_EMAIL = "operator@modelport.local"
_WAITING = ".credentials-{}.json"
# 18 random bytes are 24 characters, which nobody guesses and somebody can still type.
_PASSWORD_BYTES = 18


class IssueKey(Protocol):
    """Stores a key with every scope and returns its secret (`access.service.KeyIssuer.issue_full`)."""

    async def __call__(
        self, conn: AsyncConnection, *, organization_id: str, project_id: str, name: str, mode: Mode, operator: bool
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What `credentials.json` holds, and what is shown once."""

    base_url: str
    portal_url: str
    operator_email: str
    operator_password: str
    api_key: str
    test_api_key: str


async def ensure_first_start(
    db: Database, *, clock: Clock, ids: IdSource, data_dir: Path, base_url: str, issue_key: IssueKey
) -> FirstStart | None:
    """Fill an empty database and write `credentials.json`; None, with nothing changed, when it is not empty.

    Several instances may start on one database at once: one of them fills it. A first start that died between the
    database and the file is finished here, and is returned as if it had been this one.
    Raises: Unavailable; OSError when the file can't be written, with nothing changed.
    """
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    async with db.connect() as conn:
        begun = await store.has_organizations(conn)
    if not begun:
        password_hash = await asyncio.to_thread(PasswordHasher().hash, password)
        async with db.begin() as conn:
            await store.lock_first_start(conn)
            if not await store.has_organizations(conn):
                filler = _Filler(conn, clock=clock, ids=ids, issue_key=issue_key)
                organization_id, keys = await filler.fill(password_hash)
                made = FirstStart(base_url, base_url + "/", OPERATOR_EMAIL, password, *keys)
                await asyncio.to_thread(_write, data_dir / _WAITING.format(organization_id), made)
    return await _finish(db, data_dir)


class _Filler:
    """Writes the first rows, in the one transaction that it is given."""

    def __init__(self, conn: AsyncConnection, *, clock: Clock, ids: IdSource, issue_key: IssueKey) -> None:
        self._conn = conn
        self._ids = ids
        self._now_us = clock.now_us()
        self._issue_key = issue_key

    async def fill(self, password_hash: str) -> tuple[str, tuple[str, str]]:
        """The id of the organization `demo`, and its live and its test key."""
        await store.insert_first_plans(self._conn, now_us=self._now_us)
        organization = Organization(self._ids.new("org_"), "demo", "custom", Limits(), self._now_us)
        project = Project(self._ids.new("proj_"), organization.id, "default", self._now_us)
        await store.insert_organization(self._conn, organization=organization)
        await store.insert_project(self._conn, project=project)
        await store.insert_user(
            self._conn,
            id=self._ids.new("user_"),
            email=OPERATOR_EMAIL,
            password_hash=password_hash,
            operator=True,
            created_us=self._now_us,
        )
        return organization.id, (await self._key(project, "live"), await self._key(project, "test"))

    async def _key(self, project: Project, mode: Mode) -> str:
        return await self._issue_key(
            self._conn,
            organization_id=project.organization_id,
            project_id=project.id,
            name=f"first {mode} key",
            mode=mode,
            operator=mode == "live",
        )


async def _finish(db: Database, data_dir: Path) -> FirstStart | None:
    """Give a waiting file whose organization exists its real name, and delete the others."""
    made: FirstStart | None = None
    for waiting in await asyncio.to_thread(_list_waiting, data_dir):
        organization_id = waiting.name.removeprefix(".credentials-").removesuffix(".json")
        async with db.connect() as conn:
            exists = await store.find_organization(conn, organization_id=organization_id) is not None
        found = await asyncio.to_thread(_settle, waiting, data_dir / FILE_NAME if exists else None)
        made = found or made
    return made


def _list_waiting(data_dir: Path) -> list[Path]:
    return sorted(data_dir.glob(_WAITING.format("org_*")))


def _settle(waiting: Path, path: Path | None) -> FirstStart | None:
    """Move the file to `path`, or delete it; None when that was done by another process, or there is no `path`."""
    with suppress(FileNotFoundError):
        if path is None:
            waiting.unlink()
            return None
        made = msgspec.json.decode(waiting.read_bytes(), type=FirstStart)
        waiting.replace(path)
        return made
    return None


def _write(path: Path, made: FirstStart) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
