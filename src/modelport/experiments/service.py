"""What can be done with experiments. Every method acts for a caller and sees that caller's organization alone."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sqlalchemy.exc import IntegrityError

from modelport.calls import Caller, Operation
from modelport.db.engine import Database
from modelport.errors import BadRequest, Conflict, NotFound, PermissionDenied, Unprocessable
from modelport.experiments import store
from modelport.experiments.book import ExperimentBook
from modelport.experiments.model import Audience, Experiment, Feedback, Metric, Status, Variant
from modelport.experiments.results import Results, results
from modelport.experiments.tally import tally
from modelport.kit.clock import Clock
from modelport.kit.ids import IdSource

# Unfinished ones of an organization; every process holds those that run.
MAX_EXPERIMENTS = 50


class Models(Protocol):
    """The catalogue as experiments need it."""

    def look_up(self, caller: Caller, name: str) -> tuple[str, str | None, str, frozenset[Operation]]:
        """Of a name the model's id, the version as named, that which it means now, and what can be asked of it.
        Raises: ModelNotFound, also for what the caller may not use."""
        ...


class AliasMover(Protocol):
    """Who can have an alias mean another version (`catalog.registry.Registry`)."""

    async def move(
        self, actor: Caller, model: str, alias: str, *, version: str, expected: str | None = None
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class NewExperiment:
    """What is asked for. `variants`: name, model (perhaps with `@version`) and weight of each."""

    name: str
    model: str
    variants: Sequence[tuple[str, str, int]]
    sticky: str
    metric: Metric
    alpha: float
    audience: Audience


class ExperimentService:
    """Concurrency: any number of tasks and processes; a change holds here once the method returns, elsewhere within
    moments."""

    def __init__(
        self,
        db: Database,
        book: ExperimentBook,
        models: Models,
        mover: AliasMover,
        *,
        clock: Clock,
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        """`flush` returns when the calls that ended before are in the database."""
        self._db = db
        self._book = book
        self._models = models
        self._mover = mover
        self._clock = clock
        self._ids = IdSource(clock)
        self._flush = flush

    async def create(self, actor: Caller, new: NewExperiment) -> Experiment:
        """An experiment that runs.

        Raises: BadRequest, PermissionDenied (everyone's, by no operator), ModelNotFound, Conflict (the model has one
        for these calls), Unprocessable (too many).
        """
        if new.audience == "everyone" and not actor.operator:
            raise PermissionDenied("Only an operator's key makes experiments with everyone's calls.")
        made = self._made(actor, new)
        try:
            async with self._db.begin() as conn:
                if await store.count_unfinished(conn, organization_id=actor.organization_id) >= MAX_EXPERIMENTS:
                    raise Unprocessable(f"There are {MAX_EXPERIMENTS} experiments; stop some first.")
                await store.insert_experiment(conn, experiment=made)
        except IntegrityError:
            raise Conflict(
                f"There is an experiment with these calls to {made.model!r} already; stop it first."
            ) from None
        await self._book.announce()
        return made

    async def list_page(self, actor: Caller, *, after: str | None, limit: int) -> tuple[list[Experiment], bool]:
        """The organization's, newest first, and whether there are more."""
        async with self._db.connect() as conn:
            found = await store.list_experiments(
                conn, organization_id=actor.organization_id, after=after, limit=limit + 1
            )
        return found[:limit], len(found) > limit

    async def get(self, actor: Caller, experiment_id: str) -> Experiment:
        """Raises: NotFound, also for another organization's."""
        async with self._db.connect() as conn:
            found = await store.find_experiment(
                conn, organization_id=actor.organization_id, experiment_id=experiment_id
            )
        if found is None:
            raise NotFound(f"There is no experiment {experiment_id[:64]!r}.")
        return found

    async def change(
        self, actor: Caller, experiment_id: str, *, status: Status | None, weights: Mapping[str, int] | None
    ) -> Experiment:
        """Pause, go on, stop for good, or set other weights; results begin anew with these.

        Raises: NotFound, PermissionDenied, BadRequest, Conflict (it was stopped).
        """
        found = await self.get(actor, experiment_id)
        _check_may_change(actor, found)
        changed = replace(found, status=status or found.status)
        if weights is not None:
            changed = replace(changed, variants=_weighed(found, weights), since_us=self._clock.now_us())
        if changed != found:
            if found.status == "stopped":
                raise Conflict("The experiment was stopped, which is for good; make another one.")
            async with self._db.begin() as conn:
                await store.update_experiment(conn, experiment=changed)
            await self._book.announce()
        return changed

    async def results(self, actor: Caller, experiment_id: str) -> Results:
        """How the variants do by now. Raises: NotFound, Unavailable."""
        experiment = await self.get(actor, experiment_id)
        await self._flush()
        async with self._db.connect() as conn:
            return results(experiment, await tally(conn, experiment=experiment))

    async def promote(self, actor: Caller, experiment_id: str, *, variant: str | None) -> Experiment:
        """Have the model's `latest` mean the winner's version, or that of the `variant` that is named, and stop.

        Raises: NotFound, PermissionDenied (no operator), Conflict (nobody has won, or it is another model).
        """
        if not actor.operator:
            raise PermissionDenied("Only an operator's key changes what a model's `latest` means.")
        found = await self.get(actor, experiment_id)
        name = variant or (await self.results(actor, experiment_id)).winner
        if name is None:
            raise Conflict("No variant is sure to be the best yet; name the one to promote, or wait.")
        chosen = next((one for one in found.variants if one.name == name), None)
        if chosen is None:
            raise BadRequest(f"The experiment has no variant {name[:64]!r}.", param="variant")
        if chosen.model != found.model:
            raise Conflict(
                f"{name!r} is another model, {chosen.model!r}, which an alias of {found.model!r} can't mean."
            )
        version = self._models.look_up(actor, _full(chosen))[2]
        await self._mover.move(actor, found.model, "latest", version=version)
        if found.status == "stopped":
            return found
        return await self.change(actor, experiment_id, status="stopped", weights=None)

    async def give_feedback(self, actor: Caller, *, call_id: str, score: float, comment: str) -> Feedback:
        """What the key thinks of an answer to its organization, in the place of what it said before.

        Raises: BadRequest, NotFound (also for another organization's call), Unavailable.
        """
        if not math.isfinite(score) or not 0 <= score <= 1:
            raise BadRequest("score is from 0 to 1.", param="score")
        await self._flush()
        now_us = self._clock.now_us()
        given = Feedback(call_id, actor.key_id, actor.organization_id, score, comment.replace("\0", ""), now_us)
        async with self._db.begin() as conn:
            if not await store.has_call(conn, organization_id=actor.organization_id, call_id=call_id):
                raise NotFound(f"There is no call {call_id[:64]!r}.", param="request_id")
            await store.put_feedback(conn, given=given)
        return given

    def _made(self, actor: Caller, new: NewExperiment) -> Experiment:
        model, named, _, operations = self._models.look_up(actor, new.model)
        if named is not None:
            raise BadRequest(
                "Calls that name a version are in no experiment; give the model's bare name.", param="model"
            )
        variants = []
        for name, target, weight in new.variants:
            id_, version, _, can = self._models.look_up(actor, target)
            if not operations <= can:
                raise BadRequest(f"{target!r} can't answer all that {model!r} is asked.", param="variants")
            variants.append(Variant(name, id_, version, weight))
        _check_variants(variants)
        now_us = self._clock.now_us()
        values: dict[str, Any] = {"alpha": new.alpha, "status": "running", "created_us": now_us, "since_us": now_us}
        return Experiment(
            self._ids.new("exp_"),
            actor.organization_id,
            new.audience,
            new.name,
            model,
            tuple(variants),
            new.sticky,
            new.metric,
            **values,
        )


def _weighed(found: Experiment, weights: Mapping[str, int]) -> tuple[Variant, ...]:
    unknown = set(weights) - {one.name for one in found.variants}
    if unknown:
        raise BadRequest(f"The experiment has no variant {min(unknown)[:64]!r}.", param="weights")
    variants = [replace(one, weight=weights.get(one.name, one.weight)) for one in found.variants]
    _check_variants(variants)
    return tuple(variants)


def _check_variants(variants: Sequence[Variant]) -> None:
    if len({one.name for one in variants}) < len(variants):
        raise BadRequest("Each variant has a name of its own.", param="variants")
    if not any(one.weight for one in variants):
        raise BadRequest("One variant has to have a weight above 0.", param="variants")


def _check_may_change(actor: Caller, experiment: Experiment) -> None:
    if experiment.audience == "everyone" and not actor.operator:
        raise PermissionDenied("Only an operator's key changes experiments with everyone's calls.")


def _full(variant: Variant) -> str:
    return variant.model if variant.version is None else f"{variant.model}@{variant.version}"
