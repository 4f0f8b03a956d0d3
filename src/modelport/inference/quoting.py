"""What a call can cost at most, whichever of the models that may answer does. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from modelport.budgets.quote import Quote, Rate
from modelport.calls import Call, Operation, Tensor
from modelport.metering.model import Price

_MILLION = 1_000_000
_WHOLE_BASIS_POINTS = 10_000
# An upstream counts its own tokens, and an estimate from the length of a text may be half of the truth.
_ESTIMATE = 2


def quote(
    call: Call, prices: Iterable[Price | None], *, input_tokens: int, exact: bool, output_tokens: int | None
) -> Quote:
    """The worst case over `prices`, one for each model that may answer (None: free).

    `exact` says whether `input_tokens` is a count or an estimate; `output_tokens` bounds each choice.
    """
    inputs = input_tokens if exact else _ESTIMATE * input_tokens
    images = _images(call)
    longest_us = round((call.deadline_s - call.started_s) * _MILLION)
    share = _WHOLE_BASIS_POINTS - call.caller.discount_basis_points
    rates = tuple(
        _rate(price, input_tokens=inputs, images=images, longest_us=longest_us, share=share) for price in prices
    )
    return Quote(rates, output_tokens, choices(call))


def _images(call: Call) -> int:
    """As many as the call may be charged for: inputs, or rows of a tensor."""
    if call.operation is Operation.PREDICT:
        return len(call.request.inputs)
    if call.operation is Operation.INFER:
        tensors: list[Tensor] = call.request.inputs
        return max([0, *(tensor.shape[0] for tensor in tensors if tensor.shape)])
    return 0


def _rate(price: Price | None, *, input_tokens: int, images: int, longest_us: int, share: int) -> Rate:
    if price is None:
        return Rate(0, 0)
    per_input = max(price.input_nanos_per_mtok, price.cached_nanos_per_mtok or 0)
    fixed = input_tokens * per_input + longest_us * price.nanos_per_second
    fixed += (price.nanos_per_request + images * price.nanos_per_image) * _MILLION
    return Rate(fixed * share, price.output_nanos_per_mtok * share)


def choices(call: Call) -> int:
    """How many answers were asked for, each with a bound of its own."""
    prompts = getattr(call.request, "prompt", None)
    many = len(prompts) if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) else 1
    return (getattr(call.request, "n", None) or 1) * many
