"""A model of twelve lines of Python and six of configuration, as README.md and the guide show it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.serving import Server
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def _block(page: str, language: str, mark: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if mark in block)


def test_the_class_and_the_rows_of_the_guide_serve(tmp_path: Path) -> None:
    code = _block("docs/guides/python-models.md", "py", "class Sentiment")
    rows = _block("docs/guides/python-models.md", "toml", "sentiment.py")
    assert _block("README.md", "py", "class Sentiment") == code
    assert _block("README.md", "toml", "sentiment.py") == rows
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("#")]) <= 12
    assert len(rows.splitlines()) <= 6
    path = tmp_path / "sentiment.py"
    path.write_text(code)
    config = "default_models = false\n" + rows.replace("sentiment.py", str(path))
    with Server(tmp_path, config=config) as server:
        key = server.credentials["api_key"]
        body = {"model": "sentiment", "inputs": ["I love it", "slow and broken"]}
        status, headers, raw = server.request("POST", "/v1/predict", body=body, key=key)
        assert status == 200, raw
        assert (b'"positive"' in raw, b'"negative"' in raw) == (True, True)
        assert headers["x-cost-usd"] == "0.0001"
        shown = server.get("/v1/models/sentiment", key=key)[1]
        assert (shown["status"], shown["input_schema"]) == ("ready", {"type": "string"})


async def test_a_wrong_one_says_what_is_wrong_with_it_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(
        "class Wrong:\n    def load(self):\n        self.weights = open('nowhere')\n    def predict(self, i): ...\n"
    )
    config = f"""
default_models = false
[[models]]
id = "wrong"
kind = "custom"
backend = "python"
source = "{path}"
[[models]]
id = "sandbox"
backend = "sandbox"
"""
    server = Server(tmp_path, config=config)
    server.start(models=False)
    try:
        key = server.credentials["api_key"]
        ask = {"model": "wrong", "inputs": [1]}
        status, _, _ = server.request("POST", "/v1/predict", body=ask, key=key)
        assert status == 503
        await wait_until(lambda: server.get("/v1/models/wrong", key=key)[1]["status"] == "failed", "it is given up")
        shown = server.get("/v1/models/wrong", key=key)[1]
        assert "wrong.py, line 3: FileNotFoundError" in shown["detail"]
        chat = {"model": "sandbox", "messages": [{"role": "user", "content": "[[tokens:1]]"}]}
        assert server.request("POST", "/v1/chat/completions", body=chat, key=key)[0] == 200
    finally:
        server.kill()
