"""The state that the page shows: whole first, then what changed."""

import json
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from gateway import __version__
from gateway.observe.board import ROWS, Board
from gateway.observe.live import Live
from gateway.observe.models import Models
from gateway.observe.traffic import Traffic
from gateway.routing.breakers import SLOW_START
from gateway.routing.failures import Cause, Failure
from gateway.routing.health import ProbeResult
from gateway.routing.manager import RoutingManager
from gateway.routing.plan import plan
from tests.config.loading import load
from tests.observe.outcomes import attempt, count, ended

MODELS = """\
models:
  - id: m
    route:
      - {name: a, kind: vllm, base_url: "http://a:1"}
      - {name: b, kind: vllm, base_url: "http://b:1"}
  - id: other
    route: [{name: c, kind: vllm, base_url: "http://c:1"}]
"""


class Seen:
    """A board and everything that it looks at."""

    def __init__(self) -> None:
        self.now = 9000.5
        self.manager = RoutingManager()
        self.traffic = Traffic()
        self.live = Live(lambda: self.now)
        self.in_flight = Counter[tuple[str, str]]()
        self.reload: dict[str, object] = {"faults": [], "warnings": [], "history": []}
        self.money: dict[str, float] | None = None
        self.board = Board(
            manager=self.manager,
            models=Models(self.manager, self.traffic, self.in_flight),
            live=self.live,
            in_flight=self.in_flight,
            reloads=lambda: dict(self.reload),
            money=lambda: self.money,
            clock=lambda: self.now,
        )

    def adopt(self, models: str, routing: str | None = None) -> None:
        loaded = load(models, routing)
        self.manager.adopt(plan(loaded, f"digest of {len(models)}"))

    async def tick(self, seconds: float = 1.0) -> dict[str, Any]:
        """Let time go by, and look."""
        self.now += seconds
        state: dict[str, Any] = json.loads(await self.board.tick())
        return state

    def full(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.board.full())
        return state


@pytest.fixture
def seen() -> Seen:
    made = Seen()
    made.adopt(MODELS)
    return made


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


async def test_everything_is_told_once(seen: Seen) -> None:
    await seen.tick()
    state = seen.full()
    assert (state["full"], state["version"], state["began"]) == (True, __version__, 9000)
    assert (state["generation"], state["revision"], state["strategy"]) == (1, 0, "fixed")
    assert (state["in_flight"], state["ended"], state["money"], state["probed"]) == (0, 0, None, False)
    assert (state["at"], state["since"]) == (9001.5, 9000.5)
    assert state["order"] == {"models": ["m", "other"], "endpoints": ["http://a:1", "http://b:1", "http://c:1"]}
    assert ids(state["models"]) == ["m", "other"]
    assert state["endpoints"][0] == {
        "id": "http://a:1",
        "state": "unknown",
        "since": None,
        "reason": None,
        "in_flight": 0,
        "deployments": 1,
    }
    a, b = state["models"][0]["deployments"]
    assert (a["name"], a["configured_weight"], a["effective_weight"], a["recent_share"]) == ("a", 0.5, 0.5, None)
    assert (b["recent"], b["why"]) == (0, None)
    assert seen.board.full() is seen.board.full()
    quiet = await seen.tick()
    assert (quiet["models"], quiet["endpoints"], quiet["requests"]) == ([], [], [])
    assert not {"full", "order", "reload", "version"} & set(quiet)
    assert [row[0] for row in quiet["seconds"]] == [9001]


async def test_nothing_is_told_of_no_configuration() -> None:
    seen = Seen()
    state = await seen.tick()
    assert (state["generation"], state["hash"], state["models"], state["endpoints"]) == (0, None, [], [])
    assert seen.full()["order"] == {"models": [], "endpoints": []}
    seen.adopt(MODELS)
    assert ids((await seen.tick())["models"]) == ["m", "other"]


async def test_a_request_moves_the_row_of_its_model_alone(seen: Seen) -> None:
    await seen.tick()
    outcome = ended(attempt("a", "server_error"), replace(attempt("b"), offset=4.5), first=50.0, tokens=9)
    count(seen.live, outcome)
    seen.traffic(outcome)
    state = await seen.tick()
    assert ids(state["models"]) == ["m"]
    rows = {each["name"]: each for each in state["models"][0]["deployments"]}
    assert (rows["b"]["recent_share"], rows["b"]["recent"], rows["b"]["requests"]) == (1, 1, 1)
    assert (rows["a"]["recent_share"], rows["a"]["failures"], rows["a"]["why"]) == (0, 1, "1 failed")
    [request] = state["requests"]
    assert (request["n"], request["at"], request["deployment"], request["fallback"]) == (1, 9001.5, "b", True)
    assert [each["failure"] for each in request["attempts"]] == ["server_error", None]
    assert [each["offset"] for each in request["attempts"]] == [0, 4.5]
    assert (request["prompt_tokens"], request["completion_tokens"], request["error"]) == (3, 9, False)
    assert state["seconds"][-1][:5] == [9001, 1, 0, 1, 9]
    assert (await seen.tick())["requests"] == []
    assert seen.full()["requests"] == [request]


async def test_a_request_without_an_attempt_was_answered_by_nobody(seen: Seen) -> None:
    await seen.tick()
    count(seen.live, ended(attempt("a", "server_error"), status=502, failure="server_error"))
    [request] = (await seen.tick())["requests"]
    assert (request["deployment"], request["prompt_tokens"], request["error"]) == (None, None, True)


async def test_requests_under_way_are_told_of_where_they_are(seen: Seen) -> None:
    await seen.tick()
    seen.in_flight["m", "a"] = 2
    seen.in_flight["gone", "z"] = 1
    state = await seen.tick()
    assert (state["in_flight"], ids(state["models"]), ids(state["endpoints"])) == (3, ["m"], ["http://a:1"])
    assert (state["models"][0]["deployments"][0]["in_flight"], state["endpoints"][0]["in_flight"]) == (2, 2)
    seen.in_flight["m", "a"] = 0
    state = await seen.tick()
    assert (state["in_flight"], ids(state["models"]), state["endpoints"][0]["in_flight"]) == (1, ["m"], 0)


async def test_health_is_told_where_it_changes(seen: Seen) -> None:
    seen.adopt(MODELS, "health_check: 5\n")
    await seen.tick()
    seen.manager.probed("http://a:1", ProbeResult("connection refused"), seen.now)
    state = await seen.tick()
    assert (state["revision"], ids(state["endpoints"]), ids(state["models"])) == (1, ["http://a:1"], ["m"])
    assert (state["endpoints"][0]["state"], state["endpoints"][0]["reason"]) == ("down", "connection refused")
    told = {each["name"]: (each["effective_weight"], each["why"]) for each in state["models"][0]["deployments"]}
    assert told == {"a": (0, "down"), "b": (1, "covers for a")}
    assert "order" not in state


async def test_a_breaker_is_told_where_it_changes(seen: Seen) -> None:
    await seen.tick()
    assert seen.manager.snapshot is not None
    a = seen.manager.snapshot.routes["m"].chain[0]
    seen.manager.failed(a, Failure(Cause.KEY_REFUSED), 1.0)
    state = await seen.tick()
    told = {each["name"]: each["why"] for each in state["models"][0]["deployments"]}
    assert told == {"a": "breaker open", "b": "covers for a"}
    assert (await seen.tick())["models"] == []


async def test_a_slow_start_is_told_as_long_as_it_lasts(seen: Seen) -> None:
    assert seen.manager.snapshot is not None
    a = seen.manager.snapshot.routes["m"].chain[0]
    seen.manager.failed(a, Failure(Cause.KEY_REFUSED), seen.now)
    await seen.tick(3600)
    assert seen.manager.admits(a, seen.now)
    seen.manager.succeeded(a, seen.now)
    for seconds, why in ((SLOW_START - 2, {"a": "slow start", "b": "covers for a"}), (2, {"a": None, "b": None})):
        seen.manager.tick(seen.now + seconds)
        [row] = (await seen.tick(seconds))["models"]
        assert {each["name"]: each["why"] for each in row["deployments"]} == why


async def test_another_configuration_is_told_whole_where_it_differs(seen: Seen) -> None:
    await seen.tick()
    seen.adopt(MODELS.replace("- {name: b,", "- {name: b, weight: 3,").replace("other", "another"))
    state = await seen.tick()
    assert (state["generation"], state["order"]["models"]) == (2, ["m", "another"])
    assert ids(state["models"]) == ["m", "another"]
    assert ids(seen.full()["models"]) == ["m", "another"]


async def test_a_reading_is_told_once_and_not_at_any_length(seen: Seen) -> None:
    await seen.tick()
    lines = [f"model-{number}" for number in range(45)]
    entry = {"result": "accepted", "changes": {"models_added": lines, "weights": ["w"]}, "faults": []}
    seen.reload |= {"history": [entry], "warnings": ["x"] * 41}
    reload = (await seen.tick())["reload"]
    [told] = reload["history"]
    assert (len(told["changes"]["models_added"]), told["changes"]["models_added_more"]) == (40, 5)
    assert (told["changes"]["weights"], len(reload["warnings"]), reload["warnings_more"]) == (["w"], 40, 1)
    assert "reload" not in await seen.tick()
    assert seen.full()["reload"] == reload


async def test_what_a_reading_leaves_out_is_told_as_nothing(seen: Seen) -> None:
    seen.reload["history"] = [{"result": "accepted", "generation": 1}]
    [told] = (await seen.tick())["reload"]["history"]
    assert told == {"result": "accepted", "generation": 1, "hash": None, "faults": [], "changes": {}}


async def test_a_state_without_a_history_has_an_empty_one(seen: Seen) -> None:
    del seen.reload["history"]
    assert (await seen.tick())["reload"]["history"] == []


async def test_money_is_told_where_there_are_prices(seen: Seen) -> None:
    seen.money = {"spent": 1.5, "avoided": 4.0}
    assert (await seen.tick())["money"] == {"spent": 1.5, "avoided": 4.0}


async def test_of_many_models_so_many_are_described_a_second() -> None:
    seen = Seen()
    names = [f"m{number}" for number in range(ROWS + 20)]
    entries = "".join(f'  - {{id: {name}, provider: vllm, base_url: "http://b:1"}}\n' for name in names)
    seen.adopt(f"models:\n{entries}")
    assert len((await seen.tick())["models"]) == ROWS + 20
    for name in names:
        seen.in_flight[name, "b:1"] = 1
    first, second = (await seen.tick())["models"], (await seen.tick())["models"]
    assert (len(first), len(second)) == (ROWS, 20)
    assert {*ids(first), *ids(second)} == set(names)


async def test_who_begins_to_watch_again_is_told_everything(seen: Seen) -> None:
    await seen.tick()
    seen.board.rest()
    outcome = ended()
    count(seen.live, outcome)
    seen.traffic(outcome)
    await seen.tick(2000)
    state = seen.full()
    assert ids(state["models"]) == ["m", "other"]
    a = state["models"][0]["deployments"][0]
    assert (a["requests"], a["recent"]) == (1, 0)
    assert (len(state["seconds"]), len(state["requests"]), len(state["endpoints"])) == (600, 1, 3)


async def test_a_model_that_is_gone_is_not_described(seen: Seen) -> None:
    await seen.tick()
    count(seen.live, ended(attempt("x", model="gone")))
    assert (await seen.tick())["models"] == []


async def test_health_that_moves_no_weight_is_told_in_the_rows_of_its_models(seen: Seen) -> None:
    seen.adopt(MODELS, "health_check: 5\n")
    await seen.tick()
    seen.manager.probed("http://a:1", ProbeResult(), seen.now)
    state = await seen.tick()
    assert (state["revision"], ids(state["endpoints"]), ids(state["models"])) == (0, ["http://a:1"], ["m"])
    told = {each["name"]: each["health"]["state"] for each in state["models"][0]["deployments"]}
    assert told == {"a": "up", "b": "unknown"}


async def test_a_model_that_is_an_alias_now_is_not_described(seen: Seen) -> None:
    await seen.tick()
    seen.adopt(MODELS.replace("id: m", "id: renamed\n    aliases: [m]"))
    await seen.tick()
    count(seen.live, ended())
    assert (await seen.tick())["models"] == []
    assert sorted(ids(seen.full()["models"])) == ["other", "renamed"]


async def test_what_waits_for_a_variable_is_told_once(seen: Seen) -> None:
    waits = '      - {name: w, kind: vllm, base_url: "http://w:1", api_key: "${NOT_SET}"}\n  - id: other'
    seen.adopt(MODELS.replace("  - id: other", waits))
    await seen.tick()
    seen.in_flight["m", "a"] = 1
    [row] = (await seen.tick())["models"]
    assert row["inactive"] == [{"name": "w", "group": "unlisted", "waits_for": "NOT_SET"}]
    seen.adopt(MODELS)
    [row] = (await seen.tick())["models"][:1]
    assert row["inactive"] == []


async def test_a_request_is_told_whole(seen: Seen) -> None:
    await seen.tick()
    tries = attempt("a", "cut_answer"), replace(attempt("b"), offset=4.5, rescue="continue")
    outcome = replace(
        ended(*tries, first=50.0, tokens=9), request_id="r-7", model="alias", served_model="other", generation=7
    )
    count(seen.live, outcome)
    [request] = (await seen.tick())["requests"]
    assert request == {
        "n": 1,
        "at": 9001.5,
        "id": "r-7",
        "operation": "chat/completions",
        "model": "alias",
        "model_id": "m",
        "served_model": "other",
        "deployment": "b",
        "stream": True,
        "status": 200,
        "failure": None,
        "error": False,
        "fallback": True,
        "rescue": "continue",
        "generation": 7,
        "first_content": 50.0,
        "duration": 10.0,
        "prompt_tokens": 3,
        "completion_tokens": 9,
        "attempts": [
            {
                "model": "m",
                "deployment": "a",
                "group": "local",
                "offset": 0.0,
                "ms": 5.0,
                "status": None,
                "failure": "cut_answer",
                "detail": None,
                "rescue": None,
            },
            {
                "model": "m",
                "deployment": "b",
                "group": "local",
                "offset": 4.5,
                "ms": 5.0,
                "status": 200,
                "failure": None,
                "detail": None,
                "rescue": "continue",
            },
        ],
    }


async def test_a_reading_keeps_what_it_says_and_cuts_its_faults(seen: Seen) -> None:
    await seen.tick()
    faults = [{"line": line} for line in range(42)]
    seen.reload |= {"accepted_at": "then", "faults": faults, "history": [{"result": "rejected", "faults": faults}]}
    reload = (await seen.tick())["reload"]
    assert (reload["accepted_at"], reload["warnings"]) == ("then", [])
    for told in (reload, reload["history"][0]):
        assert (told["faults"], told["faults_more"]) == (faults[:40], 2)
