"""The command line against a running platform, as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from modelport import __version__
from modelport.catalog.defaults import default_models
from tests.serving import Server

COMMANDS = ["serve", "migrate", "settings", "doctor", "openapi", "usage", "classify", "chat", "keys", "models"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The sandbox and the real image model."""
    images = next(row for row in default_models() if row.kind == "image")
    config = (
        "default_models = false\n"
        "[[models]]\nid = 'sandbox'\nbackend = 'sandbox'\n"
        f"[[models]]\nid = '{images.id}'\nkind = 'image'\nbackend = 'onnx'\n"
        f"source = '{images.source}'\nsha256 = '{images.sha256}'\nprices = {{usd_per_image = '0.0001'}}\n"
    )
    server = Server(tmp_path_factory.mktemp("cli"), config=config).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "china.jpg"
    Image.fromarray(load_sample_image("china.jpg")).save(path)
    return path


def run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelport.cli", *arguments]
    environment = os.environ | (env or {})
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment, input=stdin
    )


def on(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it as beside the server: what it needs stands in the data directory's credentials.json."""
    return run(*arguments, "--data-dir", str(server.data_dir))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    inner = re.findall(r"^  (list|create|revoke|show) ", done.stdout, re.MULTILINE)
    texts = [run(command, name, "--help").stdout for name in inner] or [done.stdout]
    assert all("Example: modelport" in text or "modelport settings" in text for text in texts)


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.strip() == f"modelport {__version__}"


def test_nothing_heavy_is_imported_for_help() -> None:
    """A command line that takes a second to say what it can do is not used."""
    script = "import sys; import modelport.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"pydantic", "sqlalchemy", "fastapi", "onnxruntime", "numpy", "httpx"}.isdisjoint(loaded)


def test_a_wrong_option_is_exit_code_2() -> None:
    assert run("models", "list", "--nonsense").returncode == 2


def test_chat_streams_an_answer_and_says_what_it_cost(server: Server) -> None:
    done = on(server, "chat", "[[echo]] Good morning", "--model", "sandbox")
    assert done.returncode == 0
    assert done.stdout.strip() == "Good morning"
    assert re.search(r"\d+ tokens in, \d+ out", done.stderr)


def test_chat_in_json_holds_text_tokens_and_cost(server: Server) -> None:
    done = on(server, "chat", "[[tokens:7]]", "--model", "sandbox", "--json")
    answer = json.loads(done.stdout)
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["finish_reason"] == "stop"
    assert answer["request_id"].startswith("req_")
    assert answer["cost_usd"] is not None


def test_chat_takes_its_question_from_a_pipe(server: Server) -> None:
    done = run("chat", "--model", "sandbox", "--data-dir", str(server.data_dir), stdin="[[echo]] piped")
    assert done.stdout.strip() == "piped"


def test_chat_tells_an_error_in_one_line(server: Server) -> None:
    done = on(server, "chat", "[[error:503]]", "--model", "sandbox")
    assert done.returncode == 1
    assert "503 overloaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_the_answer_and_keeps_what_came(server: Server) -> None:
    command = [sys.executable, "-m", "modelport.cli", "chat", "[[tokens:1000]] [[per_token:50ms]]"]
    command += ["--model", "sandbox", "--data-dir", str(server.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) != ""
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "[stopped]" in errors
    assert process.returncode == 1


def test_classify_says_what_is_in_the_picture(server: Server, photograph: Path) -> None:
    done = on(server, "classify", str(photograph), "--top", "3")
    assert done.returncode == 0, done.stderr
    assert "palace" in done.stdout
    assert len(done.stdout.splitlines()) == 1 + 3


def test_classify_goes_on_after_a_file_that_is_no_picture(server: Server, photograph: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    done = on(server, "classify", str(text), str(photograph), "--json")
    failed, classified = json.loads(done.stdout)
    assert done.returncode == 1
    assert "400" in failed["error"]
    assert classified["predictions"][0]["label"]


def test_classify_names_a_missing_file(server: Server) -> None:
    done = on(server, "classify", "nowhere.jpg")
    assert done.returncode == 2
    assert "nowhere.jpg" in done.stderr


def test_a_key_lives_from_create_to_revoke(server: Server) -> None:
    created = json.loads(on(server, "keys", "create", "cli", "--scope", "inference", "--json").stdout)
    assert created["id"] in on(server, "keys", "list").stdout
    with_it = ("chat", "[[echo]] hi", "--model", "sandbox", "--base-url", server.base_url, "--api-key", created["key"])
    assert run(*with_it).returncode == 0
    assert on(server, "keys", "revoke", created["id"]).returncode == 0
    refused = run(*with_it)
    assert refused.returncode == 1
    assert "401 invalid_api_key" in refused.stderr
    assert created["id"] not in on(server, "keys", "list").stdout


def test_models_are_listed_and_shown(server: Server) -> None:
    listed = json.loads(on(server, "models", "list", "--json").stdout)
    assert {row["id"] for row in listed} == {"sandbox", "efficientnet-lite0"}
    assert "1 ready latest" in on(server, "models", "show", "efficientnet-lite0").stdout
    missing = on(server, "models", "show", "nothing")
    assert missing.returncode == 1
    assert "404 model_not_found" in missing.stderr


def test_usage_adds_up(server: Server) -> None:
    """The totals are those of the rows, to the last digit."""
    on(server, "chat", "[[tokens:3]]", "--model", "sandbox")
    report = json.loads(on(server, "usage", "--json").stdout)
    assert report["totals"]["calls"] == sum(row["calls"] for row in report["data"]) > 0
    assert on(server, "usage").stdout.splitlines()[-1].startswith("total")


def test_settings_say_where_each_comes_from(tmp_path: Path) -> None:
    config = tmp_path / "modelport.toml"
    config.write_text("[server]\nport = 9000\n[[upstreams]]\nname = 'a'\nbase_url = 'http://u:secret@127.0.0.1:1/v1'\n")
    done = run("settings", "--config", str(config), env={"MODELPORT_SERVER__WORKERS": "3"})
    assert "server.port = 9000  # from the file" in done.stdout
    assert "server.workers = 3  # from MODELPORT_SERVER__WORKERS" in done.stdout
    assert "secret" not in done.stdout
    assert json.loads(run("settings", "--config", str(config), "--json").stdout)["server"]["port"] == 9000


def test_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "modelport.toml"
    config.write_text(
        "default_models = false\n[server]\nport = 0\n"
        "[[models]]\nid = 'lost'\nkind = 'tabular'\nbackend = 'onnx'\nsource = 'lost.onnx'\n"
    )
    arguments = ("doctor", "--config", str(config), "--data-dir", str(tmp_path / "data"))
    done = run(*arguments, "--json")
    findings = {finding["what"]: finding["result"] for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings.pop("model lost@1") == "failed"
    assert set(findings.values()) == {"ok"}
    assert "lost.onnx" in run(*arguments).stdout


def test_migrate_says_what_it_did(tmp_path: Path) -> None:
    arguments = ("migrate", "--data-dir", str(tmp_path / "data"), "--json")
    first, second = (json.loads(run(*arguments).stdout) for _ in range(2))
    assert first["before"] == ""
    assert second["before"] == second["after"] == first["after"]


def test_openapi_is_the_document_that_the_server_publishes(server: Server) -> None:
    printed = json.loads(run("openapi").stdout)
    status, published = server.get("/openapi.json")
    assert status == 200
    assert printed["paths"].keys() == published["paths"].keys()


def test_without_a_key_it_is_said_where_one_comes_from(tmp_path: Path) -> None:
    done = run("models", "list", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert "credentials.json" in done.stderr


def test_a_stored_key_is_sent_to_its_own_server_only(server: Server) -> None:
    done = on(server, "models", "list", "--base-url", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "no API key" in done.stderr


def test_a_server_that_is_away_is_named(server: Server) -> None:
    done = run("models", "list", "--base-url", "http://127.0.0.1:1", "--api-key", server.credentials["api_key"])
    assert done.returncode == 1
    assert "modelport serve" in done.stderr
