"""`/v1/admin/models`: one method for each outcome. Mallory has a customer's key, which is no operator's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry_calls import ROW, Operator, iris
from tests.serving import Server
from tests.waiting import wait_until

_CONFIG = """
[registry]
drain_s = 0.1
max_versions = 12

[limits]
management_per_minute = 100000

[[models]]
id = "play"
backend = "sandbox"

[[models]]
id = "base"
kind = "tabular"
backend = "onnx"
source = "prepared:iris-1.onnx"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = "default_models = false\n" + _CONFIG
    with Server(tmp_path_factory.mktemp("registry"), config=config) as running:
        yield running


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    """The operator; what a test added to models of its own is taken away after it."""
    with Operator(server) as operator:
        yield operator
        for model in operator.http.get("/v1/admin/models").json()["data"]:
            if model["origin"] == "added":
                assert operator.http.delete(f"/v1/admin/models/{model['id']}").status_code == 200


class TestAdd:
    async def test_a_new_model_answers_without_a_restart(self, operator: Operator) -> None:
        version = await operator.added("a1", iris("1"), kind="tabular")
        assert (version["id"], version["origin"], version["format"]) == ("1", "added", "onnx")
        assert version["sha256"] == hashlib.sha256(iris("1").read_bytes()).hexdigest()
        assert operator.served("a1") == "1"
        assert [m["id"] for m in operator.http.get("/v1/models").json()["data"]] == ["play", "base", "a1"]

    async def test_a_version_of_a_configured_model_moves_no_alias_by_itself(self, operator: Operator) -> None:
        await operator.added("base", iris("2"), version="next")
        assert operator.served("base") == "1"
        assert operator.served("base@next") == "next"
        assert operator.http.delete("/v1/admin/models/base/versions/next").status_code == 200

    async def test_its_alias_leads_to_it_once_it_can_answer(self, operator: Operator) -> None:
        await operator.added("a2", iris("1"), kind="tabular")
        await operator.added("a2", iris("2"), aliases=["latest", "canary"])
        await wait_until(lambda: operator.served("a2") == "2", "latest leads to it")
        assert operator.served("a2@canary") == "2"
        assert operator.served("a2@stable") == "1"

    async def test_the_same_again_is_no_other_version(self, operator: Operator) -> None:
        await operator.added("a3", iris("1"), kind="tabular", version="1")
        assert operator.add("a3", iris("1"), version="1").status_code == 200

    async def test_the_same_version_with_another_file_is_refused(self, operator: Operator) -> None:
        """Also after it was removed: a version's name means one file for ever."""
        await operator.added("a4", iris("1"), kind="tabular", version="1")
        await operator.added("a4", iris("2"), version="2", aliases=["latest", "stable"])
        assert operator.add("a4", iris("2"), version="1").status_code == 409
        await wait_until(lambda: operator.served("a4") == "2", "aliases lead to 2")
        assert operator.http.delete("/v1/admin/models/a4/versions/1").status_code == 200
        assert operator.add("a4", iris("2"), version="1").status_code == 409
        assert operator.add("a4", iris("1"), version="1", options={"max_batch": 1}).status_code == 409
        await operator.added("a4", iris("1"), version="1")
        assert operator.add("base", iris("2"), version="1").status_code == 409

    async def test_the_file_may_change_where_it_came_from(self, operator: Operator, tmp_path: Path) -> None:
        """A copy is served, also by the next start."""
        source = tmp_path / "mine.onnx"
        source.write_bytes(iris("1").read_bytes())
        await operator.added("a5", source, kind="tabular")
        source.write_bytes(iris("2").read_bytes())
        operator.server.stop()
        operator.server.start()
        assert operator.version("a5", "1")["status"] == "ready"
        assert operator.served("a5") == "1"

    @pytest.mark.parametrize(
        ("body", "status", "told"),
        [
            ({"source": "/etc/hostname"}, 400, "must end in"),
            ({"source": "/nowhere/model.onnx"}, 400, "there is no file"),
            ({"source": "http://example.com/model.onnx"}, 400, "use https"),
            ({"source": "hf:owner/model.onnx"}, 400, "not of the form"),
            ({"kind": None}, 400, "which kind"),
            ({"sha256": "0" * 64}, 400, "not the one"),
            ({"version": "a b"}, 400, "version"),
            ({"version": "../1"}, 400, "version"),
            ({"id": "../../etc"}, 400, "id"),
            ({"aliases": ["1"], "version": "1"}, 409, "name of a version"),
            ({"id": "play"}, 409, "not served from files"),
            ({"id": "base", "kind": "image"}, 422, "kind"),
            ({"unknown": 1}, 400, "unknown"),
        ],
    )
    def test_what_cannot_be_is_refused_and_leaves_nothing(
        self, operator: Operator, body: dict[str, object], status: int, told: str
    ) -> None:
        """Nothing is stored, and no file of another kind is so much as opened."""
        whole = {"id": "bad", "source": str(iris("1")), "kind": "tabular", **body}
        sent = {name: value for name, value in whole.items() if value is not None}
        answer = operator.http.post("/v1/admin/models", json=sent)
        assert answer.status_code == status, answer.text
        assert told in answer.text
        assert operator.http.get("/v1/admin/models/bad").status_code == 404

    async def test_a_link_out_of_its_folder_is_refused(self, operator: Operator, tmp_path: Path) -> None:
        link = tmp_path / "link.onnx"
        link.symlink_to(iris("1"))
        answer = operator.add("bad", link, kind="tabular")
        assert answer.status_code == 400
        assert "link" in answer.text

    def test_there_is_a_most(self, operator: Operator) -> None:
        answers = [operator.add("many", iris("1"), kind="tabular") for _ in range(13)]
        assert [answer.status_code for answer in answers] == [201] * 12 + [422]


class TestAliases:
    async def test_a_rollback_leads_back_and_another_one_forth(self, operator: Operator) -> None:
        await operator.added("b1", iris("1"), kind="tabular")
        await operator.added("b1", iris("2"))
        assert operator.move("b1", "latest", "2").json()["version"] == "2"
        body = operator.roll_back("b1", "latest").json()
        assert (body["version"], body["previous"], len(body["history"])) == ("1", "2", 2)
        assert operator.served("b1") == "1"
        assert operator.roll_back("b1", "latest").json()["version"] == "2"

    async def test_refusals(self, operator: Operator) -> None:
        await operator.added("b2", iris("1"), kind="tabular")
        assert operator.move("b2", "latest", "9").status_code == 404
        assert operator.move("nowhere", "latest", "1").status_code == 404
        assert operator.move("b2", "1", "1").status_code == 409
        assert operator.move("b2", "latest", "1", expected="7").status_code == 409
        assert operator.roll_back("b2", "latest").status_code == 409
        assert operator.http.delete("/v1/admin/models/b2/aliases/latest").status_code == 404

    async def test_one_of_ones_own_comes_and_goes(self, operator: Operator) -> None:
        await operator.added("b3", iris("1"), kind="tabular")
        assert operator.move("b3", "friends", "1").json()["alias"] == "friends"
        assert operator.served("b3@friends") == "1"
        assert operator.http.delete("/v1/admin/models/b3/aliases/friends").status_code == 200
        assert operator.predict("b3@friends").status_code == 404


class TestRemove:
    async def test_a_version_that_an_alias_means_stays(self, operator: Operator) -> None:
        await operator.added("c1", iris("1"), kind="tabular")
        answer = operator.http.delete("/v1/admin/models/c1/versions/1")
        assert answer.status_code == 409
        assert "latest, stable" in answer.text

    def test_what_is_configured_stays(self, operator: Operator) -> None:
        assert operator.http.delete("/v1/admin/models/base/versions/1").status_code == 409
        assert operator.http.delete("/v1/admin/models/base").status_code == 409
        assert operator.http.delete("/v1/admin/models/nowhere").status_code == 404

    async def test_a_model_goes_and_calls_to_it_are_told(self, operator: Operator) -> None:
        await operator.added("c2", iris("1"), kind="tabular")
        assert operator.http.delete("/v1/admin/models/c2").status_code == 200
        assert operator.predict("c2").status_code == 404
        assert operator.http.get("/v1/models/c2").status_code == 404


class TestDeprecation:
    async def test_announced_then_gone_then_taken_back(self, operator: Operator) -> None:
        await operator.added("d1", iris("1"), kind="tabular")
        path = "/v1/admin/models/d1/versions/1/deprecation"
        dates = {"deprecated_at": "2020-01-01T00:00:00Z", "sunset_at": "2999-01-01T00:00:00Z", "successor": "d2"}
        assert operator.http.put(path, json=dates).json()["deprecation"]["successor"] == "d2"
        assert "deprecation" in operator.predict("d1").headers
        assert operator.http.put(path, json=dates | {"sunset_at": "2020-06-01T00:00:00Z"}).status_code == 200
        assert operator.predict("d1").status_code == 410
        assert operator.http.delete(path).status_code == 200
        assert operator.predict("d1").status_code == 200
        assert operator.http.delete(path).status_code == 404

    def test_dates_that_cannot_be(self, operator: Operator) -> None:
        path = "/v1/admin/models/base/versions/1/deprecation"
        dates = {"deprecated_at": "2020-01-01T00:00:00Z", "sunset_at": "2019-01-01T00:00:00Z"}
        assert operator.http.put(path, json=dates).status_code == 400
        assert operator.http.put(path, json={"deprecated_at": "soon"}).status_code == 400


class TestPins:
    async def test_a_keys_pin_holds_where_the_call_names_no_version(self, operator: Operator) -> None:
        await operator.added("e1", iris("1"), kind="tabular")
        await operator.added("e1", iris("2"), aliases=["latest"])
        await wait_until(lambda: operator.served("e1") == "2", "latest leads to 2")
        made = operator.http.post("/v1/api_keys", json={"name": "pinned", "model_versions": {"e1": "1"}}).json()
        assert made["model_versions"] == {"e1": "1"}
        with Operator(operator.server, key=made["key"]) as pinned:
            assert pinned.served("e1") == "1"
            assert pinned.served("e1@latest") == "2"
            assert pinned.served("e1", model_version="latest") == "2"
            patch = {"model_versions": None}
            assert operator.http.patch(f"/v1/api_keys/{made['id']}", json=patch).json()["model_versions"] is None
            assert pinned.served("e1") == "2"


class TestMallory:
    async def test_a_customers_key_sees_and_changes_nothing(self, operator: Operator) -> None:
        """Nor does a key that is restricted to another model learn of one that was added."""
        await operator.added("m1", iris("1"), kind="tabular")
        made = operator.http.post("/v1/api_keys", json={"name": "mallory", "models": ["base"]}).json()
        with Operator(operator.server, key=made["key"]) as mallory:
            assert mallory.add("m2", iris("1"), kind="tabular").status_code == 403
            assert mallory.move("m1", "latest", "1").status_code == 403
            assert mallory.roll_back("m1", "latest").status_code == 403
            for method, path in (
                ("GET", "/v1/admin/models"),
                ("GET", "/v1/admin/models/m1"),
                ("GET", "/v1/admin/models/m1/versions/1"),
                ("DELETE", "/v1/admin/models/m1"),
                ("DELETE", "/v1/admin/models/m1/versions/1"),
                ("DELETE", "/v1/admin/models/m1/aliases/latest"),
                ("DELETE", "/v1/admin/models/m1/versions/1/deprecation"),
            ):
                assert mallory.http.request(method, path).status_code == 403
            assert mallory.http.get("/v1/models/m1").status_code == 404
            assert mallory.predict("m1").status_code == 404
            assert [m["id"] for m in mallory.http.get("/v1/models").json()["data"]] == ["base"]
        answer = operator.http.post("/v1/predict", json={"model": "m1", "inputs": [ROW]})
        assert answer.status_code == 200
