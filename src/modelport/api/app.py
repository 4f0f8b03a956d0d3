"""The ASGI application of one worker: the edge with its hot routes, and FastAPI behind it for the rest."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Match

from modelport.api import (
    admin,
    admin_models,
    budgets,
    deprecations,
    documents,
    experiments,
    health,
    keys,
    levels,
    limits,
    models,
    usage,
)
from modelport.api.edge import Edge
from modelport.api.failures import failure
from modelport.api.oip import server as oip
from modelport.api.platform import Platform
from modelport.api.routes import HOT
from modelport.api.ws import description as socket
from modelport.catalog.deprecation import RouteDeprecations
from modelport.errors import BadRequest, Internal, MethodNotAllowed, ModelportError, NotFound

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def described(public_url: str = "", retired: RouteDeprecations | None = None) -> FastAPI:
    """Every route of the management API and the description of all others, with no platform behind them yet."""
    # A redirect to the path with or without a slash would name whatever host the client wrote.
    rest = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, title="Modelport")
    rest.state.public_url = public_url
    rest.state.deprecations = retired or RouteDeprecations(())
    rest.state.hot_routes = tuple(route for route, _ in HOT)
    operation = (admin, admin_models, levels)
    for module in (
        models,
        deprecations,
        keys,
        usage,
        budgets,
        limits,
        experiments,
        *operation,
        oip,
        socket,
        health,
        documents,
    ):
        rest.include_router(module.router)
    return rest


def build_app(platform: Platform) -> Edge:
    """What answers every request of this worker."""
    retired = RouteDeprecations(platform.settings.deprecations)
    rest = described(platform.settings.server.public_url, retired)
    rest.state.platform = platform
    rest.mount("/static/own", documents.own_files())
    packaged = documents.sidecar_files()
    if packaged is not None:
        rest.mount("/static/docs", packaged)
    rest.add_exception_handler(ModelportError, _known)
    rest.add_exception_handler(HTTPException, _from_starlette)
    rest.add_exception_handler(RequestValidationError, _invalid)
    rest.add_exception_handler(Exception, _unexpected)
    compressed = GZipMiddleware(rest, minimum_size=platform.settings.server.gzip_min_bytes, compresslevel=4)
    return Edge(platform, hot={route.path: handler for route, handler in HOT}, rest=compressed, retired=retired)


def _render(request: Request, error: ModelportError) -> Response:
    base_url = request.app.state.platform.settings.server.public_url
    told = failure(error, request_id=request.scope["modelport.request_id"], path=request.url.path, base_url=base_url)
    response = Response(told.body, status_code=told.status, media_type=told.content_type.decode())
    response.raw_headers.extend(told.headers)
    levels = getattr(error, "levels", None)
    if levels:
        request.scope["modelport.levels"] = levels
    return response


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelportError)
    return _render(request, error)


async def _from_starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        response = _render(request, MethodNotAllowed(f"{request.method} is not allowed on {request.url.path}."))
        response.headers["allow"] = ", ".join(_allowed(request))
        return response
    if error.status_code == 404:
        return _render(request, NotFound(f"There is nothing at {request.method} {request.url.path}; see /docs."))
    return _render(request, BadRequest("The body can't be read as JSON."))


def _allowed(request: Request) -> list[str]:
    """The methods that some route has at this path."""
    routes = request.app.routes
    methods = [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]


async def _unexpected(request: Request, error: Exception) -> Response:
    """Starlette raises it again behind the answer, and the edge writes it into the log."""
    return _render(request, Internal())


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's own validation, told in our words: the first member that is wrong, and why."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = dict(error.errors()[0])
    if first.get("type") == "json_invalid":
        return _render(request, BadRequest("The body is not valid JSON."))
    place = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    return _render(request, BadRequest(f"{param or 'The request'}: {first.get('msg', 'is not valid')}.", param=param))
