"""The documents: OpenAPI, its two readers (offline), and a page for every error code."""

from __future__ import annotations

import functools
import importlib.util
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.staticfiles import StaticFiles

from modelport.api.auth import platform_of, require
from modelport.api.error_advice import ADVICE
from modelport.api.model_schemas import with_models
from modelport.api.openapi import build
from modelport.api.responses import errors
from modelport.errors import ModelportError, NotFound

router = APIRouter(tags=["Documents"])
_reader_of_models = require("models:read")
_SIDECAR = "drf_spectacular_sidecar"
_OWN = Path(__file__).parent / "assets"
# Nothing on these pages may come from, or go to, another machine.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Modelport API</title>
<link rel="icon" href="data:,">
{head}
</head>
<body>
<main id="docs">{body}</main>
{scripts}
</body>
</html>
"""


def sidecar_files() -> StaticFiles | None:
    """The packaged Swagger UI and Redoc, or None where the package isn't installed."""
    spec = importlib.util.find_spec(_SIDECAR)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "static" / _SIDECAR
    return StaticFiles(directory=folder) if folder.is_dir() else None


@functools.cache
def _redoc_script() -> bytes:
    """Redoc's bundle with the one address it would ask another machine for (its logo) taken out."""
    files = sidecar_files()
    assert files is not None
    bundle = Path(str(files.directory)) / "redoc" / "bundles" / "redoc.standalone.js"
    return bundle.read_bytes().replace(b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"data:,")


def own_files() -> StaticFiles:
    """The few lines of script that start the two readers."""
    return StaticFiles(directory=_OWN)


def document(app: Any) -> dict[str, Any]:
    """The OpenAPI document of `app`, built once."""
    if app.openapi_schema is None:
        app.openapi_schema = build(app)
    schema: dict[str, Any] = app.openapi_schema
    return schema


@router.get(
    "/openapi.json",
    operation_id="openapi",
    summary="The OpenAPI document",
    description="OpenAPI 3.1 of every route. With a key, the body of a prediction has the schemas of the models that "
    "the key may call.",
    responses=errors(401, 403, 429),
)
async def openapi_document(request: Request) -> JSONResponse:
    general = document(request.app)
    if "authorization" not in request.headers and "x-api-key" not in request.headers:
        return JSONResponse(general)
    caller = await _reader_of_models(request, None, None)
    return JSONResponse(with_models(general, platform_of(request).catalog.list_for(caller)))


@router.get("/docs", include_in_schema=False)
async def swagger() -> HTMLResponse:
    return _reader(
        head='<link rel="stylesheet" href="/static/docs/swagger-ui-dist/swagger-ui.css">',
        scripts=["/static/docs/swagger-ui-dist/swagger-ui-bundle.js", "/static/own/swagger.js"],
    )


@router.get("/static/redoc.js", include_in_schema=False)
async def redoc_script() -> Response:
    return Response(_redoc_script(), media_type="text/javascript", headers={"cache-control": "max-age=3600"})


@router.get("/redoc", include_in_schema=False)
async def redoc() -> HTMLResponse:
    return _reader(head="", scripts=["/static/redoc.js", "/static/own/redoc.js"])


def _reader(*, head: str, scripts: list[str]) -> HTMLResponse:
    if sidecar_files() is None:
        raise NotFound(
            f"The documentation reader is not installed: pip install --no-deps {_SIDECAR.replace('_', '-')}."
        )
    tags = "\n".join(f'<script src="{path}"></script>' for path in scripts)
    return _page(head=head, body="", scripts=tags)


def _page(*, head: str, body: str, scripts: str) -> HTMLResponse:
    return HTMLResponse(
        _PAGE.format(head=head, body=body, scripts=scripts), headers={"content-security-policy": _POLICY}
    )


@router.get(
    "/errors/{code}",
    operation_id="explain_error",
    summary="What an error code means",
    description="A page in words: what happened and what to do. Every error answer's `type` leads here.",
    response_class=HTMLResponse,
    responses=errors(404),
)
async def explain(code: str) -> Response:
    kinds = error_kinds()
    kind = kinds.get(code)
    if kind is None:
        raise NotFound(f"There is no error code {code!r}.")
    happened, to_do = ADVICE.get(code, (kind.title, ""))
    body = (
        f"<h1><code>{escape(kind.code)}</code></h1><p class='lead'>{escape(kind.title)}. Status {kind.status}.</p>"
        f"<h2>What happened</h2><p>{_words(happened)}</p><h2>What to do</h2><p>{_words(to_do)}</p>"
    )
    return _page(head='<link rel="stylesheet" href="/static/own/page.css">', body=body, scripts="")


def _words(text: str) -> str:
    """Text of the catalogue as HTML: what stands between backticks is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


@router.get(
    "/llms.txt",
    operation_id="llms_txt",
    summary="The API in words, for language models",
    description="Plain text: what is here and where its documents are.",
    response_class=PlainTextResponse,
)
async def llms() -> PlainTextResponse:
    return PlainTextResponse(
        "# Modelport\n\nAn OpenAI-compatible API and a predict API over the models that GET /v1/models lists.\n\n"
        "- OpenAPI: /openapi.json\n- Chat: POST /v1/chat/completions\n- Embeddings: POST /v1/embeddings\n"
        "- Predictions: POST /v1/predict\n- Usage: GET /v1/usage\n- Keys: Authorization: Bearer mp_live_...\n"
    )


def error_kinds() -> dict[str, type[ModelportError]]:
    """Every error class by its code; the first in the tree's order where two share one."""
    kinds: dict[str, type[ModelportError]] = {}
    queue: list[type[ModelportError]] = [ModelportError]
    while queue:
        kind = queue.pop(0)
        kinds.setdefault(kind.code, kind)
        queue.extend(kind.__subclasses__())
    return kinds
