"""The gateways that are measured side by side: how each is installed, configured and started.

Every peer forwards the model `gpt-demo` to the same fake upstream, with one worker process. Those that know keys check
one on every call.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

from bench.build import CACHE, ROOT, Missing, find_program
from bench.calls import MODEL
from bench.processes import Watched, free_port

_LITELLM_KEY = "sk-bench-0123456789abcdef"
# As large as the database's column allows: the limits are counted on every call and never in the way.
_LIMITLESS = 2_000_000_000
_START_S = 120.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is to run: its core, an empty folder of its own, and the upstream it forwards to."""

    core: int
    folder: Path
    upstream_port: int
    watched: list[Watched]

    def run(self, command: Sequence[str], **environment: str) -> Watched:
        """Start `command` here; whoever made this place stops it, however the start goes on."""
        watched = Watched(command, core=self.core, log=self.folder / "log", environment=environment)
        self.watched.append(watched)
        return watched


@dataclass(slots=True)
class Running:
    """A peer that answers. `notes` are sentences for the report."""

    name: str
    version: str
    port: int
    watched: Watched
    headers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def start_nginx(place: Place) -> Running:
    """nginx as a plain reverse proxy: one worker, kept-alive upstream connections, no buffering, no access log."""
    program = find_program("nginx", package="nginx-light")
    port = free_port()
    config = place.folder / "nginx.conf"
    config.write_text(_nginx_config(place, port))
    command = [program, "-c", str(config), "-p", str(place.folder), "-e", str(place.folder / "error.log")]
    watched = place.run(command)
    watched.wait_ready(f"http://127.0.0.1:{port}/v1/models", timeout_s=_START_S)
    banner = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    return Running("nginx", banner.strip().rpartition("/")[2], port, watched)


def _nginx_config(place: Place, port: int) -> str:
    temporary = "\n".join(
        f"  {kind}_temp_path {place.folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off;
worker_processes 1;
pid {place.folder / "nginx.pid"};
error_log {place.folder / "error.log"} error;
events {{ worker_connections 8192; }}
http {{
  access_log off;
{temporary}
  upstream model {{
    server 127.0.0.1:{place.upstream_port};
    keepalive 1024;
    keepalive_requests 1000000000;
    keepalive_time 1d;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 1000000000;
    client_body_buffer_size 64k;
    tcp_nodelay on;
    location / {{
      proxy_pass http://model;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def start_litellm(place: Place) -> Running:
    """LiteLLM's proxy out of its package, set up as its production page says, with a master key and no database."""
    home = CACHE / "litellm"
    if not (home / "bin" / "litellm").exists():
        _install_litellm(home)
    port = free_port()
    config = place.folder / "litellm.yaml"
    model = {
        "model_name": MODEL,
        "litellm_params": {
            "model": "openai/gpt-4o-mini",
            "api_base": f"http://127.0.0.1:{place.upstream_port}/v1",
            "api_key": "upstream-key",
        },
    }
    # JSON is YAML too.
    settings = {
        "model_list": [model],
        "general_settings": {"master_key": _LITELLM_KEY},
        "litellm_settings": {"set_verbose": False, "json_logs": True, "request_timeout": 600},
    }
    config.write_text(json.dumps(settings))
    command = [str(home / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", "1"]
    # The price list that lies in the package, so that a start needs no network.
    watched = place.run(command, LITELLM_MODE="PRODUCTION", LITELLM_LOG="ERROR", LITELLM_LOCAL_MODEL_COST_MAP="True")
    ready_s = watched.wait_ready(f"http://127.0.0.1:{port}/health/liveliness", timeout_s=_START_S)
    running = Running("litellm", _package_version(home / "bin" / "python", "litellm"), port, watched)
    running.headers["authorization"] = f"Bearer {_LITELLM_KEY}"
    running.notes.append(f"LiteLLM was ready {ready_s:.1f} s after its start.")
    return running


def _install_litellm(home: Path) -> None:
    print("installing LiteLLM into .cache/bench/litellm …", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    done = subprocess.run(
        [str(home / "bin" / "pip"), "install", "-q", "litellm[proxy]"], capture_output=True, text=True
    )
    if done.returncode:
        shutil.rmtree(home)
        raise Missing(f"litellm[proxy] could not be installed: {done.stderr.strip()[-500:]}")


def start_modelport(place: Place) -> Running:
    """Modelport as it is shipped: key check, limits on the key, journal, metrics, access log, a breaker."""
    return _start_modelport(place, "modelport", _modelport_config(place))


def start_modelport_full(place: Place) -> Running:
    """Modelport with all that a model can have: a choice of two targets with breakers and retries, a fallback, the
    response cache, and two budgets. `no-cache` has each answer made anew and stored, or the upstream would have
    nothing to do."""
    running = _start_modelport(place, "modelport-full", _modelport_config(place, full=True))
    key = running.headers["authorization"]
    for scope in ({"scope": "organization"}, {"scope": "tag", "target": "feature=bench"}):
        budget = {**scope, "period": "month", "hard_limit_usd": "100000.00"}
        _post(running.port, "/v1/budgets", key, budget)
    running.headers["cache-control"] = "no-cache"
    running.notes.append(
        "Modelport, all on: two targets by least_outstanding, breakers, retries, a fallback, the response cache (each "
        "answer stored), two budgets in each call's take."
    )
    return running


def _start_modelport(place: Place, name: str, text: str) -> Running:
    program = ROOT / ".venv" / "bin" / "modelport"
    if not program.exists():
        raise Missing("Modelport is not installed: make setup")
    port = free_port()
    config = place.folder / "modelport.toml"
    config.write_text(text)
    data = place.folder / "data"
    command = [str(program), "serve", "--config", str(config), "--data-dir", str(data)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    watched = place.run(command, UPSTREAM_KEY="upstream-key")
    ready_s = watched.wait_ready(f"http://127.0.0.1:{port}/readyz", timeout_s=_START_S)
    running = Running(name, _package_version(ROOT / ".venv" / "bin" / "python", "modelport"), port, watched)
    running.notes.append(f"{name} was ready {ready_s:.1f} s after its first start, the new database included.")
    owner_key = json.loads((data / "credentials.json").read_text())["api_key"]
    running.headers["authorization"] = f"Bearer {_limited_key(port, owner_key)}"
    return running


def _modelport_config(place: Place, *, full: bool = False) -> str:
    names = ["primary", "secondary"] if full else ["primary"]
    upstreams = "".join(
        f"""
[[upstreams]]
name = "{name}"
kind = "openai"
base_url = "http://127.0.0.1:{place.upstream_port}/v1"
api_key_env = "UPSTREAM_KEY"
max_connections = 1024
"""
        for name in names
    )
    targets = ", ".join(f'{{ upstream = "{name}", model = "gpt-4o-mini", weight = 1 }}' for name in names)
    model = f"""
[[models]]
id = "{MODEL}"
targets = [ {targets} ]
prices = {{ input_usd_per_mtok = "0.15", output_usd_per_mtok = "0.60" }}
"""
    extras = """fallbacks = ["gpt-spare"]
route = { strategy = "least_outstanding" }
cache = { ttl_s = 300 }

[[models]]
id = "gpt-spare"
targets = [ { upstream = "primary", model = "gpt-4o-mini" } ]
"""
    return "default_models = false\n" + upstreams + model + (extras if full else "")


def _limited_key(port: int, owner_key: str) -> str:
    """A key with all three limits, so that each call has buckets to take from. Raises: OSError."""
    limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent_calls"), _LIMITLESS)
    body = {"name": "bench", "scopes": ["inference", "usage:read", "billing"], "limits": limits}
    return str(_post(port, "/v1/api_keys", f"Bearer {owner_key}", body)["key"])


def _post(port: int, path: str, authorization: str, body: Mapping[str, object]) -> dict[str, object]:
    headers = {"authorization": authorization, "content-type": "application/json"}
    request = Request(f"http://127.0.0.1:{port}{path}", data=json.dumps(body).encode(), headers=headers)
    with urlopen(request, timeout=30) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def metered_calls(running: Running) -> int:
    """How many calls Modelport's own usage report knows. Raises: OSError, KeyError."""
    url = f"http://127.0.0.1:{running.port}/v1/usage"
    with urlopen(Request(url, headers=running.headers), timeout=30) as answer:
        return int(json.load(answer)["totals"]["calls"])


def _package_version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


PEERS: dict[str, Callable[[Place], Running]] = {
    "nginx": start_nginx,
    "litellm": start_litellm,
    "modelport": start_modelport,
    "modelport-full": start_modelport_full,
}
