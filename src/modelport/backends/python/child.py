"""The model's own process: loads the class, then computes one batch after the other until the gateway ends.

Run as `python -m modelport.backends.python.child FD PARENT`: a connected socket, and whose process ends this one.
Whatever the model prints goes to standard error, which the gateway writes into its log.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from modelport.backends.python.frames import (
    Batch,
    Closed,
    Failed,
    Load,
    Loaded,
    Outcome,
    Outcomes,
    pack,
    receive,
    send,
    unpack,
)
from modelport.errors import BadRequest
from modelport.kit.lineage import die_with


class Hosted:
    """The user's object, and what is known of its inputs and outputs."""

    def __init__(self, model: Any) -> None:
        self._model = model
        hints = _hints(model.predict)
        names = [name for name in inspect.signature(model.predict).parameters if name in hints]
        self._input = _member(hints[names[0]]) if names else Any
        self._output = _member(hints.get("return", Any))

    def info(self) -> dict[str, Any]:
        """Schemas: the class's own attributes, else those of its type hints."""
        told = {}
        for name, hint in (("input_schema", self._input), ("output_schema", self._output)):
            schema = getattr(self._model, name, None) or _schema(hint)
            if schema is not None:
                told[name] = schema
        return told

    def compute(self, inputs: Sequence[Any]) -> list[Outcome]:
        """One outcome for each input. What is wrong with one does not touch the others."""
        outcomes: list[Outcome | None] = [None] * len(inputs)
        good: list[Any] = []
        for place, value in enumerate(inputs):
            try:
                good.append(value if self._input is Any else msgspec.convert(value, self._input))
            except msgspec.ValidationError as error:
                outcomes[place] = Outcome(refused=str(error))
        computed = iter(self._together(good))
        return [next(computed) if outcome is None else outcome for outcome in outcomes]

    def _together(self, inputs: list[Any]) -> list[Outcome]:
        if not inputs:
            return []
        try:
            values = list(self._model.predict(inputs))
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything
            if len(inputs) == 1:
                return [_raised(error)]
            # Whose input it was is found out by asking again for each alone.
            return [outcome for value in inputs for outcome in self._together([value])]
        if len(values) != len(inputs):
            return [_broken(f"predict returned {len(values)} results for {len(inputs)} inputs")] * len(inputs)
        return [self._written(value) for value in values]

    @staticmethod
    def _written(value: Any) -> Outcome:
        """The result as JSON has it, so that what can't be written fails its own input alone."""
        try:
            return Outcome(value=pack(msgspec.to_builtins(value, enc_hook=_as_builtin)))
        except (TypeError, ValueError, RecursionError) as error:
            return _broken(f"predict returned what is no JSON: {error}")


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    die_with(int(sys.argv[2]))
    threading.Thread(target=_end_with_gateway, daemon=True).start()
    # What the model prints must not be lost, nor held back until the process ends.
    os.dup2(2, 1)
    with contextlib.suppress(Closed):
        asked = receive(line)
        assert isinstance(asked, Load)
        try:
            hosted = load(asked)
            send(line, Loaded(hosted.info()))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as below
            send(line, Failed(_reason(error, asked.path)))
            return
        _serve(line, hosted)


def load(asked: Load) -> Hosted:
    """Make the object of the class and have it load. Raises whatever the user's code raises."""
    if asked.memory_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (asked.memory_bytes, asked.memory_bytes))
    name = Path(asked.path).name
    sys.path.insert(0, str(Path(asked.path).parent))
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py").replace("-", "_"), asked.path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model = _class_of(module, asked.class_name, name)(**asked.arguments)
    if callable(getattr(model, "load", None)):
        model.load()
    return Hosted(model)


def _serve(line: socket.socket, hosted: Hosted) -> None:
    while True:
        asked = receive(line)
        assert isinstance(asked, Batch)
        send(line, Outcomes(hosted.compute([unpack(packed) for packed in asked.inputs])))


def _class_of(module: Any, wanted: str, name: str) -> Any:
    if wanted:
        found = getattr(module, wanted, None)
        if not inspect.isclass(found) or not callable(getattr(found, "predict", None)):
            raise ValueError(f"{name} has no class {wanted!r} with a method `predict`")
        return found
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and callable(getattr(value, "predict", None))
    ]
    if len(own) != 1:
        names = ", ".join(value.__name__ for value in own) or "none"
        raise ValueError(f"{name} must have one class with a method `predict`, or options.class_name; it has {names}")
    return own[0]


def _reason(error: BaseException, path: str) -> str:
    """What went wrong, with the line of the user's file where it did."""
    traceback.print_exception(error)
    if isinstance(error, SyntaxError):
        return f"{Path(path).name}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"{Path(path).name}, line {lines[-1]}: " if lines else ""
    plain = isinstance(error, ValueError) and not lines
    return str(error) if plain else f"{where}{type(error).__name__}: {error}"


def _broken(reason: str) -> Outcome:
    sys.stderr.write(f"{reason}\n")
    return Outcome(broken=reason)


def _raised(error: Exception) -> Outcome:
    if isinstance(error, BadRequest):
        return Outcome(refused=error.message)
    traceback.print_exception(error)
    return Outcome(broken=f"{type(error).__name__}: {error}")


def _hints(predict: Any) -> dict[str, Any]:
    try:
        return get_type_hints(predict)
    except (NameError, TypeError):
        return {}


def _member(hint: Any) -> Any:
    """The type of one member of `list[…]`; Any where the hint says nothing that could be checked."""
    inner = get_args(hint)
    member = inner[0] if len(inner) == 1 else Any
    return member if _schema(member) is not None else Any


def _schema(hint: Any) -> dict[str, Any] | None:
    if hint is Any:
        return None
    try:
        return msgspec.json.schema(hint)
    except (TypeError, NameError):
        return None


def _as_builtin(value: Any) -> Any:
    """Arrays and numbers of numpy, and whatever else has a list in it."""
    for name in ("tolist", "item"):
        convert = getattr(value, name, None)
        if callable(convert):
            return convert()
    raise TypeError(f"a {type(value).__name__} can't be written as JSON")


def _end_with_gateway() -> None:
    """Standard input ends when the gateway does, however it does."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
