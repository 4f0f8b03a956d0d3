"""The errors that `[[error:…]]` can ask for: each is the very error that the real thing raises."""

from __future__ import annotations

from collections.abc import Callable

from modelport.errors import (
    BadRequest,
    BodyTooLarge,
    CallTimeout,
    Conflict,
    ContextTooLong,
    Internal,
    LimitExceeded,
    ModelLoading,
    ModelNotFound,
    ModelportError,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    Unprocessable,
    UpstreamFailed,
    UpstreamRejected,
)

RETRY_AFTER_S = 1.0
_TEXT = "The sandbox failed as it was asked to"


def _limit() -> ModelportError:
    return LimitExceeded(_TEXT, kind="requests", retry_after_s=RETRY_AFTER_S)


FAILURES: dict[str, Callable[[], ModelportError]] = {
    "400": lambda: BadRequest(_TEXT),
    "401": lambda: Unauthenticated(_TEXT),
    "403": lambda: PermissionDenied(_TEXT),
    "404": lambda: NotFound(_TEXT),
    "409": lambda: Conflict(_TEXT),
    "413": lambda: BodyTooLarge(_TEXT),
    "422": lambda: Unprocessable(_TEXT),
    "429": _limit,
    "500": lambda: Internal(_TEXT),
    "502": lambda: UpstreamFailed(_TEXT),
    "503": lambda: Overloaded(_TEXT, retry_after_s=RETRY_AFTER_S),
    "504": lambda: CallTimeout(_TEXT),
    "invalid_request_error": lambda: BadRequest(_TEXT),
    "invalid_api_key": lambda: Unauthenticated(_TEXT),
    "permission_denied": lambda: PermissionDenied(_TEXT),
    "model_not_found": lambda: ModelNotFound(_TEXT),
    "rate_limit_exceeded": _limit,
    "insufficient_quota": lambda: QuotaExceeded(_TEXT),
    "internal_error": lambda: Internal(_TEXT),
    "upstream_failed": lambda: UpstreamFailed(_TEXT),
    "overloaded": lambda: Overloaded(_TEXT, retry_after_s=RETRY_AFTER_S),
    "model_loading": lambda: ModelLoading(_TEXT, retry_after_s=RETRY_AFTER_S),
    "timeout": lambda: CallTimeout(_TEXT),
    "context_length_exceeded": lambda: ContextTooLong(_TEXT, param="messages"),
    "content_filter": lambda: UpstreamRejected(
        _TEXT, status=400, code="content_filter", type="invalid_request_error", param="messages"
    ),
}


def failure(name: str) -> ModelportError:
    """The error called `name` (a status or a code). Raises: BadRequest where there is none."""
    make = FAILURES.get(name)
    if make is None:
        raise BadRequest(f"The sandbox has no error {name[:100]!r}. It has: {', '.join(FAILURES)}.")
    return make()
