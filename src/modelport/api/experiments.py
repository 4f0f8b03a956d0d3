"""`/v1/experiments` and `/v1/feedback`: split calls over variants, and see which does best."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from modelport.api.auth import PlatformDep, require
from modelport.api.experiment_bodies import (
    EXPERIMENT_ID,
    ExperimentBody,
    ExperimentCreate,
    ExperimentList,
    ExperimentPatch,
    FeedbackBody,
    FeedbackCreate,
    PromoteBody,
    ResultsBody,
    experiment_body,
    results_body,
)
from modelport.api.responses import errors
from modelport.calls import Caller
from modelport.experiments.service import NewExperiment
from modelport.kit.clock import rfc3339

router = APIRouter(tags=["Experiments"])
ExperimentsDep = Annotated[Caller, Depends(require("experiments"))]
ExperimentId = Annotated[str, Path(description="The experiment's id.", max_length=64, examples=[EXPERIMENT_ID])]
_ONE = "/v1/experiments/{experiment_id}"


@router.post(
    "/v1/experiments",
    status_code=201,
    operation_id="create_experiment",
    summary="Start an experiment",
    description="From now on calls that name the model without a version are split over the variants, on every server. "
    "Each answer says which one it is by in `x-experiment`. A model has one experiment of an organization at a time, "
    "which goes before everyone's.",
    responses=errors(400, 401, 403, 404, 409, 422, 429, 503),
)
async def create_experiment(body: ExperimentCreate, platform: PlatformDep, caller: ExperimentsDep) -> ExperimentBody:
    new = NewExperiment(
        body.name,
        body.model,
        [(one.name, one.model, one.weight) for one in body.variants],
        body.sticky,
        body.metric,
        body.alpha,
        body.audience,
    )
    return experiment_body(await platform.experiments.create(caller, new))


@router.get(
    "/v1/experiments",
    operation_id="list_experiments",
    summary="List experiments",
    description="The organization's, newest first.",
    responses=errors(400, 401, 403, 429, 503),
)
async def list_experiments(
    platform: PlatformDep,
    caller: ExperimentsDep,
    after: Annotated[str | None, Query(description="The id behind which the page begins.", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="How many at most.")] = 20,
) -> ExperimentList:
    found, more = await platform.experiments.list_page(caller, after=after, limit=limit)
    data = [experiment_body(one) for one in found]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return ExperimentList(object="list", data=data, first_id=first, last_id=last, has_more=more)


@router.get(
    _ONE,
    operation_id="get_experiment",
    summary="Get an experiment",
    description="One of the organization's.",
    responses=errors(401, 403, 404, 429, 503),
)
async def get_experiment(experiment_id: ExperimentId, platform: PlatformDep, caller: ExperimentsDep) -> ExperimentBody:
    return experiment_body(await platform.experiments.get(caller, experiment_id))


@router.patch(
    _ONE,
    operation_id="update_experiment",
    summary="Pause, stop or weigh an experiment",
    description="Callers move only to variants whose share has grown.",
    responses=errors(400, 401, 403, 404, 409, 429, 503),
)
async def update_experiment(
    experiment_id: ExperimentId, body: ExperimentPatch, platform: PlatformDep, caller: ExperimentsDep
) -> ExperimentBody:
    changed = await platform.experiments.change(caller, experiment_id, status=body.status, weights=body.weights)
    return experiment_body(changed)


@router.get(
    _ONE + "/results",
    operation_id="get_experiment_results",
    summary="Get an experiment's results",
    description="For each variant its calls, errors, latency, cost and feedback, and the winner as soon as one is "
    "sure. Looking often makes a wrong winner no likelier.",
    responses=errors(401, 403, 404, 429, 503),
)
async def get_results(experiment_id: ExperimentId, platform: PlatformDep, caller: ExperimentsDep) -> ResultsBody:
    return results_body(await platform.experiments.results(caller, experiment_id))


@router.post(
    _ONE + "/promote",
    operation_id="promote_variant",
    summary="Promote the winner",
    description="The model's `latest` leads to the winner's version, or to that of the variant that is named, and the "
    "experiment stops. For operators.",
    responses=errors(400, 401, 403, 404, 409, 422, 429, 503),
)
async def promote(
    experiment_id: ExperimentId, body: PromoteBody, platform: PlatformDep, caller: ExperimentsDep
) -> ExperimentBody:
    return experiment_body(await platform.experiments.promote(caller, experiment_id, variant=body.variant))


@router.post(
    "/v1/feedback",
    operation_id="give_feedback",
    summary="Give feedback on an answer",
    description="Sent again by the same key for the same call, it takes the place of what was said before.",
    responses=errors(400, 401, 403, 404, 429, 503),
)
async def give_feedback(body: FeedbackCreate, platform: PlatformDep, caller: ExperimentsDep) -> FeedbackBody:
    given = await platform.experiments.give_feedback(
        caller, call_id=body.request_id, score=float(body.score), comment=body.comment
    )
    return FeedbackBody(
        object="feedback",
        request_id=given.call_id,
        score=given.score,
        comment=given.comment,
        created_at=rfc3339(given.created_us),
    )
