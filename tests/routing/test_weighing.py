"""Models that are alike are weighed once, and come out as they would by themselves."""

from fractions import Fraction

import pytest

from gateway.routing.plan import Plan
from gateway.routing.snapshot import Route
from gateway.routing.weighing import Standing
from tests.routing.planning import SPLIT, make

ALIKE = "{name: a, base_url: 'http://a:8000'}, {name: b, base_url: 'http://b:8000'}, {name: c, base_url: 'http://c'}"
MODELS = f"""\
models:
  - {{id: one, route: [{ALIKE}], timeouts: {{idle: 7}}, fallbacks: [two], rescue: "off"}}
  - {{id: two, route: [{ALIKE}]}}
  - {{id: heavy, route: [{ALIKE.replace("name: c", "weight: 2, name: c")}]}}
  - {{id: less, route: [{ALIKE.replace("name: c", "weight: 0, name: c")}]}}
"""
LISTED = SPLIT.replace("[llama]", "[one, two, heavy]").replace("cloud.example", "c").replace("https", "http")
OWN = LISTED.replace("routing_parameter: {local_fraction: 0.6}", "routing_strategy: tests.routing.guests:FirstLocal")
DOWN = Standing(frozenset({"http://a:8000"}))
STANDINGS = [
    DOWN,
    Standing(frozenset({"http://a:8000", "http://b:8000"})),
    Standing(out=frozenset({("one", "b"), ("two", "b"), ("heavy", "b")})),
    Standing(out=frozenset({("two", "c"), ("gone", "c")})),
    Standing(returning={("one", "a"): Fraction(1, 10), ("two", "a"): Fraction(1, 5), ("less", "c"): Fraction(1, 10)}),
    Standing(frozenset({"http://b:8000"}), returning={("one", "a"): Fraction(1, 10)}),
]


def alone(made: Plan, standing: Standing, model: str) -> Route:
    return made.weighing(standing).route(model)


@pytest.mark.exhaustive
@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("routing", [None, LISTED, OWN])
def test_a_model_weighs_as_much_in_company_as_alone(routing: str | None, standing: Standing) -> None:
    made = make(MODELS, routing)
    weighing = made.weighing(standing)
    for model in made.models:
        assert weighing.route(model.id) == alone(made, standing, model.id)


def test_models_that_are_alike_keep_what_is_their_own() -> None:
    weighing = make(MODELS).weighing(DOWN)
    one, two = weighing.route("one"), weighing.route("two")
    assert two.weights is one.weights
    assert [deployment.identity for deployment in two.chain] == [("two", "b"), ("two", "c"), ("two", "a")]
    assert (one.clocks.idle, two.clocks.idle) == (7, 120)
    assert (one.fallbacks, two.fallbacks) == (("two",), ())
    assert (one.rescue, two.rescue) == ("off", "on")


def test_other_weights_and_groups_are_not_alike() -> None:
    made = make(MODELS, LISTED)
    assert made.shapes["one"] == made.shapes["two"]
    assert len({made.shapes[model] for model in ("one", "heavy", "less")}) == 3


def test_a_strategy_of_the_users_own_is_asked_for_each_model() -> None:
    assert set(make(MODELS, OWN).shapes) == {"less"}


def test_who_is_touched_is_told_by_box_and_by_deployment() -> None:
    catalogue = make(MODELS).catalogue
    assert DOWN.touched(catalogue) == ("one", "two", "heavy", "less")
    assert STANDINGS[3].touched(catalogue) == ("two",)
    assert STANDINGS[5].touched(catalogue) == ("one", "two", "heavy", "less")
    assert Standing(frozenset({"http://elsewhere"})).touched(catalogue) == ()
