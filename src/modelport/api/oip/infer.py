"""`POST /v2/models/{model}[/versions/{version}]/infer`."""

from __future__ import annotations

from modelport.api.exchange import Exchange
from modelport.api.generate import cost_headers, new_call, served_headers
from modelport.api.oip.wire import parse, render
from modelport.api.wire import Headers
from modelport.calls import Operation, Tensor
from modelport.errors import BadRequest, Internal
from modelport.inference.corridor import SCOPE

PREFIX = "/v2/models/"
SUFFIX = "/infer"
# What usage and metrics call all of them: a path with a model's name in it would be a new one for each model.
ENDPOINT = "/v2/models/infer"
_HEADER_LENGTH = b"inference-header-content-length"


async def infer(exchange: Exchange) -> None:
    """Tensors in, tensors out. The key is checked before the body is read."""
    platform, secret = exchange.platform, exchange.secret()
    caller = await platform.admission.authenticate(secret, address=exchange.address, scope=SCOPE)
    body = await exchange.body(inflate=True)
    request, wanted = parse(
        body, header_length=exchange.header(_HEADER_LENGTH), max_depth=platform.settings.server.max_json_depth
    )
    request.model, request.model_version = named(exchange.path.removesuffix(SUFFIX))
    call = new_call(exchange, caller, operation=Operation.INFER, request=request, fields={})
    call.endpoint = ENDPOINT
    run = await platform.corridor.admit(call, secret)
    exchange.levels = run.reservation.levels
    exchange.guard(run.interrupt)
    tensors: list[Tensor] = []
    async for delta in run.deltas():
        tensors = delta.value
    served = run.plan.served
    try:
        answer, length = render(tensors, wanted, model=served.model, version=served.version)
    except ValueError as error:
        raise Internal(internal=f"an output of {served.model} is no text: {error}") from error
    headers: Headers = [*served_headers(exchange, run), *cost_headers(exchange, run)]
    if length is None:
        await exchange.respond(200, bytes(answer), headers=headers)
        return
    headers.append((_HEADER_LENGTH, b"%d" % length))
    await exchange.respond(
        200, bytes(answer), headers=headers, content_type=(b"content-type", b"application/octet-stream")
    )


def named(path: str) -> tuple[str, str | None]:
    """Model and version of a path below `/v2/models/`. Raises: BadRequest when it names none."""
    name, mark, version = path.removeprefix(PREFIX).rpartition("/versions/")
    if not mark:
        name, version = version, ""
    if not name:
        raise BadRequest("The path names no model.", param="model")
    return name, version or None
