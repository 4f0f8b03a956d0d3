"""The management API's way in: one dependency that authenticates, limits, and checks the scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from modelport.api.exchange import read_secret
from modelport.api.platform import Platform
from modelport.calls import Caller

# They only describe the two ways in the OpenAPI document; `require` reads the headers itself, as the hot routes do.
bearer_scheme = HTTPBearer(auto_error=False, scheme_name="Bearer", description="An API key: `Bearer mp_live_…`.")
key_scheme = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="X-API-Key", description="The same key.")


def platform_of(request: Request) -> Platform:
    """The services behind the door."""
    platform: Platform = request.app.state.platform
    return platform


def require(scope: str) -> Callable[..., Awaitable[Caller]]:
    """A dependency that returns the caller if the key is good, within its limit, and has `scope`.

    The levels of its limits are left in the scope for the answer's headers.
    Raises: Unauthenticated, PermissionDenied, LimitExceeded.
    """

    async def caller(
        request: Request,
        _bearer: Annotated[object, Depends(bearer_scheme)],
        _key: Annotated[object, Depends(key_scheme)],
    ) -> Caller:
        secret = read_secret(request.headers.get("authorization"), request.headers.get("x-api-key"))
        address = request.client.host if request.client else ""
        found, reservation = await platform_of(request).admission.manage(
            request.scope["modelport.request_id"], secret, address=address, scope=scope
        )
        request.scope["modelport.levels"] = reservation.levels
        return found

    return caller


PlatformDep = Annotated[Platform, Depends(platform_of)]
