import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.pricing import FREE, Prices, cheapest
from tests.routing.planning import BOXES, SPLIT, serve, snapshot

PRICED = BOXES + '    pricing: {prompt: "0.0000006", completion: "0.0000012"}\n'


def test_prices_are_read_from_numbers_and_text() -> None:
    pricing: dict[str, float | str] = {
        "prompt": "0.0000006",
        "completion": 1.2e-6,
        "input_cache_read": "3e-7",
        "request": "0.01",
        "image": "x",
    }
    assert Prices.of(pricing) == Prices(600_000_000, 1_200_000_000, 300_000_000, 1_200_000_000, 10_000_000_000_000)


@pytest.mark.parametrize("pricing", [None, {}, {"image": "0.1", "note": "free"}])
def test_without_a_counted_price_nothing_is_known(pricing: dict[str, float | str] | None) -> None:
    assert Prices.of(pricing) is None


def test_a_part_without_a_price_of_its_own_costs_what_the_whole_does() -> None:
    assert Prices.of({"prompt": 1, "completion": 2}) == Prices(10**15, 2 * 10**15, 10**15, 2 * 10**15)
    own = {"prompt": 1, "completion": 2, "input_cache_read": 0, "internal_reasoning": 3}
    assert Prices.of(own) == Prices(10**15, 2 * 10**15, 0, 3 * 10**15)


def test_no_price_for_reasoning_is_the_price_of_a_completion() -> None:
    assert Prices.of({"completion": 2, "internal_reasoning": "0"}) == Prices(0, 2 * 10**15, 0, 2 * 10**15)


def test_each_sort_of_token_costs_its_own_price() -> None:
    prices = Prices(prompt=7_000_000, completion=11_000_000, cached=2_000_000, reasoning=13_000_000, request=5_000_000)
    assert prices.cost((10, 20, 0, 0)) == 70 + 220 + 5
    assert prices.cost((10, 20, 4, 5)) == 42 + 8 + 165 + 65 + 5
    assert prices.cost_of_tokens((10, 20, 4, 5)) == 42 + 8 + 165 + 65
    assert FREE.cost((10, 20, 4, 5)) == 0


@pytest.mark.parametrize(("cached", "reasoning"), [(None, None), (0, 0), (4, None), (None, 5), (4, 5)])
def test_several_requests_cost_what_each_does(cached: int | None, reasoning: int | None) -> None:
    prices = Prices(prompt=7_000_000, completion=11_000_000, cached=2_000_000, reasoning=13_000_000, request=5_000_001)
    each = [prices.cost((10, 20, 0, 0)), prices.cost((30, 40, cached or 0, reasoning or 0))]
    assert prices.costs((10, 30), (20, 40), (None, cached), (None, reasoning)) == each


@pytest.mark.parametrize(("femto", "nano"), [(499_999, 0), (500_000, 1), (1_499_999, 1), (1_500_000, 2)])
def test_a_cost_is_rounded_once(femto: int, nano: int) -> None:
    assert Prices(request=femto).cost((0, 0, 0, 0)) == nano


@given(st.integers(0, 10**12), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_price_is_exact(nano_a_million: int, prompt: int, completion: int) -> None:
    price = f"{nano_a_million // 10**15}.{nano_a_million % 10**15:015d}"
    prices = Prices.of({"prompt": price})
    assert prices is not None
    assert prices.cost((prompt, completion, 0, 0)) == (prompt * nano_a_million + 500_000) // 1_000_000


def test_the_cheapest_depends_on_what_was_used() -> None:
    reads, writes = Prices(prompt=1_000_000, completion=9_000_000), Prices(prompt=5_000_000, completion=5_000_000)
    assert cheapest((reads, writes), (100, 1, 0, 0)) == 109
    assert cheapest((reads, writes), (1, 100, 0, 0)) == 505
    assert cheapest((reads,), (1, 1, 0, 0)) == 10
    assert cheapest((), (1, 1, 0, 0)) == 0


def test_prices_are_told() -> None:
    assert str(FREE) == "free"
    assert str(Prices.of({"prompt": "6e-7", "request": 2})) == "prompt 6e-07, input_cache_read 6e-07, request 2"


def prices(models: str, routing: str | None) -> dict[str, Prices | None]:
    return {each.name: each.prices for each in snapshot(serve(models, routing)).deployments}


def test_a_local_deployment_is_free_and_the_others_cost_what_the_model_does() -> None:
    model = Prices.of({"prompt": 6e-7, "completion": 1.2e-6})
    assert prices(PRICED, SPLIT) == {"a": FREE, "b": FREE, "cloud": model}
    assert prices(PRICED, None) == {"a": model, "b": model, "cloud": model}
    assert prices(BOXES, SPLIT) == {"a": FREE, "b": FREE, "cloud": None}


def test_the_last_word_on_prices_has_the_entry_of_routing_yaml_then_the_route_then_the_model() -> None:
    route = PRICED.replace("api_key: canary-cloud", "pricing: {prompt: 1}").replace(
        "{name: a,", "{name: a, pricing: {prompt: 2},"
    )
    one, two, three = (Prices.of({"prompt": price}) for price in (1, 2, 3))
    assert prices(route, SPLIT) == {"a": two, "b": FREE, "cloud": one}
    claim = SPLIT.replace('cloud.example", models: [llama]', 'cloud.example", models: [llama], pricing: {prompt: 3}')
    assert prices(route, claim)["cloud"] == three
    unpriced = SPLIT.replace(
        'cloud.example", models: [llama]', 'cloud.example", models: [llama], pricing: {note: free}'
    )
    assert prices(route, unpriced)["cloud"] == one
