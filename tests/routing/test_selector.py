from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from math import ceil, floor, lcm, sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.selector import Selector
from gateway.routing.snapshot import Route, Snapshot
from tests.routing.planning import ALIVE, BOXES, DEAD, SPLIT, chain, make, probe, serve, snapshot

SMOOTH = SPLIT.replace("0.6", "0.6, selection: smooth")
ROUND = "routing_strategy: round_robin\n"


def weighted(shares: Sequence[float], routing: str = ROUND) -> Route:
    route = ", ".join(f"{{name: '{n}', base_url: 'http://{n}', weight: {share}}}" for n, share in enumerate(shares))
    return make(f"models: [{{id: llama, route: [{route}]}}]", routing).routes["llama"]


def dice(seed: int = 1) -> Callable[[], float]:
    return Random(seed).random  # noqa: S311 - draws are to be repeatable, not secret


def draws(route: Route, selector: Selector | None = None) -> Iterator[str]:
    selector = selector or Selector(dice())
    while True:
        yield next(selector.order(route)).name


def take(count: int, selector: Selector, current: Snapshot) -> list[str]:
    return list(islice(draws(current.routes["llama"], selector), count))


def test_twenty_thousand_draws_land_within_three_sigma() -> None:
    count = 20_000
    found = Counter(islice(draws(make(BOXES, SPLIT).routes["llama"], Selector(dice(60_40))), count))
    for name, share in (("a", 0.3), ("b", 0.3), ("cloud", 0.4)):
        assert abs(found[name] - count * share) < 3 * sqrt(count * share * (1 - share))
    assert abs(found["a"] + found["b"] - count * 0.6) < 3 * sqrt(count * 0.6 * 0.4)


@pytest.mark.parametrize(
    ("rolled", "expected"),
    [(0.0, "cloud"), (0.3999, "cloud"), (0.4, "a"), (0.6999, "a"), (0.7, "b"), (1 - 2**-53, "b")],
)
def test_a_draw_is_the_place_of_the_dice_among_the_weights(rolled: float, expected: str) -> None:
    assert next(Selector(lambda: rolled).order(make(BOXES, SPLIT).routes["llama"])).name == expected


def test_the_one_drawn_is_followed_by_the_rest_of_the_chain() -> None:
    route = weighted([1, 0, 3, 0, 2], "timeout: 1")
    assert chain(route) == ["2", "4", "0", "1", "3"]
    order = [deployment.name for deployment in Selector(lambda: 0.99).order(route)]
    assert order == ["0", "2", "4", "1", "3"]


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["timeout: 1", ROUND]),
)
def test_an_order_holds_each_deployment_once(shares: list[int], rolled: float, routing: str) -> None:
    route = weighted(shares, routing)
    first, *others = (deployment.name for deployment in Selector(lambda: rolled).order(route))
    assert others == [name for name in chain(route) if name != first]
    assert shares[int(first)] > 0


def test_an_order_is_empty_when_nobody_is_there() -> None:
    route = make("models: [{id: llama, base_url: '${URL}'}]").routes["llama"]
    assert list(Selector(lambda: 0.5).order(route)) == []


def test_the_only_weighted_one_needs_no_dice() -> None:
    def none() -> float:
        raise AssertionError("rolled")

    assert next(Selector(none).order(weighted([0, 1], "timeout: 1"))).name == "1"


def check_smooth(route: Route) -> None:
    """Hold two cycles of a smooth route against what `selector.py` says of them."""
    shares = {name: weight for name, weight in zip(chain(route), route.weights, strict=True) if weight}
    length = lcm(*(share.denominator for share in shares.values()))
    drawn = list(islice(draws(route), 2 * length))
    found: Counter[str] = Counter()
    for number, name in enumerate(drawn, start=1):
        found[name] += 1
        for each, share in shares.items():
            assert floor(number * share) <= found[each] <= ceil(number * share)
    window = Counter(drawn[:length])
    for start in range(length + 1):
        assert all(window[name] == share * length for name, share in shares.items())
        if start < length:
            window[drawn[start]] -= 1
            window[drawn[start + length]] += 1


@pytest.mark.exhaustive
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_smooth_is_exact_over_any_full_cycle_and_even_inside_it(shares: list[int]) -> None:
    check_smooth(weighted(shares))


@pytest.mark.exhaustive
@given(st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.6, 1, 1.5, 2.4]), min_size=1, max_size=5))
def test_smooth_is_exact_for_fractions(shares: list[float]) -> None:
    check_smooth(weighted(shares))


@pytest.mark.exhaustive
def test_smooth_lets_one_big_share_wait_for_none_of_many_small_ones() -> None:
    route = weighted([99, *[1] * 99])
    check_smooth(route)
    assert "".join(sorted(islice(draws(route), 6))).count("0") == 3


def test_smooth_takes_weights_that_have_no_short_cycle() -> None:
    shares = [0.123457, 0.345679, 0.777777, 0.999983, 0.000001]
    route = weighted(shares)
    found: Counter[str] = Counter()
    for number, name in enumerate(islice(draws(route), 1_000), start=1):
        found[name] += 1
        for each, share in zip(chain(route), route.weights, strict=True):
            assert floor(number * share) <= found[each] <= ceil(number * share)


def test_round_robin_takes_turns() -> None:
    route = make(BOXES, SPLIT.replace("routing_parameter: {local_fraction: 0.6}", ROUND)).routes["llama"]
    assert "".join(name[0] for name in islice(draws(route), 7)) == "abcabca"


@pytest.mark.parametrize("fraction", ["0.6", "1.0"])
def test_a_cycle_goes_on_over_snapshots_that_share_alike(fraction: str) -> None:
    smooth = SMOOTH.replace("0.6", fraction)
    selector = Selector(dice())
    manager = serve(BOXES, smooth)
    selector.adopt(snapshot(manager))
    whole = take(20, Selector(dice()), snapshot(manager))
    drawn = take(3, selector, snapshot(manager))
    manager.adopt(make(BOXES, smooth.replace("health_check: 5", "health_check: 6")))
    selector.adopt(snapshot(manager))
    drawn += take(4, selector, snapshot(manager))
    manager.adopt(make(BOXES + "      - {name: spare, base_url: 'http://spare', weight: 0}\n", smooth))
    selector.adopt(snapshot(manager))
    assert chain(snapshot(manager).routes["llama"])[-1] == "spare"
    assert drawn + take(13, selector, snapshot(manager)) == whole


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("local_fraction: 0.6", "local_fraction: 0.5"),
        ('endpoint: "http://b:8000"', "name: other, endpoint: 'http://b:8000'"),
    ],
)
def test_a_cycle_begins_anew_when_others_share_or_share_otherwise(old: str, new: str) -> None:
    selector = Selector(dice())
    manager = serve(BOXES, SMOOTH)
    selector.adopt(snapshot(manager))
    take(1, selector, snapshot(manager))
    manager.adopt(make(BOXES, SMOOTH.replace(old, new)))
    selector.adopt(snapshot(manager))
    assert take(10, selector, snapshot(manager)) == take(10, Selector(dice()), snapshot(manager))


def test_a_cycle_begins_anew_when_a_box_dies_and_when_it_is_back() -> None:
    selector = Selector(dice())
    manager = serve(BOXES, SMOOTH)
    selector.adopt(snapshot(manager))
    whole = take(10, selector, snapshot(manager))
    take(1, selector, snapshot(manager))
    probe(manager, a=DEAD)
    selector.adopt(snapshot(manager))
    assert Counter(take(5, selector, snapshot(manager))) == {"b": 3, "cloud": 2}
    probe(manager, a=ALIVE)
    selector.adopt(snapshot(manager))
    assert take(10, selector, snapshot(manager)) == whole


def test_a_request_on_the_snapshot_before_is_drawn_by_its_weights() -> None:
    selector = Selector(dice())
    manager = serve(BOXES, SMOOTH)
    old = snapshot(manager)
    manager.adopt(make(BOXES, SMOOTH.replace("0.6", "1.0")))
    selector.adopt(snapshot(manager))
    assert Counter(take(10, selector, old)) == {"a": 3, "b": 3, "cloud": 4}
    assert Counter(take(10, selector, snapshot(manager))) == {"a": 5, "b": 5}


@pytest.mark.parametrize("still_there", [True, False])
def test_models_that_are_gone_or_drawn_otherwise_are_forgotten(*, still_there: bool) -> None:
    selector = Selector(dice())
    manager = serve(BOXES, SMOOTH)
    take(1, selector, snapshot(manager))
    assert set(selector._cycles) == {"llama"}
    manager.adopt(make(BOXES, SPLIT) if still_there else make("models: [{id: other, base_url: 'http://a'}]"))
    selector.adopt(snapshot(manager))
    assert selector._cycles == {}


def test_a_model_has_one_cycle_under_all_its_names() -> None:
    selector = Selector(dice())
    current = snapshot(serve(BOXES, SMOOTH))
    selector.adopt(current)
    names = [name for _ in range(5) for name in ("llama", "l3")]
    found = Counter(next(selector.order(current.routes[name])).name for name in names)
    assert found == {"a": 3, "b": 3, "cloud": 4}


def test_shares_are_fractions_of_one() -> None:
    assert weighted([0.1, 0.2]).weights == (Fraction(2, 3), Fraction(1, 3))
