from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.strategies import exact
from tests.routing.planning import BOXES, SPLIT, chain, faults, make, shares

BOX = "{{endpoint: 'http://{0}', models: [m], name: {0}, weight: {1}}}"


def split(local: Mapping[str, float], remote: Mapping[str, float], parameters: str, strategy: str = "fixed") -> str:
    groups = {"local": local, "remote": remote}
    entries = [
        f"{group}_deployment: [{', '.join(BOX.format(name, weight) for name, weight in members.items())}]\n"
        for group, members in groups.items()
    ]
    return f"routing_strategy: {strategy}\nrouting_parameter: {{{parameters}}}\n{''.join(entries)}"


def found(routing: str) -> dict[str, str]:
    route = make("models: [{id: m}]", routing).routes["m"]
    return {deployment.name: str(weight) for deployment, weight in zip(route.chain, route.weights, strict=True)}


def test_the_sixty_forty_example() -> None:
    assert shares(BOXES, SPLIT) == {"cloud": Fraction(2, 5), "a": Fraction(3, 10), "b": Fraction(3, 10)}


@pytest.mark.parametrize(
    ("local", "remote", "fraction", "expected"),
    [
        ({"a": 1, "b": 1, "c": 1}, {"r": 1}, 0.6, {"r": "2/5", "a": "1/5", "b": "1/5", "c": "1/5"}),
        ({"a": 2, "b": 1}, {"r": 1, "s": 3}, 0.6, {"a": "2/5", "s": "3/10", "b": "1/5", "r": "1/10"}),
        ({"a": 1}, {}, 0.6, {"a": "1"}),
        ({}, {"r": 1}, 0.6, {"r": "1"}),
        ({"a": 1}, {"r": 1}, 1.0, {"a": "1", "r": "0"}),
        ({"a": 1}, {"r": 1}, 0.0, {"r": "1", "a": "0"}),
        ({"a": 1}, {"r": 1}, 0, {"r": "1", "a": "0"}),
        ({"a": 0, "b": 1}, {"r": 1}, 0.6, {"b": "3/5", "r": "2/5", "a": "0"}),
        ({"a": 0}, {"r": 1}, 0.6, {"r": "1", "a": "0"}),
        ({"a": 1}, {"r": 0}, 0.0, {"a": "1", "r": "0"}),
        ({"a": 1}, {"r": 1}, 1 / 3, {"r": "2/3", "a": "1/3"}),
        ({"a": 1}, {"r": 1}, 0.9999999, {"a": "9999999/10000000", "r": "1/10000000"}),
    ],
)
def test_fixed_splits_exactly(
    local: dict[str, float], remote: dict[str, float], fraction: float, expected: dict[str, str]
) -> None:
    assert found(split(local, remote, f"local_fraction: {fraction}")) == expected


def test_fixed_halves_by_default() -> None:
    assert found(split({"a": 1}, {"r": 1}, "")) == {"a": "1/2", "r": "1/2"}


def test_fixed_draws_as_it_is_told() -> None:
    assert make(BOXES, SPLIT).routes["llama"].selection == "random"
    smooth = SPLIT.replace("0.6", "0.6, selection: smooth")
    assert make(BOXES, smooth).routes["llama"].selection == "smooth"
    assert make(BOXES).routes["llama"].selection == "random"


def test_round_robin_gives_everyone_the_same_in_turn() -> None:
    routing = split({"a": 1, "b": 5}, {"r": 2, "z": 0}, "", "round_robin")
    assert found(routing) == {"a": "1/3", "b": "1/3", "r": "1/3", "z": "0"}
    assert make("models: [{id: m}]", routing).routes["m"].selection == "smooth"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("local_fraction: 60", "local_fraction: found 60, expected a number of at most 1"),
        ("local_fraction: -0.1", "local_fraction: found -0.1, expected a number of at least 0"),
        ('local_fraction: "0.6"', "local_fraction: found '0.6', expected a number"),
        ("local_fraction: true", "local_fraction: found true, expected a number"),
        ("local_fraction: [1]", "local_fraction: found a list, expected a number"),
        ("local_fracton: 0.6", "local_fracton: unknown key 'local_fracton' for fixed, did you mean 'local_fraction'?"),
        ("selection: smoth", "selection: found 'smoth', expected 'random' or 'smooth'"),
        ("local_fraction: '${SECRET}'", "local_fraction: found the value of ${SECRET}, expected a number"),
        (
            "local_fraction: '${NUMBER}'",
            "local_fraction: found the value of ${NUMBER}, expected a number of at most 1",
        ),
    ],
)
def test_fixed_refuses_parameters_by_their_place(parameters: str, expected: str) -> None:
    [fault] = faults(BOXES, f"routing_parameter:\n  {parameters}\n", SECRET="canary", NUMBER="31337")
    column = 3 + parameters.index(": ") + 2
    assert fault == f"routing.yaml:2:{column}: routing_parameter.{expected}"


def test_all_bad_parameters_are_told_at_once() -> None:
    assert len(faults(BOXES, "routing_parameter: {local_fraction: 2, selection: x, more: 1}")) == 3


def test_round_robin_takes_no_parameters() -> None:
    assert faults(BOXES, "routing_strategy: round_robin\nrouting_parameter: {local_fraction: 0.6, x: 1}") == [
        "routing.yaml:2:37: routing_parameter.local_fraction: unknown key 'local_fraction', round_robin takes none",
        "routing.yaml:2:45: routing_parameter.x: unknown key 'x', round_robin takes none",
    ]


def test_a_parameter_may_come_from_a_variable() -> None:
    routing = SPLIT.replace("0.6", '"${FRACTION:-0.9}"')
    assert shares(BOXES, routing, FRACTION="0.6") == shares(BOXES, SPLIT)
    assert shares(BOXES, routing)["cloud"] == Fraction(1, 10)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (1, "1"),
        (0.6, "3/5"),
        (1 / 3, "1/3"),
        (2 / 7, "2/7"),
        (1e-9, "1/1000000000"),
        (0.1234567, "1234567/10000000"),
        (1e9, "1000000000"),
        (Fraction(1, 3_000_001), "1/3000001"),
        (True, "1"),
    ],
)
def test_a_weight_is_the_fraction_that_was_meant(weight: float, expected: str) -> None:
    assert str(exact(weight)) == expected


@given(st.floats(min_value=0, max_value=1e9))
def test_a_weight_is_the_very_number_that_was_written(weight: float) -> None:
    assert float(exact(weight)) == weight


@pytest.mark.exhaustive
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.lists(st.integers(0, 10**6), max_size=5))
def test_the_chain_is_by_falling_weight_then_as_written(local: list[int], remote: list[int]) -> None:
    if not any((*local, *remote)):
        return
    groups = [
        {f"{group}{n}": weight for n, weight in enumerate(weights)} for group, weights in (("l", local), ("r", remote))
    ]
    route = make("models: [{id: m}]", split(groups[0], groups[1], "local_fraction: 0.6")).routes["m"]
    written = [*groups[0], *groups[1]]
    for (earlier, weight), (later, next_weight) in pairwise(zip(chain(route), route.weights, strict=True)):
        assert weight > next_weight or (weight == next_weight and written.index(earlier) < written.index(later))
