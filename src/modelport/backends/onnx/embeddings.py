"""Embeddings: texts or tokens in, unit vectors out, in OpenAI's format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pybase64
from numpy.typing import NDArray
from tokenizers import Tokenizer

from modelport.backends.batching.work import Packing, Prepared
from modelport.backends.onnx.engine import Array, Engine, rows_together, split
from modelport.backends.onnx.options import OnnxOptions, UnusableModel
from modelport.backends.onnx.runner import check_count, check_options, each_input, shown, with_failed
from modelport.calls import Call, Delta, Operation, Usage
from modelport.errors import BadRequest, ModelportError

_MAX_INPUTS = 2048
_MAX_BATCH = 32
# Rows times the longest: keeps one batch below about 0.1 s on one core, and its memory below 100 MB.
_MAX_BATCH_TOKENS = 4096
# No more of a text is looked at than could fill the model: no word piece of it comes from more characters than this.
_CHARACTERS_A_TOKEN = 100
# Tokenising takes about 0.1 ms for so many characters.
_LIGHT_CHARACTERS = 500
# Writing one vector takes about 0.1 ms.
_LIGHT_ANSWERS = 4
# For a guess at the tokens of a text; languages differ.
_CHARACTERS_OF_A_WORD = 4
_DECIMALS = 9
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Order:
    """Rows are computed sorted by length; `places` tells where each belongs in the answer."""

    places: list[int]


class EmbeddingRunner:
    """Turns texts into vectors with a BERT-like model whose tokenizer is known."""

    def __init__(self, engine: Engine, options: OnnxOptions) -> None:
        self._engine = engine
        self.packing = Packing(rows_together(engine.inputs[0], options.max_batch or _MAX_BATCH), _MAX_BATCH_TOKENS)
        self._options = options
        self._names = {port.name for port in engine.inputs}
        if "input_ids" not in self._names or not self._names <= {"input_ids", "attention_mask", "token_type_ids"}:
            raise UnusableModel(f"an embedding model's input is input_ids, this one has {sorted(self._names)}")
        self._output = engine.outputs[0]
        self._tokenizer = _tokenizer(options.tokenizer)
        self._tokenizer.enable_truncation(options.max_tokens)
        self._vocabulary = self._tokenizer.get_vocab_size()
        self._before, self._after = _frame(self._tokenizer)
        self._width = int(np.size(self.run([[[*self._before, *self._after]]])[0]))

    def sample(self, rows: int, size: int) -> list[list[int]]:
        most = self._options.max_tokens
        return [[*self._before, *self._after][:1] * min(size, most)] * rows

    def weigh(self, call: Call) -> int:
        given = call.request.inputs if call.operation is Operation.PREDICT else call.request.input
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        most = self._options.max_tokens
        return sum(
            min(1 + len(value) // _CHARACTERS_OF_A_WORD, most) if hasattr(value, "__len__") else 1 for value in given
        )

    def is_light(self, call: Call) -> bool:
        given = call.request.inputs if call.operation is Operation.PREDICT else call.request.input
        if isinstance(given, list) and len(given) == 1:
            given = given[0]
        return isinstance(given, str) and len(given) <= _LIGHT_CHARACTERS

    def prepare(self, call: Call) -> Prepared:
        if call.operation is Operation.PREDICT:
            return self._prepare_prediction(call)
        dimensions = call.request.dimensions
        if dimensions not in (None, self._width):
            raise BadRequest(
                f"The model's vectors have {self._width} dimensions and can't be shortened.", param="dimensions"
            )
        return self._sorted(self._rows(call.request.input), {})

    def run(self, blocks: Sequence[Sequence[list[int]]]) -> Sequence[Array]:
        rows = [row for block in blocks for row in block]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (vectors,) = self._engine.run([self._output.name], {name: feeds[name] for name in self._names})
        if vectors.ndim == 3:
            vectors = self._pooled(vectors, mask)
        return split(np.asarray(vectors, np.float32), blocks)

    def render(self, call: Call, prepared: Prepared, results: Sequence[Array]) -> Delta:
        ordered: list[Any] = [None] * len(prepared.rows)
        for place, vector in zip(prepared.context.places, (row for block in results for row in block), strict=True):
            ordered[place] = vector
        if call.operation is Operation.PREDICT:
            value = with_failed([_as_list(vector) for vector in ordered], prepared.failed)
            return Delta(whole=True, value=value, usage=prepared.usage)
        rendered = _as_base64 if call.request.encoding_format == "base64" else _as_list
        data = [
            {"object": "embedding", "index": place, "embedding": rendered(vector)}
            for place, vector in enumerate(ordered)
        ]
        tokens = prepared.usage.input_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"object": "list", "data": data, "model": call.model, "usage": usage}
        return Delta(raw=_encode(body), whole=True, usage=prepared.usage)

    def info(self) -> dict[str, Any]:
        return {
            "dimensions": self._width,
            "max_input_tokens": self._options.max_tokens,
            "input_schema": {"type": "string", "minLength": 1},
            "output_schema": {
                "type": "array",
                "items": {"type": "number"},
                "minItems": self._width,
                "maxItems": self._width,
            },
        }

    def _prepare_prediction(self, call: Call) -> Prepared:
        check_options(call.request.options, frozenset())
        inputs = call.request.inputs
        check_count(inputs, self._options.max_inputs or _MAX_INPUTS, param="inputs")
        texts, failed = each_input(call, inputs, _text)
        return self._sorted(self._tokenised(texts), failed)

    def _sorted(self, rows: list[list[int]], failed: dict[int, ModelportError]) -> Prepared:
        places = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        ordered = [rows[place] for place in places]
        sizes = list(map(len, ordered))
        return Prepared(
            ordered,
            Usage(input_tokens=sum(sizes)),
            _Order(places),
            sizes=sizes,
            lane="texts",
            failed=failed,
            heavy=len(rows) > _LIGHT_ANSWERS,
        )

    def _rows(self, given: str | list[Any]) -> list[list[int]]:
        if isinstance(given, str):
            given = [given]
        if not given:
            raise BadRequest("The input is empty: send a text, or a list of texts.", param="input")
        if isinstance(given[0], int):
            return [self._framed(given, "input")]
        check_count(given, self._options.max_inputs or _MAX_INPUTS, param="input")
        if isinstance(given[0], list):
            return [self._framed(tokens, f"input[{index}]") for index, tokens in enumerate(given)]
        return self._tokenised(given)

    def _tokenised(self, texts: list[str]) -> list[list[int]]:
        for index, text in enumerate(texts):
            if not text:
                where = f"input[{index}]" if len(texts) > 1 else "input"
                raise BadRequest(f"{where} is an empty text.", param=where)
        most = self._options.max_tokens * _CHARACTERS_A_TOKEN
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast([text[:most] for text in texts])]

    def _framed(self, tokens: list[int], param: str) -> list[int]:
        """Token ids as the model expects them: framed by its own marks, cut to what it can read."""
        if not tokens:
            raise BadRequest(f"{param} is an empty list of tokens.", param=param)
        if not all(0 <= token < self._vocabulary for token in tokens):
            raise BadRequest(f"{param}: token ids go from 0 to {self._vocabulary - 1}.", param=param)
        if tokens[: len(self._before)] == self._before:
            tokens = tokens[len(self._before) :]
        if self._after and tokens[-len(self._after) :] == self._after:
            tokens = tokens[: -len(self._after)]
        room = self._options.max_tokens - len(self._before) - len(self._after)
        return [*self._before, *tokens[:room], *self._after]

    def _pooled(self, states: Array, mask: Array) -> Array:
        """One unit vector from the states of all tokens, for models that leave this to the caller."""
        if self._options.pooling == "cls":
            vectors = states[:, 0]
        else:
            weights = mask[:, :, None].astype(states.dtype)
            vectors = (states * weights).sum(axis=1) / weights.sum(axis=1)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12))


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        found = "is an empty text" if value == "" else f"is {shown(value)}"
        raise BadRequest(f"{param} {found}: send a text.", param=param)
    return value


def _tokenizer(text: str) -> Tokenizer:
    if not text:
        raise UnusableModel("the file holds no tokenizer: set the option 'tokenizer' to the path of its tokenizer.json")
    try:
        content = text if text.lstrip().startswith("{") else Path(text).expanduser().read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(content)
    except OSError as error:
        raise UnusableModel(f"the tokenizer {text} can't be read") from error
    # The library raises bare exceptions, and nothing else goes on in this block.
    except Exception as error:
        raise UnusableModel(f"the tokenizer is not valid: {error}") from error
    tokenizer.no_padding()
    return tokenizer


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The marks that the tokenizer puts before and after every text."""
    bare, framed = (tokenizer.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return [], []


def _as_list(vector: NDArray[np.float32]) -> list[float]:
    # Nine decimals are more than single precision holds of a unit vector, and half the text of a double.
    values: list[float] = np.round(vector.astype(np.float64), _DECIMALS).tolist()
    return values


def _as_base64(vector: NDArray[np.float32]) -> str:
    return pybase64.b64encode_as_string(vector.astype("<f4").tobytes())
