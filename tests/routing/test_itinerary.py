from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.failures import TABLE, Cause, Failure, Verdict
from gateway.routing.itinerary import BACKOFF, RetryBudget, Step, Tier, tiers_of, walk
from gateway.routing.manager import RoutingManager
from gateway.routing.selector import Selector
from gateway.routing.snapshot import Bounds, Deployment
from tests.routing.planning import DEAD, deployments, make, serve, snapshot

MODELS = """\
models:
  - id: llama
    route:
      - {name: a, base_url: "http://a"}
      - {name: b, base_url: "http://b"}
      - {name: spare, base_url: "http://spare", weight: 0}
    context_length: 8192
    fallbacks: [big, open]
  - id: big
    route:
      - {name: large, base_url: "http://large"}
      - {name: large-spare, base_url: "http://large-spare", weight: 0}
    context_length: 131072
    fallbacks: [last]
  - {id: open, route: [{name: unknown, base_url: "http://unknown"}]}
  - {id: last, route: [{name: small, base_url: "http://small"}], context_length: 8192}
  - {id: waits, base_url: "${NOWHERE}", fallbacks: [llama]}
"""
ALL = ["a", "b", "spare", "large", "large-spare", "unknown", "small"]
ERROR, REFUSED = Failure(Cause.SERVER_ERROR, status=500), Failure(Cause.CONNECT_REFUSED)
TOO_LONG = Failure(Cause.CONTEXT_LENGTH, status=400)


DEFAULT = Bounds()


def always(_: Deployment) -> bool:
    return True


def tiers(manager: RoutingManager, model: str = "llama", first: Deployment | None = None) -> Iterator[Tier]:
    current = snapshot(manager)
    return tiers_of(current, current.routes[model], Selector(lambda: 0.0).order, first)


class Journey:
    """Walks with what each deployment answers; what it does not name succeeds, which ends the walk."""

    def __init__(
        self,
        answers: dict[str, Failure],
        *,
        manager: RoutingManager | None = None,
        bounds: Bounds = DEFAULT,
        admits: Callable[[Deployment], bool] = always,
        may_retry: bool = True,
        model: str = "llama",
    ) -> None:
        walked = walk(tiers(manager or serve(MODELS), model), bounds, lambda: may_retry, lambda: 0.5, admits)
        self.steps: list[Step] = []
        self.ended = False
        step = next(walked, None)
        while step is not None:
            self.steps.append(step)
            failure = answers.get(step.deployment.name, answers.get("*"))
            if failure is None:
                return
            try:
                step = walked.send(failure)
            except StopIteration:
                step = None
        self.ended = True

    @property
    def names(self) -> str:
        return " ".join(step.deployment.name for step in self.steps)


def test_tiers_are_the_weighted_the_spare_the_fallbacks_and_all_of_them_anyway() -> None:
    found = [([each.name for each in tier.deployments], tier.anyway) for tier in tiers(serve(MODELS))]
    assert found == [
        (["a", "b"], False),
        (["spare"], False),
        (["large"], False),
        (["large-spare"], False),
        (["unknown"], False),
        ([], False),
        (["small"], False),
        ([], False),
        (ALL, True),
    ]


def test_the_weighted_come_in_the_order_drawn() -> None:
    manager = serve(MODELS)
    current = snapshot(manager)
    drawn = tiers_of(current, current.routes["llama"], Selector(lambda: 0.9).order)
    assert [each.name for each in next(drawn).deployments] == ["b", "a"]


def test_what_is_not_asked_for_is_not_drawn() -> None:
    rolled = []

    def dice() -> float:
        rolled.append(0)
        return 0.0

    current = snapshot(serve(MODELS))
    made = tiers_of(current, current.routes["llama"], Selector(dice).order)
    assert rolled == []
    first = next(made)
    assert [each.name for each in islice(first.deployments, 1)] == ["a"]
    assert len(rolled) == 1


def test_whose_turn_it_is_to_show_that_it_is_back_comes_first() -> None:
    manager = serve(MODELS)
    spare = deployments(make(MODELS))["spare"]
    assert [each.name for each in next(tiers(manager, first=spare)).deployments] == ["spare", "a", "b"]
    steps = walk(tiers(manager, first=spare), Bounds(), lambda: False, lambda: 0.5, always)
    assert next(steps).deployment.name == "spare"
    tried = [steps.send(REFUSED).deployment.name for _ in range(4)]
    assert tried == ["a", "b", "large", "large-spare"]


def test_a_model_without_deployments_goes_to_its_fallbacks() -> None:
    assert Journey({}, model="waits").names == "a"


def test_everything_is_tried_once_within_the_bounds() -> None:
    journey = Journey({"*": REFUSED}, bounds=Bounds(attempts=100))
    assert journey.names == " ".join(ALL)
    assert journey.ended
    assert not any(step.again or step.anyway or step.delay for step in journey.steps)


def test_attempts_are_counted() -> None:
    journey = Journey({"*": REFUSED}, bounds=Bounds(attempts=3))
    assert (journey.names, journey.ended) == ("a b spare", True)
    assert Journey({"*": ERROR}, bounds=Bounds(attempts=3)).names == "a b a"
    assert Journey({"*": ERROR}, bounds=Bounds(attempts=2)).names == "a b"
    assert Journey({"*": ERROR}).names == "a b a spare spare large"


def test_before_a_tier_is_left_the_first_that_may_have_passed_is_tried_again() -> None:
    journey = Journey({"a": REFUSED, "b": ERROR})
    assert journey.names == "a b b spare"
    assert journey.steps[2] == Step(journey.steps[1].deployment, delay=0.25, again=True)


def test_it_is_not_where_the_budget_is_spent() -> None:
    assert Journey({"a": ERROR, "b": ERROR}, may_retry=False).names == "a b spare"


def test_it_is_not_where_the_deployment_went_out_by_that_failure() -> None:
    asked: list[str] = []

    def admits(deployment: Deployment) -> bool:
        asked.append(deployment.name)
        return asked.count(deployment.name) < 2

    assert Journey({"a": ERROR, "b": ERROR}, admits=admits).names == "a b spare"


def test_a_second_try_that_fails_is_followed_by_the_next_tier() -> None:
    assert Journey({"a": ERROR, "b": REFUSED, "spare": ERROR}).names == "a b a spare spare large"


@pytest.mark.parametrize("cause", [Cause.LOCAL_FAULT, Cause.TOTAL_TIMEOUT])
def test_what_is_not_to_be_tried_elsewhere_ends_the_walk(cause: Cause) -> None:
    first = Journey({"*": Failure(cause)})
    assert (first.names, first.ended) == ("a", True)
    walked = walk(tiers(serve(MODELS)), Bounds(), lambda: True, lambda: 0.5, always)
    next(walked)
    assert walked.send(ERROR).deployment.name == "b"
    assert walked.send(REFUSED).again
    with pytest.raises(StopIteration):
        walked.send(Failure(cause))


@pytest.mark.parametrize("cause", [Cause.FIRST_TOKEN_TIMEOUT, Cause.CONNECT_TIMEOUT, Cause.STALLED])
def test_silence_is_never_tried_again(cause: Cause) -> None:
    assert Journey({"*": Failure(cause)}, bounds=Bounds(attempts=100)).names == " ".join(ALL)


@pytest.mark.parametrize(
    ("asked", "dice", "delay"),
    [
        (0.0, 0.5, 0.0),
        (2.0, 0.5, 2.0),
        (3.0, 0.5, 3.0),
        (3.1, 0.5, BACKOFF),
        (60.0, 0.0, BACKOFF / 2),
        (None, 0.0, BACKOFF / 2),
        (None, 1.0, BACKOFF * 1.5),
    ],
)
def test_how_long_a_second_try_waits(asked: float | None, dice: float, delay: float) -> None:
    walked = walk(tiers(serve(MODELS, None), "open"), Bounds(), lambda: True, lambda: dice, always)
    next(walked)
    step = walked.send(Failure(Cause.RATE_LIMITED, status=429, retry_after=asked))
    assert (step.deployment.name, step.delay, step.again) == ("unknown", delay, True)


def test_what_is_out_is_passed_over_and_tried_at_the_end() -> None:
    def admits(deployment: Deployment) -> bool:
        return deployment.name not in {"a", "large"}

    journey = Journey({"*": REFUSED}, admits=admits, bounds=Bounds(attempts=100))
    assert journey.names == "b spare large-spare unknown small a large"
    assert [step.deployment.name for step in journey.steps if step.anyway] == ["a", "large"]


def test_when_all_are_out_each_is_tried_once() -> None:
    journey = Journey({"*": ERROR}, admits=lambda _: False, bounds=Bounds(attempts=100))
    assert journey.names == " ".join(ALL)
    assert all(step.anyway for step in journey.steps)


def test_a_box_that_is_down_is_tried_when_the_others_have_failed() -> None:
    manager = serve(MODELS, "health_check: 5")
    manager.probed("http://a", DEAD, 1.0)
    journey = Journey({"*": REFUSED}, manager=manager, admits=lambda each: manager.admits(each, 1.0))
    assert journey.names == "b spare large large-spare unknown small"
    assert Journey(
        {"*": REFUSED}, manager=manager, admits=lambda each: manager.admits(each, 1.0), bounds=Bounds(attempts=7)
    ).names.endswith("small a")


def test_a_prompt_that_is_too_long_goes_only_where_more_is_known_to_fit() -> None:
    assert Journey({"a": TOO_LONG}).names == "a large"
    assert Journey({"*": TOO_LONG}).names == "a large"
    assert Journey({"a": TOO_LONG, "large": REFUSED}).names == "a large large-spare"
    assert Journey({"*": TOO_LONG}).ended


def test_a_prompt_that_is_too_long_for_an_unknown_context_goes_nowhere() -> None:
    journey = Journey({"*": TOO_LONG}, model="open")
    assert (journey.names, journey.ended) == ("unknown", True)


def test_who_was_busy_before_the_prompt_was_too_long_is_not_tried_again() -> None:
    assert Journey({"a": ERROR, "b": TOO_LONG}).names == "a b large"


def test_a_deployment_stands_in_a_tier_for_one_try() -> None:
    [only] = deployments(make("models: [{id: llama, base_url: 'http://a'}]")).values()
    walked = walk([Tier([only, only]), Tier([only], anyway=True)], Bounds(), lambda: True, lambda: 0.5, always)
    next(walked)
    with pytest.raises(StopIteration):
        walked.send(REFUSED)


OUTCOMES = st.lists(st.sampled_from(Cause), min_size=30, max_size=30)


@pytest.mark.exhaustive
@given(OUTCOMES, st.integers(1, 20), st.sets(st.sampled_from(ALL)), st.lists(st.booleans(), min_size=20, max_size=20))
def test_whatever_fails_the_walk_keeps_its_rules(
    causes: list[Cause], attempts: int, out: set[str], budget: list[bool]
) -> None:
    allowed = chain(budget, repeat(object=False))
    made = tiers(serve(MODELS))
    walked = walk(made, Bounds(attempts), lambda: next(allowed), lambda: 0.5, lambda each: each.name not in out)
    steps: list[Step] = []
    failed: list[Failure] = []
    step = next(walked, None)
    while step is not None:
        steps.append(step)
        failed.append(Failure(causes[len(failed)]))
        try:
            step = walked.send(failed[-1])
        except StopIteration:
            step = None
    assert 1 <= len(steps) <= attempts
    rules = [TABLE[failure.cause] for failure in failed]
    assert not any(rule.verdict is Verdict.CLIENT for rule in rules[:-1])
    firsts = [each.deployment.name for each in steps if not each.again]
    assert len(set(firsts)) == len(firsts)
    tier_of = {"a": 0, "b": 0, "spare": 1, "large": 2, "large-spare": 3, "unknown": 4, "small": 5}
    order = [6 if each.anyway else tier_of[each.deployment.name] for each in steps]
    assert order == sorted(order)
    for place, each in enumerate(steps):
        assert each.anyway is (each.deployment.name in out)
        if each.again:
            before = [at for at in range(place) if steps[at].deployment == each.deployment]
            assert len(before) == 1
            assert rules[before[0]].passes
        assert (each.delay == 0.25) is each.again
    if any(rule.verdict is Verdict.LARGER for rule in rules[:-1]):
        later = steps[next(at for at, rule in enumerate(rules) if rule.verdict is Verdict.LARGER) + 1 :]
        assert all((each.deployment.context_length or 0) > 8192 for each in later)


def test_a_few_second_tries_are_allowed_whatever_the_share() -> None:
    budget = RetryBudget()
    assert [budget.allows(0.2, 5.0) for _ in range(12)] == [True] * 10 + [False] * 2


def test_a_share_of_the_requests_may_be_tried_again() -> None:
    budget = RetryBudget()
    for number in range(1_000):
        budget.requested(number / 100)
    assert sum(budget.allows(0.2, 9.99) for _ in range(1_000)) == 200


def test_requests_and_tries_are_forgotten_after_ten_seconds() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.requested(0.5)
    assert sum(budget.allows(0.2, 9.0) for _ in range(100)) == 20
    assert sum(budget.allows(0.2, 10.0) for _ in range(100)) == 0
    assert sum(budget.allows(0.2, 19.0) for _ in range(100)) == 10
    assert sum(budget.allows(0.2, 1e6) for _ in range(100)) == 10


def test_a_ratio_of_nothing_allows_nothing() -> None:
    assert not RetryBudget().allows(0, 1.0)


@given(
    st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200),
    st.sampled_from([0.1, 0.2, 1.0]),
)
def test_an_outage_is_never_multiplied(events: list[tuple[float, bool]], ratio: float) -> None:
    """In any ten whole seconds the tries stay within the share of the requests seen, or the floor."""
    budget, now = RetryBudget(), 0.0
    requests: list[int] = []
    tries: list[int] = []
    for elapsed, is_request in events:
        now += elapsed
        if is_request:
            budget.requested(now)
            requests.append(int(now))
        elif budget.allows(ratio, now):
            tries.append(int(now))
        recent = [sum(at > int(now) - RetryBudget.WINDOW for at in times) for times in (requests, tries)]
        before = sum(at > int(now) - 2 * RetryBudget.WINDOW for at in requests)
        assert recent[1] <= max(RetryBudget.FLOOR, ratio * before + 1)
