"""The rules of the house that no linter knows: sizes of files and functions, and calls that are banned in places.

Each message says what to do instead. Exceptions stand below, each with its reason.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FILE_LINES = 600
_FUNCTION_LINES = 60
_TREES = ("src", "tests", "tools", "bench", "examples")

# Where any exception at all may be caught, and why.
_CATCH_ALL = {
    "src/modelport/api/edge.py": "the door's last handler: whatever breaks is a 500 in the house's own form",
    "src/modelport/api/ws/calls.py": "the last handler of a socket's call: it must not take the others with it",
    "src/modelport/metering/ledger.py": "the loops that bring usage home: whatever fails is said and tried again",
    "src/modelport/catalog/follower.py": "the loop that follows the registry: the catalogue stays as it was meanwhile",
    "src/modelport/experiments/book.py": "the loop that reads what experiments run: what does goes on meanwhile",
    "src/modelport/supervisor/registry.py": "the loop that looks for new versions: what is served stays meanwhile",
    "src/modelport/budgets/treasury.py": "the loop that tends purses: whatever fails is said and tried again",
    "src/modelport/metering/prices.py": "the loop that reloads prices: the book stays as it was until the next time",
    "src/modelport/slo/service.py": "the loop that adds counts: whatever fails is said, and the next ones are added",
    "src/modelport/replay/idempotency/service.py": "the loop that renews claims: it goes on whatever failed before",
    "src/modelport/backends/python/child.py": "the class is a user's, and may raise whatever it likes",
    "src/modelport/backends/onnx/embeddings.py": "the tokenizers library raises Exception itself",
}
# Where a test's machinery may sleep: the polling that all else waits with, servers being started, slow upstreams,
# clients that back off.
_MAY_SLEEP = {
    "tests/waiting.py", "tests/services.py", "tests/serving.py", "tests/upstream.py", "tests/scripted_upstream.py",
    "tests/chaos/fleet.py",
}  # fmt: skip
# Functions that are a table: a row a line, nothing to split.
_TABLES = {("src/modelport/observe/metrics.py", "__init__")}
# HTTP clients that cost more than the whole gateway; PERFORMANCE measured them.
_SLOW_CLIENTS = {"httpx", "httpx2", "requests", "aiohttp", "openai", "anthropic"}
# Modules whose names name nothing.
_EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler", "processor"}


def main() -> int:
    """Print every breach as `path:line: what to do`; 1 when there is one."""
    breaches = [breach for path in _files() for breach in _check(path)]
    for path, line, message in breaches:
        print(f"{path}:{line}: {message}")
    return 1 if breaches else 0


def _files() -> Iterator[Path]:
    for tree in _TREES:
        yield from sorted(path for path in (ROOT / tree).rglob("*.py") if "__pycache__" not in path.parts)


def _check(path: Path) -> Iterator[tuple[Path, int, str]]:
    relative = path.relative_to(ROOT)
    text = path.read_text()
    lines = text.count("\n")
    if lines > _FILE_LINES:
        yield relative, 1, f"{lines} lines; split it where the idea divides (stop at {_FILE_LINES})"
    if path.stem in _EMPTY_NAMES:
        yield relative, 1, f"{path.stem!r} names nothing: give the file the noun of what it holds"
    for node in ast.walk(ast.parse(text, filename=str(path))):
        for line, message in _breaches(node, relative):
            yield relative, line, message


def _breaches(node: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    in_src, in_tests = path.parts[0] == "src", path.parts[0] == "tests"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > _FUNCTION_LINES and (str(path), node.name) not in _TABLES:
            yield node.lineno, f"{node.name} has {lines} lines; stop at {_FUNCTION_LINES}"
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if in_tests and name in ("time.sleep", "asyncio.sleep") and not (_is_zero(node) or str(path) in _MAY_SLEEP):
            yield node.lineno, f"{name} in a test: wait for the thing itself with wait_until, or turn a ManualClock"
        if in_tests and name.startswith(("pytest.skip", "pytest.xfail", "pytest.importorskip")):
            yield node.lineno, f"{name}: install what the test needs (tests/services.py) or remove the test"
        if in_src and name == "print" and "cli" not in path.parts:
            yield node.lineno, "print outside cli/: log it, or hand the line to whoever talks to the terminal"
    elif isinstance(node, ast.ExceptHandler) and in_src:
        if node.type is not None and "Exception" in _names(node.type) and str(path) not in _CATCH_ALL:
            yield node.lineno, "`except Exception`: catch what can happen, or give a reason in tools/check_rules.py"
        if node.type is None:
            yield node.lineno, "a bare `except`: name what can happen"
    elif in_src:
        for module in _imported(node):
            if module.partition(".")[0] in _SLOW_CLIENTS:
                yield node.lineno, f"{module} is too slow for the data path: use modelport.backends.transport"  # type: ignore[attr-defined]


def _is_zero(call: ast.Call) -> bool:
    """`asyncio.sleep(0)` is one turn of the loop, not a wait."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def _names(node: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    return []


if __name__ == "__main__":
    sys.exit(main())
