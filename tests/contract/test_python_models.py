"""Models that are a Python class: twelve lines serve; whatever is wrong is told; a death fails nobody but its cause."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelport.backends.protocol import Status
from modelport.backends.python.backend import PythonBackend
from modelport.calls import Call
from modelport.errors import BadRequest, ModelportError, Overloaded, UpstreamFailed
from tests.campaign import rounds
from tests.contract.local_models import answer, predict
from tests.waiting import wait_until

LENGTHS = """
class Lengths:
    def load(self) -> None:
        self.unit = 1

    def predict(self, inputs: list[str]) -> list[int]:
        return [len(text) * self.unit for text in inputs]
"""
# What an input says is done, in the model's own process.
SCRIPTED = """
import os, time

class Scripted:
    def __init__(self, slow_s=0.0):
        self.slow_s = slow_s

    def predict(self, inputs):
        time.sleep(self.slow_s)
        if "die" in inputs:
            os.kill(os.getpid(), 9)
        if "hang" in inputs:
            time.sleep(60)
        if "raise" in inputs:
            raise RuntimeError("secret detail")
        if "few" in inputs:
            return []
        if "object" in inputs:
            return [object() for _ in inputs]
        if "huge" in inputs:
            return [2**70 for _ in inputs]
        if "fork" in inputs and os.fork() == 0:
            time.sleep(600)
        if "environment" in inputs:
            return [dict(os.environ) for _ in inputs]
        return [[text, len(inputs), os.getpid()] for text in inputs]
"""


# Holds the lock for hours.
BUSY = """
import os, re

class Busy:
    def predict(self, inputs):
        print(os.getpid(), flush=True)
        re.match(r"(a+)+$", "a" * 40 + "b")
        return inputs
"""
GATEWAY = """
import sys
from pathlib import Path
from modelport.backends.python.frames import pack
from modelport.backends.python.options import PythonOptions
from modelport.backends.python.process import ModelProcess

process = ModelProcess(Path(sys.argv[1]), PythonOptions(), name="busy")
process.load()
print(process.pid, flush=True)
process.predict([pack(1)])
"""


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def _group(leader: int) -> list[int]:
    """The processes of a group, but for those that have ended and are not yet buried."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(") ")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


@asynccontextmanager
async def served(folder: Path, text: str, **options: Any) -> AsyncIterator[PythonBackend]:
    path = folder / "model.py"
    path.write_text(textwrap.dedent(text))
    backend = PythonBackend(path, name="m@1", configured=(options,))
    await backend.start()
    await wait_until(lambda: backend.health().status is not Status.LOADING, "the model is loaded, or can't be")
    try:
        yield backend
    finally:
        await backend.close()


async def ask(backend: PythonBackend, *inputs: Any) -> list[Any]:
    value: list[Any] = (await answer(backend, predict(*inputs))).value  # type: ignore[arg-type]
    return value


def partial(*inputs: Any) -> Call:
    call = predict(*inputs)
    call.partial = True
    return call


class TestAnswers:
    async def test_a_class_of_a_few_lines_predicts_and_has_schemas(self, tmp_path: Path) -> None:
        async with served(tmp_path, LENGTHS) as backend:
            assert await ask(backend, "abc", "") == [3, 0]
            assert backend.info()["input_schema"] == {"type": "string"}
            assert backend.info()["output_schema"] == {"type": "integer"}

    async def test_type_hints_are_checked_for_each_input(self, tmp_path: Path) -> None:
        async with served(tmp_path, LENGTHS) as backend:
            with pytest.raises(BadRequest, match=r"inputs\[1\]: Expected `str`, got `int`"):
                await ask(backend, "abc", 5)
            value = (await answer(backend, partial("abc", 5, "a"))).value  # type: ignore[arg-type]
            assert [value[0], value[2]] == [3, 1]
            assert isinstance(value[1], BadRequest)
            assert value[1].param == "inputs[1]"

    async def test_arrays_and_dataclasses_are_written_as_json_has_them(self, tmp_path: Path) -> None:
        text = """
        from dataclasses import dataclass
        import numpy as np

        @dataclass
        class Point:
            x: float
            label: str

        class Arrays:
            def predict(self, inputs):
                return [{"a": np.arange(3), "b": np.float32(0.5), "p": Point(np.float64(1), "x")} for _ in inputs]
        """
        async with served(tmp_path, text) as backend:
            assert await ask(backend, 1) == [{"a": [0, 1, 2], "b": 0.5, "p": {"x": 1.0, "label": "x"}}]

    async def test_arguments_come_from_the_configuration(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED, arguments={"slow_s": 0.001}) as backend:
            assert (await ask(backend, "x"))[0][0] == "x"

    async def test_calls_that_wait_are_computed_together(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED, arguments={"slow_s": 0.05}) as backend:
            answers = await asyncio.gather(*(ask(backend, f"{number}") for number in range(9)))
            assert max(value[0][1] for value in answers) >= 4
            assert [value[0][0] for value in answers] == [f"{number}" for number in range(9)]

    async def test_nothing_of_the_gateways_environment_is_passed_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UPSTREAM_KEY", "sk-secret")
        monkeypatch.setenv("MODELPORT_DATABASE__URL", "postgresql://me:hunter2@db/x")
        async with served(tmp_path, SCRIPTED, environment={"MINE": "1"}) as backend:
            (environment,) = await ask(backend, "environment")
            assert environment["MINE"] == "1"
            assert not {"UPSTREAM_KEY", "MODELPORT_DATABASE__URL"} & set(environment)


class TestWrongModels:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("class Broken(:\n    pass\n", "model.py, line 1: invalid syntax"),
            ("x = 1\n", "one class with a method `predict`"),
            ("class A:\n    def predict(self, i): ...\nclass B(A):\n    def predict(self, i): ...\n", "it has A, B"),
            ("class A:\n    def load(self):\n        raise OSError('no weights')\n    def predict(self, i): ...\n",
             "model.py, line 3: OSError: no weights"),
            ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name'"),
            ("import os\nclass A:\n    def load(self):\n        os._exit(3)\n    def predict(self, i): ...\n",
             "exited with status 3 while it was loading"),
            ("class A:\n    def __init__(self, path): ...\n    def predict(self, i): ...\n", "path"),
        ],
        ids=["syntax", "no class", "two classes", "load raises", "import", "exits", "arguments"],
    )  # fmt: skip
    async def test_what_is_wrong_becomes_its_status(self, tmp_path: Path, text: str, words: str) -> None:
        async with served(tmp_path, text) as backend:
            assert backend.health().status is Status.FAILED
            assert words in backend.health().detail
            with pytest.raises(ModelportError, match="could not be loaded"):
                await ask(backend, 1)

    async def test_options_are_checked(self, tmp_path: Path) -> None:
        async with served(tmp_path, LENGTHS, nonsense=1) as backend:
            assert "nonsense" in backend.health().detail

    async def test_a_model_that_never_loads_is_given_up(self, tmp_path: Path) -> None:
        text = "import time\nclass A:\n    def load(self): time.sleep(60)\n    def predict(self, i): ...\n"
        async with served(tmp_path, text, load_timeout_s=0.2) as backend:
            assert "loading took longer than 0.2 s" in backend.health().detail

    @pytest.mark.parametrize("word", ["raise", "few", "object"])
    async def test_what_fails_on_one_input_fails_that_one(self, tmp_path: Path, word: str) -> None:
        async with served(tmp_path, SCRIPTED) as backend:
            with pytest.raises(UpstreamFailed, match="The model failed on this input") as failed:
                await ask(backend, word)
            assert "secret" not in failed.value.message
            if word == "raise":
                value = (await answer(backend, partial("a", word, "b"))).value  # type: ignore[arg-type]
                assert [value[0][0], value[2][0]] == ["a", "b"]
                assert isinstance(value[1], UpstreamFailed)

    async def test_too_much_memory_fails_the_input_not_the_machine(self, tmp_path: Path) -> None:
        text = "class A:\n    def predict(self, inputs): return [len(bytearray(size)) for size in inputs]\n"
        async with served(tmp_path, text, memory_mb=2_000) as backend:
            with pytest.raises(UpstreamFailed):
                await ask(backend, 4_000_000_000)
            assert await ask(backend, 10) == [10]


class TestDeaths:
    async def test_only_the_input_that_kills_the_process_fails(self, tmp_path: Path) -> None:
        """Its batch-mates are computed by the successor, and the model goes on."""
        async with served(tmp_path, SCRIPTED, arguments={"slow_s": 0.05}) as backend:
            calls = [asyncio.create_task(ask(backend, word)) for word in ("a", "b", "die", "c", "d")]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [outcome[0][0] for outcome in outcomes if isinstance(outcome, list)] == ["a", "b", "c", "d"]
            assert isinstance(outcomes[2], UpstreamFailed)
            assert (await ask(backend, "e"))[0][0] == "e"
            assert backend.info()["restarts"] >= 1

    async def test_killed_processes_cost_no_call(self, tmp_path: Path) -> None:
        """What a process was computing when it was killed from outside is computed again."""
        kills = rounds(short=3, full=20)
        async with served(tmp_path, SCRIPTED, processes=2, arguments={"slow_s": 0.01}) as backend:
            stop, done = asyncio.Event(), 0

            async def calling(number: int) -> None:
                nonlocal done
                while not stop.is_set():
                    assert (await ask(backend, f"{number}"))[0][0] == f"{number}"
                    done += 1

            callers = [asyncio.create_task(calling(number)) for number in range(8)]
            for _ in range(kills):
                (_, _, pid), before = (await ask(backend, "who"))[0], done
                os.kill(pid, signal.SIGKILL)
                await wait_until(lambda before=before: done > before + 20, "calls go on")  # type: ignore[misc]
            stop.set()
            await asyncio.gather(*callers)
            assert backend.info()["restarts"] >= kills

    async def test_a_process_that_dies_idle_is_back_before_the_next_call(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED) as backend:
            (_, _, pid) = (await ask(backend, "who"))[0]
            os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: backend.info()["restarts"] == 1, "it is missed")
            await wait_until(lambda: backend.health().status is Status.READY, "it is back")
            assert (await ask(backend, "who"))[0][2] != pid

    async def test_a_batch_that_hangs_is_ended(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED, predict_timeout_s=0.3) as backend:
            with pytest.raises(UpstreamFailed):
                await ask(backend, "hang")
            assert (await ask(backend, "a"))[0][0] == "a"

    async def test_closing_ends_every_process(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED, processes=2) as backend:
            assert backend._processes is not None
            pids = backend._processes.pids
            assert len(pids) == 2
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    async def test_processes_that_the_model_started_end_with_it(self, tmp_path: Path) -> None:
        """Nor do they hide its death, although they hold its connection."""
        async with served(tmp_path, SCRIPTED) as backend:
            (_, _, pid) = (await ask(backend, "fork"))[0]
            with pytest.raises(UpstreamFailed):
                await asyncio.wait_for(ask(backend, "die"), 20)
            assert (await ask(backend, "fork"))[0][2] != pid
        await wait_until(lambda: not _group(pid), "all of them are gone")

    async def test_it_ends_with_its_gateway_whatever_it_is_doing(self, tmp_path: Path) -> None:
        """Even while it holds the interpreter's lock, when none of its threads can notice anything."""
        (tmp_path / "model.py").write_text(BUSY)
        gateway = await asyncio.create_subprocess_exec(
            sys.executable, "-c", GATEWAY, str(tmp_path / "model.py"), stdout=asyncio.subprocess.PIPE
        )
        assert gateway.stdout is not None
        pid = int(await gateway.stdout.readline())
        gateway.kill()
        await gateway.wait()
        await wait_until(lambda: not _runs(pid), "the model's process is gone")


class TestBounds:
    async def test_what_can_not_be_sent_fails_its_own_call_alone(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED, arguments={"slow_s": 0.05}) as backend:
            calls = [asyncio.create_task(ask(backend, value)) for value in ("a", "b", 2**70, "c")]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [outcome[0][0] for outcome in outcomes if isinstance(outcome, list)] == ["a", "b", "c"]
            assert isinstance(outcomes[2], BadRequest)
            value = (await answer(backend, partial("a", 2**70, "b"))).value  # type: ignore[arg-type]
            assert [value[0][0], value[2][0]] == ["a", "b"]
            assert value[1].param == "inputs[1]"

    async def test_a_result_that_can_not_be_sent_ends_no_process(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED) as backend:
            with pytest.raises(UpstreamFailed):
                await ask(backend, "huge")
            assert backend.info()["restarts"] == 0

    async def test_the_queue_has_an_end(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED, queue=2, max_batch=1, arguments={"slow_s": 0.2}) as backend:
            calls = [asyncio.create_task(ask(backend, f"{number}")) for number in range(4)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 2

    async def test_a_call_has_so_many_inputs_at_most(self, tmp_path: Path) -> None:
        async with served(tmp_path, LENGTHS, max_inputs=3) as backend:
            with pytest.raises(BadRequest, match="at most 3"):
                await ask(backend, *"abcd")

    async def test_a_large_input_arrives_whole(self, tmp_path: Path) -> None:
        async with served(tmp_path, LENGTHS) as backend:
            assert await ask(backend, "x" * 50_000_000) == [50_000_000]

    async def test_a_caller_that_is_gone_is_not_computed(self, tmp_path: Path) -> None:
        async with served(tmp_path, SCRIPTED, max_batch=1, arguments={"slow_s": 0.1}) as backend:
            first = asyncio.create_task(ask(backend, "a"))
            await wait_until(lambda: backend.info()["batching"]["batches"] == 1, "the first is being computed")
            second = asyncio.create_task(ask(backend, "die"))
            await wait_until(lambda: backend.info()["batching"]["waiting"] == 1, "the second waits")
            second.cancel()
            await first
            assert (await ask(backend, "b"))[0][0] == "b"
            assert backend.info()["restarts"] == 0
