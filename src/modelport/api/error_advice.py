"""What each error code means in words, and what to do about it. The pages of `/errors/{code}` and `docs/errors/`."""

from __future__ import annotations

# What happened, and what to do about it; for developers who met the code in an answer.
ADVICE: dict[str, tuple[str, str]] = {
    "invalid_request_error": (
        "The request can't be understood or breaks the schema of its route. `error.param` names the member at fault "
        "where there is one. Also the answer to a body that did not arrive in time.",
        "Change the request; the same one always fails again. `/docs` shows the schema of each route.",
    ),
    "request_too_large": (
        "The body is larger than the platform accepts. It was refused while it arrived, so nothing was processed.",
        "Send less at once: fewer inputs a call, or a smaller image. The operator's limit is `server.max_body_bytes`.",
    ),
    "unsupported_media_type": (
        "The body's content type (or an image's format) is none that this route reads.",
        "Send `application/json`, or `multipart/form-data` for image uploads. Images: JPEG, PNG, WebP, GIF or BMP.",
    ),
    "context_length_exceeded": (
        "The prompt and the answer that was asked for don't fit into the model's context together. Nothing was run.",
        "Send less of the conversation, ask for a smaller `max_tokens`, or use a model with a larger `context_tokens` "
        "(`GET /v1/models/{id}`).",
    ),
    "invalid_api_key": (
        "There is no API key in the request, or it is mistyped, expired or revoked.",
        "Send `Authorization: Bearer mp_live_…` or `X-API-Key: mp_live_…`. The last six characters of a key are a "
        "checksum, so a key cut short in copying is told apart from one that was revoked only by its owner: "
        "list the keys with `modelport keys list`, make a new one with `modelport keys create`.",
    ),
    "permission_denied": (
        "The key is valid and may not do this: a scope is missing, the key is bound to other models, or the address "
        "it was used from isn't on its list.",
        "Use a key with the scope that the message names, or have one made.",
    ),
    "not_found": (
        "Nothing has this address or id, or it belongs to another organization, which looks the same on purpose.",
        "Check the path and the id. `/docs` lists every route.",
    ),
    "model_not_found": (
        "No model, version or alias of that name is served here, or this key may not use it.",
        "`GET /v1/models` (`modelport models list`) shows what this key can use. Versions are asked for as "
        "`model@version`.",
    ),
    "upgrade_required": (
        "`/v1/ws` was called with plain HTTP, or with another version of the WebSocket protocol than 13.",
        "Connect with a WebSocket client (`wss://…/v1/ws`). Proxies must pass `Upgrade` and `Connection` on.",
    ),
    "method_not_allowed": (
        "The address exists but not with this method. The `Allow` header names those it has.",
        "Use one of them.",
    ),
    "conflict": (
        "The request contradicts what is stored, such as a name that is taken.",
        "Read what is there now, then send a request that fits. SDKs don't retry it.",
    ),
    "idempotency_in_flight": (
        "A request with this `Idempotency-Key` is being answered at this moment. This one was not run, so nothing "
        "happens twice.",
        "Repeat it after `Retry-After`: once the first has ended, you get its answer. Official SDKs do so by "
        "themselves.",
    ),
    "idempotency_not_kept": (
        "The request with this `Idempotency-Key` ran, as the call that the message names, and its answer was larger "
        "than what is kept (`idempotency.max_answer_bytes`). It is not run again, since you asked for it to run once.",
        "The receipt of that call is at `GET /v1/requests/{id}`. To run the request again, send it with a new key.",
    ),
    "gone": (
        "The route, model or version was announced to end, and has ended. The headers `Deprecation`, `Sunset` and "
        "`Link` have said so since the announcement.",
        'Use what the message and the `Link` with `rel="successor-version"` name. `GET /v1/deprecations` lists all '
        "retirements, also those to come.",
    ),
    "unprocessable": (
        "The request is well formed and still can't be carried out: its parts contradict each other.",
        "Change it as the message says. SDKs don't retry it.",
    ),
    "idempotency_mismatch": (
        "This `Idempotency-Key` was used within the last 24 hours for a request with another method, path or body, "
        "or for one whose answer belongs to another API key. Nothing was run.",
        "Make a new key for every new request, such as a UUID, and repeat only the very same request under it.",
    ),
    "rate_limit_exceeded": (
        "A limit per minute, or of calls at one time, has no room for this call; `error.type` says which: `requests`, "
        "`tokens` or `concurrency`. Tokens are reserved from the prompt's length and `max_tokens` before a call and "
        "corrected to what it really used. Nothing was run and nothing is charged.",
        "Wait for `Retry-After` and send it again (official SDKs do so by themselves). Set `max_tokens` to what you "
        "need: an answer without it reserves the model's maximum. `x-should-retry: false` marks a call that is larger "
        "than the whole limit and can never pass.",
    ),
    "insufficient_quota": (
        "A budget of this key, project, organization or tag is spent, or has less left than the shortest answer can "
        "cost. Nothing was run and nothing is charged.",
        "Raise the budget (`PATCH /v1/budgets/{id}`) or wait for its next period. Retrying does not help.",
    ),
    "budget_exceeded": (
        "A budget has too little left for this call: `insufficient_quota` on routes that aren't OpenAI's. Nothing was "
        "run and nothing is charged.",
        "Raise the budget (`PATCH /v1/budgets/{id}`) or wait for its next period. Retrying does not help.",
    ),
    "call_cancelled": (
        "The client closed the connection before the answer was complete. It is seen only in usage records.",
        "Nothing. What was produced until then is charged, and the engine was stopped.",
    ),
    "internal_error": (
        "The platform itself failed. The answer holds no detail on purpose.",
        "Try again; if it persists, give the operator the `request_id`, which names the call in the log.",
    ),
    "upstream_failed": (
        "The server behind the model failed or broke off its answer.",
        "Try again. The operator finds the reason in the log under the `request_id`.",
    ),
    "upstream_rejected": (
        "The server behind the model refused the request itself. Its own status, code and words are passed on.",
        "Change the request as the message says.",
    ),
    "unavailable": (
        "A part that this call needs is away for a moment.",
        "Send it again after `Retry-After`. `GET /health` shows which part it is.",
    ),
    "overloaded": (
        "The model's queue is full. It is bounded so that calls which are let in are answered in time.",
        "Send it again after `Retry-After`. Operators: more slots (`options.slots`), more workers or another target.",
    ),
    "circuit_open": (
        "Every server behind the model failed so often, or was so slow, that it is left alone for a moment. Nothing "
        "was run and nothing is charged.",
        "Send it again after `Retry-After`: one call at a time is let through until the server is well again. "
        "Operators: `GET /v1/admin/circuits`, the upstream's `breaker` settings, another target or a fallback.",
    ),
    "model_loading": (
        "The model's files are still being fetched or read.",
        "Send it again after `Retry-After`. `GET /v1/models/{id}` shows how far it is.",
    ),
    "state_unavailable": (
        "The shared state (where limits are counted) can't be reached. Calls that can't be limited aren't let through.",
        "Send it again after `Retry-After`. Operators: check `state.url`; `modelport doctor` tries it.",
    ),
    "timeout": (
        "The call took longer than it may: the deadline passed, or the server behind the model was silent too long.",
        "Ask for less (`max_tokens`), or stream the answer. The operator's limits are `server.call_timeout_s` and the "
        "upstream's timeouts.",
    ),
}
