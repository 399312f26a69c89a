import pytest
from msgspec.structs import replace

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Batch
from gateway.observe.cost import MOST_NANO, Cost, Costs
from tests.routing.planning import ONE_BOX, serve, snapshot

MODELS = """\
models:
  - id: llama
    pricing: {prompt: "0.0000006", completion: "0.0000012", input_cache_read: "0.0000001"}
    route:
      - {name: box, base_url: "http://box:8000"}
      - {name: paid, base_url: "http://paid:8000", pricing: {request: 0.5}}
      - {name: cheap, base_url: "https://cheap.example", pricing: {prompt: 2.0e-7, completion: 5.0e-6}}
      - {name: dear, base_url: "https://dear.example"}
      - {name: fallback, base_url: "https://fallback.example"}
  - id: bare
    route:
      - {name: box, base_url: "http://box:8000"}
      - {name: cloud, base_url: "https://cheap.example"}
  - id: alone
    base_url: http://box:8000
    pricing: {prompt: 1.0e-6}
"""
ROUTING = """\
local_deployment:
  - {endpoint: "http://box:8000", models: [llama, bare, alone]}
  - {endpoint: "http://paid:8000", models: [llama]}
remote_deployment:
  - {endpoint: "https://cheap.example", models: [llama, bare]}
  - {endpoint: "https://dear.example", models: [llama]}
"""
USED = Usage(1_000, 100)


def costs(models: str = MODELS, routing: str | None = ROUTING) -> Costs:
    made = Costs()
    made.adopt(snapshot(serve(models, routing)))
    return made


def answered(name: str, model: str = "llama", usage: Usage | None = USED, lost: Usage | None = None) -> Outcome:
    return Outcome(
        request_id="1",
        operation="chat/completions",
        model=model,
        model_id=model,
        served_model=model,
        generation=1,
        stream=False,
        status=200,
        attempts=(Attempt(model, name, "whichever", 1.0, 200),),
        fallback=False,
        duration=1.0,
        usage=usage,
        lost=lost,
    )


def test_a_remote_deployment_costs_what_the_model_or_its_own_pricing_says_and_avoids_nothing() -> None:
    assert costs().cost_of(answered("dear")) == Cost(720_000, 0)
    assert costs().cost_of(answered("cheap")) == Cost(700_000, 0)


def test_a_local_deployment_is_free_and_avoids_what_the_cheapest_remote_one_would_have_cost() -> None:
    assert costs().cost_of(answered("box")) == Cost(0, 700_000)
    assert costs().cost_of(answered("box", usage=Usage(1_000, 1_000))) == Cost(0, 1_800_000)
    assert costs().cost_of(answered("box", usage=Usage(1_000, 100, 900))) == Cost(0, 270_000)


def test_a_local_deployment_may_have_a_price() -> None:
    assert costs().cost_of(answered("paid")) == Cost(500_000_000, 700_000)


def test_an_unlisted_deployment_costs_what_the_model_does_and_avoids_what_a_local_one_does() -> None:
    assert costs().cost_of(answered("fallback")) == Cost(720_000, 700_000)


def test_without_a_remote_deployment_nothing_is_avoided() -> None:
    assert costs().cost_of(answered("box:8000", "alone")) == Cost(0, 0)
    assert costs(routing=None).cost_of(answered("box:8000", "alone")) == Cost(1_000_000, 0)


def test_without_prices_a_cost_is_unknown_where_it_is_not_free() -> None:
    assert costs().cost_of(answered("cloud", "bare")) is None
    assert costs().cost_of(answered("box", "bare")) == Cost(0, 0)
    assert costs().cost_of(answered("gone")) is None


def test_without_tokens_a_cost_is_unknown_where_it_is_not_free() -> None:
    free = MODELS.replace('pricing: {prompt: "0.0000006"', 'pricing: {prompt: "0"').replace('"0.0000012"', "0")
    for usage in (None, Usage()):
        assert costs().cost_of(answered("dear", usage=usage)) is None
        assert costs().cost_of(answered("box", usage=usage)) == Cost(0, 0)
    assert costs(free.replace('"0.0000001"', "0")).cost_of(answered("dear", usage=None)) == Cost(0, 0)


def test_one_side_of_the_tokens_is_enough() -> None:
    assert costs().cost_of(answered("dear", usage=Usage(1_000, None))) == Cost(600_000, 0)
    assert costs().cost_of(answered("dear", usage=Usage(None, 100))) == Cost(120_000, 0)


def test_counts_that_cannot_be_are_taken_for_the_nearest_that_can() -> None:
    assert costs().cost_of(answered("dear", usage=Usage(1_000, 0, 2_000, 9))) == Cost(100_000, 0)


@pytest.mark.parametrize("number", [1, 5, 12])
def test_a_cost_that_cannot_be_is_taken_for_the_largest_that_can(number: int) -> None:
    """The ledger used to bound it, and the totals did not."""
    made = costs(MODELS.replace("0.0000006", "0.6").replace("2.0e-7", "0.2"))
    for name, cost in (("dear", Cost(MOST_NANO, 0)), ("box", Cost(0, MOST_NANO))):
        batch = Batch([1.0] * number, [answered(name, usage=Usage(10**10, 0))] * number)
        made.take(batch)
        plain = [*batch.alike, *batch.mixed]
        assert list(batch.odd_costs) == ([] if plain else [cost] * number)
        assert [each.spent for each in plain] == [[cost.spent] * number for _ in plain]
        assert [each.avoided for each in plain] == [[cost.avoided] * number for _ in plain]
        assert made.totals["llama", name, "whichever"] == Cost(cost.spent * number, cost.avoided * number)


def test_what_nobody_answered_costs_nothing() -> None:
    assert costs().cost_of(replace(answered("dear"), served_model=None, usage=None)) == Cost(0, 0)
    assert costs().cost_of(replace(answered("dear"), served_model=None, attempts=(), usage=None)) == Cost(0, 0)


def test_what_an_upstream_refused_costs_nothing() -> None:
    refused = replace(answered("dear", usage=None), status=400)
    assert costs().cost_of(refused) == Cost(0, 0)
    assert costs().cost_of(replace(refused, status=499, failure="client_left")) is None


def test_lost_tokens_are_spent_where_the_stream_broke_and_avoid_nothing() -> None:
    broke, took_over = Attempt("llama", "dear", "remote", 1.0, 200, "cut_answer"), Attempt("llama", "box", "local", 1.0)
    moved = replace(answered("box", lost=USED), attempts=(broke, replace(took_over, rescue="replay")))
    assert costs().cost_of(moved) == Cost(720_000, 700_000)
    assert costs().cost_of(answered("dear", lost=USED)) == Cost(1_440_000, 0)
    assert costs().cost_of(answered("box", lost=USED)) == Cost(0, 700_000)
    assert costs().cost_of(answered("box", lost=Usage())) == Cost(0, 700_000)
    assert costs().cost_of(replace(moved, served_model=None, usage=None)) == Cost(720_000, 0)
    assert costs().cost_of(replace(answered("cloud", "bare", lost=USED), served_model=None)) == Cost(0, 0)
    assert costs().cost_of(replace(moved, served_model=None, attempts=())) == Cost(0, 0)


def test_totals_are_by_deployment_and_group_and_outlive_a_configuration() -> None:
    made = costs()
    start = {
        ("llama", "box", "local"): Cost(),
        ("llama", "paid", "local"): Cost(),
        ("llama", "cheap", "remote"): Cost(),
        ("llama", "dear", "remote"): Cost(),
        ("llama", "fallback", "unlisted"): Cost(),
    }
    assert made.totals == start
    for name in ("box", "dear", "box"):
        made.count(answered(name))
    made.count(answered("cloud", "bare"))
    made.adopt(snapshot(serve(MODELS.replace("0.0000006", "0.0000016"), ROUTING)))
    made.count(answered("dear"))
    counted = {
        ("llama", "box", "whichever"): Cost(0, 1_400_000),
        ("llama", "dear", "whichever"): Cost(720_000 + 1_720_000, 0),
    }
    assert made.totals == start | counted
    made.adopt(snapshot(serve(ONE_BOX, None)))
    assert made.totals == counted


def test_a_request_that_ends_after_its_deployment_was_removed_is_paid_for() -> None:
    made = costs()
    without = MODELS.replace("""      - {name: fallback, base_url: "https://fallback.example"}\n""", "")
    made.adopt(snapshot(serve(without, ROUTING)))
    assert made.cost_of(answered("fallback")) == Cost(720_000, 700_000)
    made.adopt(snapshot(serve(without, ROUTING)))
    assert made.cost_of(answered("fallback")) is None


def test_money_is_told_in_dollars_where_anything_has_a_price() -> None:
    kept = costs()
    assert kept.money() == {"spent": 0.0, "avoided": 0.0}
    kept.count(answered("paid"))
    assert kept.money() == {"spent": 0.5, "avoided": 0.0007}
    without = costs('models: [{id: llama, route: [{name: box, base_url: "http://box:8000"}]}]', None)
    assert without.money() is None
    assert Costs().money() is None


def test_tariffs_worked_out_beforehand_are_taken_once_their_configuration_is_in_force() -> None:
    made = costs()
    dearer = snapshot(serve(MODELS.replace("0.0000006", "0.0000016"), ROUTING))
    made.prepare(dearer.catalogue)
    assert made.cost_of(answered("dear")) == Cost(720_000, 0)
    made.adopt(dearer)
    assert made.cost_of(answered("dear")) == Cost(1_720_000, 0)


def test_tariffs_worked_out_for_another_configuration_are_not_taken() -> None:
    made, first = costs(), snapshot(serve(MODELS, ROUTING))
    made.prepare(snapshot(serve(MODELS.replace("0.0000006", "0.0000016"), ROUTING)).catalogue)
    made.adopt(first)
    assert made.cost_of(answered("dear")) == Cost(720_000, 0)


def test_an_answer_that_broke_off_is_paid_for_where_it_began() -> None:
    made = costs()
    broke = Attempt("llama", "dear", "remote", 1.0, 200, "cut_answer")
    refused = Attempt("llama", "box", "local", 1.0, 400, "rescue_refused", rescue="continue")
    outcome = replace(answered("dear", lost=USED), attempts=(broke, refused), failure="cut_answer")
    assert made.count(outcome) == Cost(1_440_000, 0)
    assert made.totals["llama", "dear", "remote"] == Cost(1_440_000, 0)
    assert made.totals["llama", "box", "local"] == Cost()


def test_what_a_break_took_is_counted_where_it_broke() -> None:
    """It was counted for who took over, a box of one's own at times."""
    made = costs()
    broke = Attempt("llama", "dear", "remote", 1.0, 200, "cut_answer")
    took_over = Attempt("llama", "box", "local", 1.0, 200, rescue="replay")
    cost = made.count(replace(answered("box", lost=USED), attempts=(broke, took_over)))
    assert cost == Cost(720_000, 700_000)
    assert made.totals["llama", "dear", "remote"] == Cost(720_000, 0)
    assert made.totals["llama", "box", "local"] == Cost(0, 700_000)


def test_what_a_break_took_is_not_told_where_the_answers_cost_is_unknown() -> None:
    broke = Attempt("llama", "dear", "remote", 1.0, 200, "cut_answer")
    took_over = Attempt("bare", "cloud", "remote", 1.0, 200, rescue="replay")
    moved = replace(answered("cloud", "bare", lost=USED), attempts=(broke, took_over))
    assert costs().cost_of(moved) is None
