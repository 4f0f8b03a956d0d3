"""What `/v1/ws` is for those who read the OpenAPI document, or call it without an upgrade."""

from __future__ import annotations

from typing import Annotated, NoReturn

from fastapi import APIRouter, Depends

from modelport.api.auth import require
from modelport.api.responses import errors
from modelport.calls import Caller
from modelport.errors import UpgradeRequired

router = APIRouter(tags=["WebSocket"])


@router.get(
    "/v1/ws",
    operation_id="open_websocket",
    summary="Open a WebSocket",
    description="Many calls on one connection (RFC 6455). Send `chat.create`, `predict.create` and `cancel`, each with "
    'an `id` of your own: `{"type": "chat.create", "id": "1", "model": "…", "messages": […]}`; receive `delta` and '
    "`result`, and one `done` or `error` at each call's end. Browsers, which can't set headers, send "
    '`{"type": "auth", "key": "…"}` first.',
    status_code=101,
    response_model=None,
    responses={101: {"description": "The protocol is switched."}, **errors(401, 403, 426, 429)},
)
async def describe(_caller: Annotated[Caller, Depends(require("inference"))]) -> NoReturn:
    raise UpgradeRequired("Connect to this address with a WebSocket client.")
