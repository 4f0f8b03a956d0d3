"""The settings: where they come from, which wins, and how mistakes are told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from modelport.catalog.configured import all_models, check_models
from modelport.catalog.handover import read_settings, write_settings
from modelport.cli.settings import masked
from modelport.settings import ModelSettings, Settings, load


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "modelport.toml"
    path.write_text(text)
    return path


def test_defaults_run_on_a_bare_laptop() -> None:
    settings = load()
    assert settings.server.host == "127.0.0.1"
    assert settings.server.port == 8000
    assert settings.database.url == ""
    assert settings.state.url == "auto"
    assert {"smollm2-135m-instruct", "sandbox"} <= {row.id for row in all_models(settings)}


def test_the_environment_wins_over_the_file_and_flags_win_over_both(tmp_path: Path) -> None:
    file = toml(tmp_path, "[server]\nhost = 'file'\nport = 1\nworkers = 1\n")
    with environment(MODELPORT_SERVER__HOST="environment", MODELPORT_SERVER__PORT="2"):
        settings = load(file, server={"port": 3})
    assert (settings.server.host, settings.server.port, settings.server.workers) == ("environment", 3, 1)


def test_a_flag_leaves_its_group_as_it_was(tmp_path: Path) -> None:
    file = toml(tmp_path, "[server]\ndrain_s = 7\n")
    assert load(file, server={"port": 3}).server.drain_s == 7


def test_lists_come_from_the_environment_as_json() -> None:
    with environment(MODELPORT_SERVER__CORS_ORIGINS='["https://example.com"]'):
        assert load().server.cors_origins == ["https://example.com"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1", "prot"),
        ("[server]\nport = 70000", "65535"),
        ("[[models]]\nid = 'a'", "needs a backend"),
        ("[[models]]\nid = 'a'\nbackend = 'onnx'", "needs a source"),
        ("[[models]]\nid = 'a'\ntargets = [{upstream = 'nobody'}]", "nobody"),
        ("[[models]]\nid = 'a'\nbackend = 'sandbox'\n[[models]]\nid = 'a'\nbackend = 'sandbox'", "two models"),
        ("[[models]]\nid = 'a'\nbackend = 'sandbox'\nprices = {input_usd_per_mtok = '-1'}", "not negative"),
        ("[[models]]\nid = 'a'\nbackend = 'sandbox'\nprices = {input_usd_per_mtok = 'much'}", "much"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        load(toml(tmp_path, text))


def test_a_missing_file_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"modelport\.toml"):
        load(tmp_path / "modelport.toml")


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load().server.port = 1  # type: ignore[misc]


def test_workers_read_exactly_what_the_supervisor_wrote(tmp_path: Path) -> None:
    """Whatever the environment says by then: a value that changed in between must not reach half of the workers."""
    settings = load(
        server={"port": 7},
        upstreams=[{"name": "primary", "base_url": "http://127.0.0.1:1/v1"}],
        models=[{"id": "a", "targets": [{"upstream": "primary"}], "prices": {"input_usd_per_mtok": "0.15"}}],
    )
    write_settings(tmp_path, settings)
    with environment(MODELPORT_SERVER__PORT="9", MODELPORT_DATABASE__URL="postgresql://elsewhere/db"):
        assert read_settings(tmp_path).model_dump() == settings.model_dump()


def test_a_configured_model_replaces_the_default_of_its_name() -> None:
    row = ModelSettings(id="iris", kind="tabular", backend="onnx", source="mine.onnx")
    models = [model for model in all_models(Settings(models=[row])) if model.id == "iris"]
    assert models == [row]


def test_default_models_can_be_left_out() -> None:
    assert all_models(Settings(default_models=False)) == []


def test_secrets_are_masked_where_settings_are_shown() -> None:
    tree = {
        "database": {"url": "postgresql://me:hunter2@db/modelport"},
        "upstreams": [{"api_key_env": "PRIMARY_KEY", "headers": {"Authorization": "Bearer abc", "x-team": "blue"}}],
    }
    assert masked(tree) == {
        "database": {"url": "postgresql://me:***@db/modelport"},
        "upstreams": [{"api_key_env": "PRIMARY_KEY", "headers": {"Authorization": "***", "x-team": "blue"}}],
    }


@pytest.mark.parametrize(("name", "why"), [("nobody", "not configured"), ("m", "itself"), ("sandbox", None)])
@pytest.mark.parametrize("place", ["fallbacks", "context", "rate_limit"])
def test_fallbacks_lead_to_models_that_there_are(tmp_path: Path, name: str, why: str | None, place: str) -> None:
    general = f"fallbacks = ['{name}']" if place == "fallbacks" else f"route.fallbacks.{place} = ['{name}']"
    settings = load(toml(tmp_path, f"[[models]]\nid = 'm'\nbackend = 'sandbox'\n{general}\n"))
    if why is None:
        check_models(settings)
    else:
        with pytest.raises(ValueError, match=why):
            check_models(settings)


@pytest.mark.parametrize(
    ("embedder", "why"),
    [("nobody", "not configured"), ("iris", "does not embed"), ("all-minilm-l6-v2", None), ("sandbox", None)],
)
def test_questions_are_compared_by_a_model_that_embeds(tmp_path: Path, embedder: str, why: str | None) -> None:
    semantic = f"cache = {{}}\nsemantic = {{ embedder = '{embedder}' }}"
    settings = load(toml(tmp_path, f"[[models]]\nid = 'm'\nbackend = 'sandbox'\n{semantic}\n"))
    if why is None:
        check_models(settings)
    else:
        with pytest.raises(ValueError, match=why):
            check_models(settings)


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("tabular", "members = ['iris@1', 'iris@2']", None),
        ("tabular", "members = ['iris', 'nobody']", "not configured"),
        ("tabular", "members = ['iris', 'efficientnet-lite0']", "is not"),
        ("tabular", "members = ['iris', 'm']", "an ensemble itself"),
        ("tabular", "members = ['iris']", "not valid"),
        ("chat", "members = ['sandbox', 'smollm2-135m-instruct']", "can't be combined"),
    ],
)
def test_an_ensemble_has_members_that_go_together(tmp_path: Path, kind: str, options: str, why: str | None) -> None:
    row = f"[[models]]\nid = 'm'\nkind = '{kind}'\nbackend = 'ensemble'\noptions = {{ {options} }}\n"
    settings = load(toml(tmp_path, row))
    if why is None:
        check_models(settings)
    else:
        with pytest.raises(ValueError, match=why):
            check_models(settings)


@pytest.mark.parametrize("hedge", ["{}", "{ quantile = 0.9, after_s = 1 }"], ids=["neither", "both"])
def test_a_hedge_has_one_instant(tmp_path: Path, hedge: str) -> None:
    with pytest.raises(ValidationError, match="either quantile or after_s"):
        load(toml(tmp_path, f"[[models]]\nid = 'm'\nbackend = 'sandbox'\nroute.hedge = {hedge}\n"))
