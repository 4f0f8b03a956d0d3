"""What the registry lays over the configuration, and where aliases lead: decided from data alone."""

from __future__ import annotations

import pytest

from modelport.catalog.overlay import base_aliases, effective, overlay, previous, wanted_aliases
from modelport.catalog.registered import AddedVersion, AliasStep, Registered, Retirement
from modelport.settings import ModelSettings, TargetSettings, VersionSettings

BASE = [
    ModelSettings(
        id="iris",
        kind="tabular",
        backend="onnx",
        versions=[VersionSettings(version="1", source="a.onnx"), VersionSettings(version="2", source="b.onnx")],
        aliases={"stable": "1"},
    ),
    ModelSettings(id="gpt", targets=[TargetSettings(upstream="primary")]),
]


def added(version: str, model: str = "iris", *, removed: bool = False, created_us: int = 1) -> AddedVersion:
    return AddedVersion(model, version, "tabular", "onnx", f"{version}.onnx", created_us, "key_1", removed=removed)


def steps(*versions: str, alias: str = "latest", model: str = "iris") -> dict[tuple[str, str], tuple[AliasStep, ...]]:
    """What the alias meant, the oldest first."""
    rows = [AliasStep(model, alias, number, version, number, "key_1") for number, version in enumerate(versions, 1)]
    return {(model, alias): tuple(reversed(rows))}


def test_without_a_registry_the_configuration_stands() -> None:
    assert overlay(BASE, Registered()) == BASE
    assert wanted_aliases(BASE[0], Registered()) == {"latest": ("2",), "stable": ("1",)}


def test_an_added_version_comes_behind_the_configured_ones_and_moves_no_alias() -> None:
    registered = Registered(versions=(added("3"),))
    row = overlay(BASE, registered)[0]
    assert [version.version for version in row.all_versions()] == ["1", "2", "3"]
    assert base_aliases(row, registered) == {"latest": "2", "stable": "1"}


def test_the_configuration_holds_where_both_have_a_version_of_one_name() -> None:
    row = overlay(BASE, Registered(versions=(added("2"),)))[0]
    assert [version.source for version in row.all_versions()] == ["a.onnx", "b.onnx"]


def test_a_removed_version_and_one_of_an_upstreams_model_are_not_served() -> None:
    assert overlay(BASE, Registered(versions=(added("3", removed=True), added("2", "gpt")))) == BASE


def test_a_new_models_aliases_mean_its_first_version_until_they_are_moved() -> None:
    registered = Registered(versions=(added("5", "rose"), added("7", "rose")))
    row = overlay(BASE, registered)[-1]
    assert row.id == "rose"
    assert wanted_aliases(row, registered) == {"latest": ("5",), "stable": ("5",)}


def test_an_alias_remembers_what_it_meant_with_the_configuration_behind() -> None:
    registered = Registered(versions=(added("3"),), steps=steps("3", "1"))
    row = overlay(BASE, registered)[0]
    assert wanted_aliases(row, registered)["latest"] == ("1", "3", "2")


def test_an_alias_that_was_taken_back_means_what_the_configuration_says_or_nothing() -> None:
    registered = Registered(steps=steps("1", "") | steps("1", "", alias="canary"))
    wanted = wanted_aliases(BASE[0], registered)
    assert wanted["latest"][0] == "2"
    assert "canary" not in wanted


def test_an_alias_of_a_version_that_the_configuration_lost_means_what_it_meant_before() -> None:
    """An operator took version 9 out of the file: what pointed to it must not break the model."""
    registered = Registered(steps=steps("1", "9"))
    assert wanted_aliases(BASE[0], registered)["latest"] == ("1", "2")


@pytest.mark.parametrize(
    ("current", "ready", "failed", "leads"),
    [
        ("1", {"1", "2"}, set(), "2"),  # it can answer: flip
        ("1", {"1"}, set(), "1"),  # it is loading: wait
        ("1", {"1"}, {"2"}, "1"),  # it can't be loaded: stay
        ("1", set(), {"1", "2"}, "1"),  # neither can: stay, and say why
        (None, {"1"}, set(), "2"),  # a start: what it is to mean is loading
        (None, {"1"}, {"2"}, "1"),  # a start where it can't be loaded
        ("2", {"1"}, {"2"}, "1"),  # the same, a moment later
        ("2", {"1"}, set(), "2"),  # it answered, and is away for a moment
        (None, set(), {"1", "2"}, "2"),
    ],
)
def test_an_alias_leads_only_to_what_can_answer(
    current: str | None, ready: set[str], failed: set[str], leads: str
) -> None:
    found = effective(("2", "1"), current, ready=ready.__contains__, failed=failed.__contains__)
    assert found == leads


def test_a_rollback_leads_to_the_last_other_meaning_that_is_still_there() -> None:
    history = steps("1", "3", "3", "4")["iris", "latest"]
    assert previous(history, "2", {"1", "2", "3", "4"}) == "3"
    assert previous(history, "2", {"1", "2", "4"}) == "1"
    assert previous(steps("3")["iris", "latest"], "2", {"2", "3"}) == "2"
    assert previous(steps("2")["iris", "latest"], "2", {"2"}) is None


def test_an_end_announced_while_serving_goes_before_the_configurations() -> None:
    end = Retirement("iris", "1", 10_000_000, 20_000_000, "iris@2", "", 1, "key_1")
    row = overlay(BASE, Registered(retirements=(end,)))[0]
    found = row.all_versions()[0].deprecation
    assert found is not None
    assert found.successor == "iris@2"
    assert found.sunset_at is not None
    assert found.sunset_at.timestamp() == 20
    assert row.all_versions()[1].deprecation is None
