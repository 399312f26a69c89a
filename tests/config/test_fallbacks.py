import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.loading import faults, load


def models(*fallbacks: str, **more: str) -> str:
    """Write models a, b, c, ... that fall back to the models named by the letters."""
    lines = ["models:"]
    for place, named in enumerate(fallbacks):
        name = chr(ord("a") + place)
        own = f", {more[name]}" if name in more else ""
        lines.append(f"  - {{id: {name}, base_url: 'http://{name}', fallbacks: [{', '.join(named)}]{own}}}")
    return "\n".join(lines)


def told(*fallbacks: str, **more: str) -> list[str]:
    return [fault.removeprefix("config/models.yaml:") for fault in faults(models(*fallbacks, **more))]


def test_a_model_falls_back_to_ids_and_aliases() -> None:
    loaded = load(models("bC", "c", "", c="aliases: [C]"), environ={})
    assert not [fault for fault in loaded.faults if "each model once" not in fault.message]
    assert told("b", "C", "", c="aliases: [C]") == []
    loaded = load(models("b", "").replace("[b]", "['${B:-b}']"))
    assert not loaded.faults
    assert loaded.models is not None
    assert loaded.models.models[0].fallbacks == ("b",)


def test_a_fallback_is_a_model_of_the_file() -> None:
    text = "models:\n  - {id: llama, base_url: 'http://a', fallbacks: [lama, '${X}']}\n"
    assert faults(text, environ={"X": "canary"}) == [
        (
            "config/models.yaml:2:51: models[0].fallbacks[0]: found 'lama', expected a model of this file, "
            "did you mean 'llama'?"
        ),
        ("config/models.yaml:2:57: models[0].fallbacks[1]: found the value of ${X}, expected a model of this file"),
    ]


def test_a_fallback_is_another_model() -> None:
    assert told("a", "B", b="aliases: [B]") == [
        "2:47: models[0].fallbacks[0]: found 'a', expected another model than this one",
        "3:47: models[1].fallbacks[0]: found 'B', expected another model than this one",
    ]


def test_a_fallback_is_named_once() -> None:
    assert told("bB", "", b="aliases: [B]") == [
        "2:50: models[0].fallbacks[1]: found 'B', expected each model once: see models[0].fallbacks[0]"
    ]


def test_fallbacks_lead_nowhere_back() -> None:
    assert told("b", "a") == ["3:47: models[1].fallbacks[0]: found 'a', which leads back here: 'b' -> 'a' -> 'b'"]
    assert told("cb", "c", "a") == ["4:47: models[2].fallbacks[0]: found 'a', which leads back here: 'c' -> 'a' -> 'c'"]
    assert told("b", "a", "d", "c") == [
        "3:47: models[1].fallbacks[0]: found 'a', which leads back here: 'b' -> 'a' -> 'b'",
        "5:47: models[3].fallbacks[0]: found 'c', which leads back here: 'd' -> 'c' -> 'd'",
    ]


def test_the_name_of_a_model_that_came_out_of_a_variable_is_not_told() -> None:
    text = models("b", "a").replace("id: a", "id: '${A}'").replace("[a]", "['${A}']")
    assert faults(text, environ={"A": "canary"}) == [
        (
            "config/models.yaml:3:47: models[1].fallbacks[0]: found the value of ${A}, which leads back here: "
            "'b' -> the value of ${A} -> 'b'"
        )
    ]


def test_a_chain_has_three_fallbacks_at_most() -> None:
    assert told("b", "c", "d", "") == []
    assert told("b", "c", "d", "e", "") == [
        ("2:47: models[0].fallbacks[0]: found 'b', expected a chain of at most 3 fallbacks: 'b' -> 'c' -> 'd' -> 'e'")
    ]


def test_a_longer_chain_is_told_of_once() -> None:
    (fault,) = told("b", "c", "d", "e", "f", "g", "")
    assert fault.startswith("4:47: models[2].fallbacks[0]: found 'd', expected a chain of at most 3 fallbacks: 'd' -> ")


@pytest.mark.exhaustive
def test_thousands_of_models_in_a_chain_are_no_trouble() -> None:
    count = 3_000
    lines = [f"  - {{id: m{n}, base_url: 'http://m', fallbacks: [m{n + 1}]}}" for n in range(count)]
    found = faults("models:\n" + "\n".join(lines) + f"\n  - {{id: m{count}, base_url: 'http://m'}}\n")
    assert len(found) == 1


def test_a_thicket_of_rings_is_no_trouble() -> None:
    names = [f"m{n}" for n in range(60)]
    lines = [
        f"  - {{id: {name}, base_url: 'http://m', fallbacks: [{', '.join(other for other in names if other != name)}]}}"
        for name in names
    ]
    assert 1 <= len(faults("models:\n" + "\n".join(lines))) <= len(names)


@pytest.mark.parametrize(
    "text",
    [
        "models: [{id: a, base_url: 'http://a', fallbacks: [~]}]",
        "models: [{id: a, base_url: 'http://a', fallbacks: ['']}]",
        "models: [{id: a, base_url: 'http://a', fallbacks: 3}]",
        "models: [3]",
        "models: 3",
        "3",
    ],
)
def test_what_has_a_fault_of_its_own_is_passed_over(text: str) -> None:
    assert len(faults(text)) == 1


@pytest.mark.exhaustive
@given(st.lists(st.lists(st.integers(0, 6), max_size=4, unique=True), min_size=7, max_size=7))
def test_what_is_accepted_ends_within_three_steps(targets: list[list[int]]) -> None:
    letters = ["".join(chr(ord("a") + target) for target in each) for each in targets]
    edges = {place: set(each) for place, each in enumerate(targets)}
    reached = [set(edges)]
    for _ in range(4):
        reached.append({target for model in reached[-1] for target in edges[model]})
    assert bool(told(*letters)) is bool(reached[4])
