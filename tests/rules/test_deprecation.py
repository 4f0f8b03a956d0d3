"""Retirements by a clock that is turned by hand, and the headers that tell of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import http_sf
import pytest
from pydantic import ValidationError

from modelport.api.deprecation_headers import deprecation_headers
from modelport.catalog.deprecation import Deprecation, RouteDeprecations, Stage, deprecation_of
from modelport.errors import Gone
from modelport.kit.clock import ManualClock
from modelport.settings import DeprecationSettings, RouteDeprecationSettings

# The instants of the contract's own example.
DEPRECATED_S = 1_767_225_600
SUNSET_S = int(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
PREDICT = Deprecation("route", "/v1/predict", DEPRECATED_S, SUNSET_S, "/v2/predict", "https://example.com/v2")


def headers(*rows: Deprecation, base_url: str = "") -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in deprecation_headers(rows, base_url)}


def test_a_retirement_is_announced_then_deprecated_then_gone() -> None:
    clock = ManualClock(start_us=(DEPRECATED_S - 1) * 1_000_000)
    assert PREDICT.stage(clock.now_us()) is Stage.ANNOUNCED
    clock.advance(1)
    assert PREDICT.stage(clock.now_us()) is Stage.DEPRECATED
    clock.advance(SUNSET_S - DEPRECATED_S - 0.000001)
    PREDICT.check(clock.now_us())
    assert PREDICT.stage(clock.now_us()) is Stage.DEPRECATED
    clock.advance(0.000001)
    assert PREDICT.stage(clock.now_us()) is Stage.GONE
    with pytest.raises(Gone, match="'/v1/predict' was retired on 2026-12-31; use '/v2/predict'") as caught:
        PREDICT.check(clock.now_us())
    assert (caught.value.status, caught.value.deprecation) == (410, PREDICT)


def test_without_a_sunset_nothing_ever_goes() -> None:
    endless = Deprecation("model", "iris", DEPRECATED_S)
    endless.check(10 * SUNSET_S * 1_000_000)
    assert endless.stage(10 * SUNSET_S * 1_000_000) is Stage.DEPRECATED
    assert set(headers(endless)) == {"deprecation", "link"}


def test_the_headers_are_those_of_the_contract() -> None:
    found = headers(PREDICT)
    assert found == {
        "deprecation": "@1767225600",
        "sunset": "Thu, 31 Dec 2026 23:59:59 GMT",
        "link": '<https://example.com/v2>; rel="deprecation", <https://example.com/v2>; rel="sunset", '
        '</v2/predict>; rel="successor-version"',
    }
    value, _ = http_sf.parse(found["deprecation"].encode(), tltype="item")
    assert value == datetime.fromtimestamp(DEPRECATED_S, UTC)


def test_a_page_that_nobody_wrote_is_the_list() -> None:
    model = Deprecation("model", "iris", DEPRECATED_S, successor="org/iris 2")
    assert headers(model, base_url="https://api.example.com")["link"] == (
        '<https://api.example.com/v1/deprecations>; rel="deprecation", '
        '</v1/models/org/iris%202>; rel="successor-version"'
    )


def test_of_a_route_and_a_model_the_earlier_dates_are_told() -> None:
    model = Deprecation("model", "iris", DEPRECATED_S - 9, SUNSET_S + 9, "iris-2")
    found = headers(PREDICT, model)
    assert found["deprecation"] == f"@{DEPRECATED_S - 9}"
    assert found["sunset"] == headers(PREDICT)["sunset"]
    assert found["link"].count('rel="successor-version"') == 2


def test_a_route_is_found_by_itself_before_what_it_lies_below() -> None:
    day = datetime.fromtimestamp(DEPRECATED_S, UTC)
    rows = [RouteDeprecationSettings(route=route, deprecated_at=day) for route in ("/v1/*", "/v1/a", "/v1/a/*")]
    table = RouteDeprecations(rows)
    found = {path: row.name for path in ("/v1/a", "/v1/a/b", "/v1/b", "/v1", "/v2/a") if (row := table.find(path))}
    assert found == {"/v1/a": "/v1/a", "/v1/a/b": "/v1/a/*", "/v1/b": "/v1/*"}
    assert RouteDeprecations([]).find("/v1/a") is None


@pytest.mark.parametrize(
    "row",
    [
        {"deprecated_at": "2026-01-01T00:00:00"},
        {"deprecated_at": "2026-01-02T00:00:00Z", "sunset_at": "2026-01-01T00:00:00Z"},
        {"deprecated_at": "2026-01-01T00:00:00Z", "link": 'https://x/>; rel="evil"'},
        {"deprecated_at": "2026-01-01T00:00:00Z", "successor": "a\r\nb"},
    ],
)
def test_dates_without_an_offset_in_the_wrong_order_or_links_that_break_out_are_refused(row: Any) -> None:
    with pytest.raises(ValidationError):
        DeprecationSettings.model_validate(row)


def test_dates_of_any_offset_mean_one_instant() -> None:
    row = DeprecationSettings.model_validate({"deprecated_at": "2026-01-01T01:00:00+01:00"})
    found = deprecation_of("model", "iris", row)
    assert found is not None
    assert found.deprecated_at_s == DEPRECATED_S
    assert row.deprecated_at.utcoffset() == timedelta(hours=1)
    assert deprecation_of("model", "iris", None) is None
