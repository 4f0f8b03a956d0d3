"""Every way a call can fail, on one screen.

    ModelportError                              status, code, type: what the doors render
    ├── BadRequest              400  invalid_request_error      the request itself is wrong; never retried
    │   ├── BodyTooLarge        413  request_too_large
    │   ├── UnsupportedMedia    415  unsupported_media_type
    │   └── ContextTooLong      400  context_length_exceeded    the prompt does not fit into the model's context
    ├── Unauthenticated         401  invalid_api_key
    ├── PermissionDenied        403  permission_denied
    ├── NotFound                404  not_found
    │   └── ModelNotFound       404  model_not_found
    ├── MethodNotAllowed        405  method_not_allowed
    ├── UpgradeRequired         426  upgrade_required           a WebSocket is spoken there
    ├── Conflict                409  conflict
    │   ├── IdempotencyInFlight 409  idempotency_in_flight      temporary: the first call still runs
    │   └── IdempotencyNotKept  409  idempotency_not_kept       the first call ran, and its answer was too large
    ├── Gone                    410  gone                       retired; the message names what to use instead
    ├── Unprocessable           422  unprocessable
    │   └── IdempotencyMismatch 422  idempotency_mismatch       the key was used for another request
    ├── LimitExceeded           429  rate_limit_exceeded        temporary: retry_after_s says when
    ├── QuotaExceeded           429  insufficient_quota         permanent until somebody pays
    │   └── BudgetExceeded      402  budget_exceeded            the same, where clients don't expect OpenAI's code
    ├── CallCancelled           499  call_cancelled             metered only; nobody is left to read it
    ├── Internal                500  internal_error
    ├── UpstreamFailed          502  upstream_failed
    │   ├── UpstreamMisconfigured 502 upstream_failed           wrong address or credentials: only its operator can help
    │   └── UpstreamRejected    4xx  upstream_rejected          the upstream's own 4xx, passed on
    ├── Unavailable             503
    │   ├── Overloaded          503  overloaded                 a bounded queue is full
    │   │   └── UpstreamLimited 503  overloaded                 the upstream's own 429
    │   ├── CircuitOpen         503  circuit_open               every target failed so often that it is left alone
    │   ├── ModelLoading        503  model_loading
    │   └── StateUnavailable    503  state_unavailable          limits can't be checked, so nothing is let through
    └── CallTimeout             504  timeout

No HTTP lives here beyond the number: each door has its own table of how to render one. `message` is public and
never holds the text of a foreign exception; what only the log may see goes into `internal`.
"""

from __future__ import annotations


class ModelportError(Exception):
    """Base of all. `message` is written for the caller: what is wrong, and what to do about it."""

    status = 500
    code = "internal_error"
    type = "server_error"
    title = "Internal error"
    # SDKs retry 408, 409, 429 and every 5xx unless they are told not to; None leaves it to them.
    should_retry: bool | None = None

    def __init__(
        self,
        message: str = "",
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        internal: str | None = None,
    ) -> None:
        self.message = message or self.title
        self.param = param
        self.retry_after_s = retry_after_s
        self.internal = internal
        super().__init__(self.message)


class BadRequest(ModelportError):
    status, code, type = 400, "invalid_request_error", "invalid_request_error"
    title = "The request is not valid"


class BodyTooLarge(BadRequest):
    status, code = 413, "request_too_large"
    title = "The request is too large"


class UnsupportedMedia(BadRequest):
    status, code = 415, "unsupported_media_type"
    title = "The content type is not supported"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"
    title = "The prompt is longer than the model's context"


class Unauthenticated(ModelportError):
    status, code, type = 401, "invalid_api_key", "authentication_error"
    title = "The API key is missing or not valid"


class PermissionDenied(ModelportError):
    status, code, type = 403, "permission_denied", "permission_error"
    title = "The API key may not do this"


class NotFound(ModelportError):
    status, code, type = 404, "not_found", "invalid_request_error"
    title = "There is no such thing here"


class ModelNotFound(NotFound):
    code = "model_not_found"
    title = "The model does not exist"


class MethodNotAllowed(ModelportError):
    status, code, type = 405, "method_not_allowed", "invalid_request_error"
    title = "The method is not allowed here"


class UpgradeRequired(ModelportError):
    status, code, type = 426, "upgrade_required", "invalid_request_error"
    title = "This address is for WebSocket clients"


class Conflict(ModelportError):
    status, code, type = 409, "conflict", "invalid_request_error"
    title = "The request conflicts with what is stored"
    should_retry = False


class IdempotencyInFlight(Conflict):
    code = "idempotency_in_flight"
    title = "The request with this Idempotency-Key is still running"
    should_retry = True


class IdempotencyNotKept(Conflict):
    code = "idempotency_not_kept"
    title = "The answer to this Idempotency-Key was too large to keep"


class Gone(ModelportError):
    """Something that was announced to end and has ended. `deprecation` has the dates, for the answer's headers."""

    status, code, type = 410, "gone", "invalid_request_error"
    title = "This was retired"

    def __init__(self, message: str, *, deprecation: object = None) -> None:
        super().__init__(message)
        # A `modelport.catalog.deprecation.Deprecation`.
        self.deprecation = deprecation


class Unprocessable(ModelportError):
    status, code, type = 422, "unprocessable", "invalid_request_error"
    title = "The request is well formed but can't be carried out"
    should_retry = False


class IdempotencyMismatch(Unprocessable):
    code = "idempotency_mismatch"
    title = "The Idempotency-Key was used for another request"


class LimitExceeded(ModelportError):
    """A rate or concurrency limit. `type` (`requests`, `tokens` or `concurrency`) says which kind refused.

    `too_large` marks a request that is larger than the whole limit: it can never pass, so it is not to be retried.
    """

    status, code, type = 429, "rate_limit_exceeded", "requests"
    title = "A rate limit is reached"

    def __init__(self, message: str, *, kind: str, retry_after_s: float | None, too_large: bool = False) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.type = kind
        # The buckets as they stood (`modelport.state.protocol.Level`), for the headers of the answer.
        self.levels: list[object] = []
        if too_large:
            self.should_retry = False


class QuotaExceeded(ModelportError):
    status, code, type = 429, "insufficient_quota", "insufficient_quota"
    title = "The budget is spent"
    should_retry = False
    # What is left of the budget, in nano-dollars, where it is known.
    left_nanos: int | None = None


class BudgetExceeded(QuotaExceeded):
    status, code, type = 402, "budget_exceeded", "budget_exceeded"
    # The fence `keys` as the take read it that was refused: by a budget that may have been changed meanwhile.
    fence = 0

    def as_quota(self) -> QuotaExceeded:
        """The same in OpenAI's words."""
        error = QuotaExceeded(self.message)
        error.left_nanos = self.left_nanos
        return error


class CallCancelled(ModelportError):
    status, code, type = 499, "call_cancelled", "cancelled"
    title = "The client hung up"


class Internal(ModelportError):
    title = "Something went wrong on our side; the request id names it in our logs"


class UpstreamFailed(ModelportError):
    status, code, type = 502, "upstream_failed", "upstream_error"
    title = "The model's server failed"


class UpstreamMisconfigured(UpstreamFailed):
    """Asking it again changes nothing: its operator has to look at the row that describes it."""


class UpstreamRejected(UpstreamFailed):
    """The upstream refused the request itself with a 4xx, which is passed on with its own words."""

    code = "upstream_rejected"
    title = "The model's server refused the request"
    should_retry = False

    def __init__(self, message: str, *, status: int, code: str | None, type: str | None, param: str | None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code or self.code
        self.type = type or "invalid_request_error"


class Unavailable(ModelportError):
    status, code, type = 503, "unavailable", "server_error"
    title = "The service is not available for a moment"

    def __init__(
        self,
        message: str = "",
        *,
        param: str | None = None,
        retry_after_s: float | None = 1.0,
        internal: str | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s, internal=internal)


class Overloaded(Unavailable):
    code = "overloaded"
    title = "The model has more to do than it can take on"


class UpstreamLimited(Overloaded):
    """The upstream has a limit of its own, and says when to come back."""


class CircuitOpen(Unavailable):
    code = "circuit_open"
    title = "The model's servers fail so often that they are left alone for a moment"


class ModelLoading(Unavailable):
    code = "model_loading"
    title = "The model is still loading"


class StateUnavailable(Unavailable):
    code = "state_unavailable"
    title = "Limits can't be checked for a moment, so nothing is let through"


class CallTimeout(ModelportError):
    status, code, type = 504, "timeout", "timeout"
    title = "The call took longer than it may"
