"""The Open Inference Protocol: the official tritonclient works unchanged, and what is wrong is told in its words."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.rawhttp import Answer
from tests.serving import Server

CONFIG = """
[[models]]
id = "echo"
kind = "custom"
backend = "sandbox"
[server]
max_body_bytes = 2_000_000
"""
SETOSA, VIRGINICA = [5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]
ALL_TYPES = [
    np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.float16, np.float32,
    np.float64,
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("oip"), config=CONFIG) as server:
        yield server


@pytest.fixture
def headers(server: Server) -> dict[str, str]:
    return {"authorization": f"Bearer {server.credentials['api_key']}"}


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def rows(values: Any, *, name: str, binary: bool) -> triton.InferInput:
    array = np.asarray(values)
    given = triton.InferInput(name, list(array.shape), triton_type(array))
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def triton_type(array: Any) -> str:
    from tritonclient.utils import np_to_triton_dtype

    found: str = np_to_triton_dtype(array.dtype)
    return found


def ask(server: Server, path: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    return Answer(*server.request("POST", path, body=body, headers=headers, key=server.credentials["api_key"]))


class TestTritonClient:
    def test_health_and_metadata(self, client: triton.InferenceServerClient, headers: dict[str, str]) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.is_model_ready("iris", headers=headers)
        assert client.is_model_ready("iris", "1", headers=headers)
        told = client.get_model_metadata("iris", headers=headers)
        assert told["versions"] == ["1", "2"]
        assert [tensor["shape"] for tensor in told["inputs"]] == [[-1, 4]]
        assert client.get_model_metadata("iris", "1", headers=headers)["versions"] == ["1"]

    @pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "json in"])
    @pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "json out"])
    def test_a_real_model_answers_alike_in_every_form(
        self, client: triton.InferenceServerClient, headers: dict[str, str], binary_in: bool, binary_out: bool
    ) -> None:
        told = client.get_model_metadata("iris", headers=headers)
        given = rows(np.array([SETOSA, VIRGINICA], np.float32), name=told["inputs"][0]["name"], binary=binary_in)
        wanted = [triton.InferRequestedOutput(out["name"], binary_data=binary_out) for out in told["outputs"]]
        answer = client.infer("iris", [given], outputs=wanted, request_id="mine", headers=headers)
        response = answer.get_response()
        assert (response["id"], response["model_name"], response["model_version"]) == ("mine", "iris", "2")
        values = [answer.as_numpy(out["name"]) for out in told["outputs"]]
        assert {len(value) for value in values} == {2}
        scores = next(value for value in values if value.dtype == np.float32)
        assert list(scores.argmax(axis=1)) == [0, 2]

    def test_all_outputs_come_when_none_is_named_and_a_version_can_be(
        self, client: triton.InferenceServerClient, headers: dict[str, str]
    ) -> None:
        told = client.get_model_metadata("iris", headers=headers)
        given = rows(np.array([SETOSA], np.float32), name=told["inputs"][0]["name"], binary=True)
        answer = client.infer("iris", [given], model_version="1", headers=headers)
        assert answer.get_response()["model_version"] == "1"
        assert [out["name"] for out in answer.get_response()["outputs"]] == [out["name"] for out in told["outputs"]]

    @pytest.mark.parametrize(
        ("kind", "binary"),
        [*((kind, True) for kind in ALL_TYPES), *((kind, False) for kind in ALL_TYPES if kind is not np.float16)],
    )
    def test_every_datatype_comes_back_as_it_went(
        self, client: triton.InferenceServerClient, headers: dict[str, str], kind: Any, binary: bool
    ) -> None:
        """But for FP16, which the client itself sends as bytes alone."""
        array = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
        wanted = [triton.InferRequestedOutput("x", binary_data=binary)]
        answer = client.infer("echo", [rows(array, name="x", binary=binary)], outputs=wanted, headers=headers)
        back = answer.as_numpy("x")
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)

    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    def test_texts_come_back_as_they_went(
        self, client: triton.InferenceServerClient, headers: dict[str, str], binary: bool
    ) -> None:
        array = np.array(["", "grüße", "\N{SNOWMAN}" * 300], dtype=object)
        wanted = [triton.InferRequestedOutput("x", binary_data=binary)]
        answer = client.infer("echo", [rows(array, name="x", binary=binary)], outputs=wanted, headers=headers)
        texts = [text.decode() if isinstance(text, bytes) else text for text in answer.as_numpy("x")]
        assert texts == list(array)

    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    def test_requests_and_answers_may_be_compressed(
        self, client: triton.InferenceServerClient, headers: dict[str, str], algorithm: str
    ) -> None:
        array = np.zeros((40, 1000), np.float32)
        answer = client.infer(
            "echo",
            [rows(array, name="x", binary=True)],
            headers=headers,
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert np.array_equal(answer.as_numpy("x"), array)

    def test_errors_are_sentences(self, client: triton.InferenceServerClient, headers: dict[str, str]) -> None:
        given = rows(np.zeros((1, 3), np.float32), name="nothing", binary=True)
        with pytest.raises(InferenceServerException, match="There is no input 'nothing'"):
            client.infer("iris", [given], headers=headers)
        with pytest.raises(InferenceServerException, match="does not exist"):
            client.infer("nobody", [given], headers=headers)
        with pytest.raises(InferenceServerException, match="No API key"):
            client.infer("iris", [given])
        with pytest.raises(InferenceServerException, match="can't answer this"):
            client.infer("smollm2-135m-instruct", [given], headers=headers)

    def test_calls_are_metered_under_one_endpoint(
        self, server: Server, client: triton.InferenceServerClient, headers: dict[str, str]
    ) -> None:
        given = rows(np.zeros((1, 3), np.float32), name="x", binary=True)
        answer = client.infer("echo", [given], headers=headers)
        assert answer is not None
        status, usage = server.get("/v1/usage?group_by=endpoint", key=server.credentials["api_key"])
        assert status == 200
        assert "/v2/models/infer" in {row["group"]["endpoint"] for row in usage["data"]}


ONE = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2]}
BAD: dict[str, tuple[Any, str]] = {
    "no inputs": ({}, "inputs"),
    "a shape that the data does not have": ({"inputs": [{**ONE, "shape": [3]}]}, "2 elements"),
    "a negative shape": ({"inputs": [{**ONE, "shape": [-1, -2]}]}, "shape"),
    "a huge shape": ({"inputs": [{**ONE, "shape": [2**40, 2**40]}]}, "elements"),
    "too many dimensions": ({"inputs": [{**ONE, "shape": [1] * 99}]}, "shape"),
    "an unknown datatype": ({"inputs": [{**ONE, "datatype": "FP8"}]}, "FP8"),
    "texts for numbers": ({"inputs": [{**ONE, "data": ["a", "b"]}]}, "FP32"),
    "numbers out of range": ({"inputs": [{**ONE, "datatype": "UINT8", "data": [1, 256]}]}, "can't hold"),
    "fractions for whole numbers": ({"inputs": [{**ONE, "datatype": "INT8", "data": [1, 1.5]}]}, "INT8"),
    "nested otherwise than the shape": ({"inputs": [{**ONE, "shape": [2, 1], "data": [[1, 2]]}]}, "elements"),
    "ragged": ({"inputs": [{**ONE, "shape": [2, 2], "data": [[1, 2], [3]]}]}, "elements"),
    "no data": ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}, "neither data"),
    "bytes that are not there": (
        {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]},
        "does not fit",
    ),
    "classification": ({"inputs": [ONE], "outputs": [{"name": "x", "parameters": {"classification": 3}}]}, "scores"),
}


class TestRawRequests:
    @pytest.mark.parametrize("case", BAD)
    def test_a_bad_request_is_told_what_is_wrong(self, server: Server, case: str) -> None:
        body, words = BAD[case]
        answer = ask(server, "/v2/models/echo/infer", json.dumps(body).encode())
        assert answer.status == 400
        assert words in answer.json()["error"]
        assert answer.json()["code"] == "invalid_request_error"

    def test_nested_data_is_read_row_by_row(self, server: Server) -> None:
        body = {"inputs": [{**ONE, "shape": [2, 2], "data": [[1, 2], [3, 4]]}]}
        answer = ask(server, "/v2/models/echo/infer", json.dumps(body).encode()).json()
        assert answer["outputs"] == [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}]

    @pytest.mark.parametrize("length", ["0", "-1", "x", "99999"])
    def test_a_header_length_that_lies_is_refused(self, server: Server, length: str) -> None:
        body = json.dumps({"inputs": [ONE]}).encode()
        answer = ask(server, "/v2/models/echo/infer", body, {"inference-header-content-length": length})
        assert answer.status == 400

    def test_bytes_behind_the_last_tensor_are_refused(self, server: Server) -> None:
        head = json.dumps({"inputs": [ONE]}).encode()
        answer = ask(
            server, "/v2/models/echo/infer", head + b"abc", {"inference-header-content-length": str(len(head))}
        )
        assert answer.status == 400
        assert "3 bytes more" in answer.json()["error"]

    def test_text_lengths_that_lie_are_refused_or_given_back_as_they_are(self, server: Server) -> None:
        """What the model makes of its bytes is its own affair; writing them as JSON must not read beyond them."""
        data = struct.pack("<I", 2**31) + b"ab"
        given = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"inputs": [given]}).encode()
        answer = ask(server, "/v2/models/echo/infer", head + data, {"inference-header-content-length": str(len(head))})
        assert answer.status == 500

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_a_bomb_is_refused_before_it_is_unpacked(self, server: Server, coding: str) -> None:
        pack = gzip.compress if coding == "gzip" else zlib.compress
        answer = ask(server, "/v2/models/echo/infer", pack(b" " * 50_000_000), {"content-encoding": coding})
        assert answer.status == 413
        assert "unpacked" in answer.json()["error"]

    def test_a_body_that_is_not_what_its_coding_says_is_refused(self, server: Server) -> None:
        good = gzip.compress(json.dumps({"inputs": [ONE]}).encode())
        for body in (b"plain", good[:-4], good + b"more"):
            answer = ask(server, "/v2/models/echo/infer", body, {"content-encoding": "gzip"})
            assert answer.status == 400

    def test_an_answer_is_repeated_for_its_idempotency_key(self, server: Server) -> None:
        body = json.dumps({"inputs": [ONE]}).encode()
        answers = [ask(server, "/v2/models/echo/infer", body, {"idempotency-key": "once"}) for _ in range(2)]
        assert answers[0].body == answers[1].body
        assert answers[1].headers["idempotent-replayed"] == "true"
