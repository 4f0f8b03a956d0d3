"""Create organizations, projects and plans, and change what an organization may use.

These are the operator's acts: nobody is asked for permission here, the door to them is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy.exc import IntegrityError

from modelport.accounts import store
from modelport.accounts.model import Organization, Plan, Project
from modelport.calls import Limits
from modelport.db.engine import Database
from modelport.errors import BadRequest, Conflict, NotFound
from modelport.kit.clock import Clock
from modelport.kit.ids import IdSource

# Around a change of an organization: whoever caches what it may do is told.
Announce = Callable[[str], AbstractAsyncContextManager[None]]
_NO_LIMITS = Limits()


class AccountService:
    """Concurrency: any number of tasks and processes."""

    def __init__(self, db: Database, *, clock: Clock, ids: IdSource, announce: Announce) -> None:
        """`announce` is given an organization's id (`access.announce.announced` with the state)."""
        self._db = db
        self._clock = clock
        self._ids = ids
        self._announce = announce

    async def create_organization(self, name: str, plan_id: str, *, limits: Limits = _NO_LIMITS) -> Organization:
        """An organization on a plan; `limits` replace the plan's where they are set. Raises: NotFound (the plan)."""
        _check_limits(limits)
        organization = Organization(self._ids.new("org_"), name, plan_id, limits, self._clock.now_us())
        async with self._db.begin() as conn:
            if await store.find_plan(conn, plan_id=plan_id) is None:
                raise NotFound(f"There is no plan {plan_id!r}.", param="plan_id")
            await store.insert_organization(conn, organization=organization)
        return organization

    async def create_project(self, organization_id: str, name: str) -> Project:
        """A project of the organization. Raises: NotFound (the organization)."""
        project = Project(self._ids.new("proj_"), organization_id, name, self._clock.now_us())
        async with self._db.begin() as conn:
            if await store.find_organization(conn, organization_id=organization_id) is None:
                raise NotFound(f"There is no organization {organization_id!r}.")
            await store.insert_project(conn, project=project)
        return project

    async def create_plan(self, id: str, name: str, *, limits: Limits, discount_basis_points: int = 0) -> Plan:
        """A plan. Raises: BadRequest; Conflict when the id is taken."""
        _check_limits(limits)
        if not 0 <= discount_basis_points <= 10_000:
            raise BadRequest("A discount is from 0 to 10,000 basis points.", param="discount_basis_points")
        plan = Plan(id, name, limits, discount_basis_points, self._clock.now_us())
        try:
            async with self._db.begin() as conn:
                await store.insert_plan(conn, plan=plan)
        except IntegrityError:
            raise Conflict(f"There is a plan {id!r} already.") from None
        return plan

    async def set_plan(self, organization_id: str, plan_id: str, *, limits: Limits = _NO_LIMITS) -> Organization:
        """Move the organization to a plan, with limits of its own where they are set; holds from its next call on.

        Raises: NotFound (the organization or the plan); StateUnavailable with nothing changed.
        """
        _check_limits(limits)
        async with self._db.connect() as conn:
            if await store.find_plan(conn, plan_id=plan_id) is None:
                raise NotFound(f"There is no plan {plan_id!r}.", param="plan_id")
        organization = await self.get_organization(organization_id)
        async with self._announce(organization_id), self._db.begin() as conn:
            await store.update_organization(conn, organization_id=organization_id, plan_id=plan_id, limits=limits)
        return Organization(organization.id, organization.name, plan_id, limits, organization.created_us)

    async def get_organization(self, organization_id: str) -> Organization:
        """Raises: NotFound."""
        async with self._db.connect() as conn:
            organization = await store.find_organization(conn, organization_id=organization_id)
        if organization is None:
            raise NotFound(f"There is no organization {organization_id!r}.")
        return organization

    async def list_projects(self, organization_id: str) -> list[Project]:
        """The organization's projects, oldest first."""
        async with self._db.connect() as conn:
            return await store.list_projects(conn, organization_id=organization_id)


def _check_limits(limits: Limits) -> None:
    for value in (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_calls):
        if value is not None and not 0 <= value < 2**31:
            raise BadRequest("A limit is a whole number from 0 to 2,147,483,647.")
