"""Prices: what a cost can be worked out from is a number, and what cannot be is told with its place."""

import pytest

from tests.config.loading import faults, load, models, split

READS = "expected a price: a number of at least 0, or text that reads as one"


@pytest.mark.parametrize(
    ("price", "told"),
    [
        ("free", f"found 'free', {READS}"),
        ("'-1'", f"found '-1', {READS}"),
        ("'nan'", f"found 'nan', {READS}"),
        ("inf", f"found 'inf', {READS}"),
        ("'1_000'", f"found '1_000', {READS}"),
        ("' 1'", f"found ' 1', {READS}"),
        ("'1e999'", f"found '1e999', {READS}"),
        ("${P}", f"found the value of ${{P}}, {READS}"),
        ("${H}", f"found the value of ${{H}}, {READS}"),
        ("-1", "found -1, expected a price: a number of at least 0, or text"),
        (".nan", "found .nan, expected a finite number"),
        ("[1]", "found a list, expected a price"),
        ("true", "found true, expected a price"),
        ("", "found nothing, expected a price"),
        ("1001", "found 1001, expected at most 1000 US dollars"),
        ("'1e9'", "found '1e9', expected at most 1000 US dollars"),
        ("${Q}", "found the value of ${Q}, expected at most 1000 US dollars"),
    ],
)
def test_a_counted_price_refuses(price: str, told: str) -> None:
    environ = {"P": "canary", "Q": "2000", "H": "0x" + "f" * 400}
    (fault,) = faults(models(f"pricing:\n  prompt: {price}"), environ=environ)
    assert fault.startswith(f"config/models.yaml:5:{15 if price else 14}: models[0].pricing.prompt: {told}")


@pytest.mark.parametrize("name", ["prompt", "completion", "input_cache_read", "internal_reasoning", "request"])
def test_each_price_that_is_counted_is_looked_at(name: str) -> None:
    (fault,) = faults(models(f"pricing: {{{name}: free}}"))
    assert f": models[0].pricing.{name}: found 'free', {READS}" in fault


@pytest.mark.parametrize("price", ["0", "0.5", "1e-7", "'0'", "'.5'", "'5.'", "'0.0000006'", "'6E-7'", "${P}", "1000"])
def test_a_counted_price_takes(price: str) -> None:
    assert faults(models(f"pricing:\n  prompt: {price}"), environ={"P": "0.0000006"}) == []


def test_a_name_that_is_not_counted_may_have_any_text() -> None:
    assert faults(models("pricing: {image: free, tier: 'see https://example.com', web_search: 2000}")) == []


def test_an_empty_variable_is_no_price() -> None:
    (fault,) = faults(models("pricing: {prompt: '${P:-}', completion: 1}"))
    assert "pricing.prompt: found the empty value of ${P}, expected a price" in fault


def notices(text: str, **environ: str) -> list[str]:
    return [str(notice) for notice in load(models(text), environ=environ).notices]


def test_a_price_that_looks_like_that_of_a_million_tokens_gets_a_warning() -> None:
    place = "config/models.yaml:4:"
    text = "pricing: {prompt: 0.6, completion: '1.25', request: 5, image: 7, internal_reasoning: '${P}'}"
    told = "US dollars a million tokens: prices are those of one token"
    assert notices(text, P="0.02") == [
        f"{place}23: models[0].pricing.prompt: found 0.6, which is 600,000 {told}",
        f"{place}40: models[0].pricing.completion: found '1.25', which is 1,250,000 {told}",
        f"{place}90: models[0].pricing.internal_reasoning: found the value of ${{P}}, which is 20,000 {told}",
    ]
    assert notices("pricing: {prompt: 0.01, completion: '0', input_cache_read: free}") == []


def test_a_pricing_that_no_cost_comes_of_gets_a_warning() -> None:
    told = (
        "no cost can be computed from these prices, expected one of completion, input_cache_read, internal_reasoning, "
        "prompt"
    )
    assert notices("pricing: {input: 0.5, output: 1}\nroute:\n  - {}\n  - {pricing: {image: 1}}") == [
        f"config/models.yaml:4:14: models[0].pricing: {told}, request",
        f"config/models.yaml:7:19: models[0].route[1].pricing: {told}, request",
    ]
    assert notices("pricing: {}\nroute: [{pricing: {image: 1, request: 0}}]") == []


@pytest.mark.parametrize("price", ["true", "'1_0'", "' 6'", "'${P}'", "[1]"])
def test_what_is_no_price_is_a_fault_and_no_high_one(price: str) -> None:
    loaded = load(models(f"pricing: {{prompt: {price}}}"), environ={"P": "0x10"})
    assert (len(loaded.faults), loaded.notices) == (1, ())


def test_prices_are_looked_at_wherever_they_stand() -> None:
    found = faults(
        models("pricing: {prompt: a}\nroute:\n  - {}\n  - {pricing: {request: b}}"),
        split("pricing: {prompt: c}") + "remote_deployment:\n"
        "  - {endpoint: 'http://far:1', models: [llama], pricing: {completion: d}}\n",
    )
    assert found == [
        f"config/models.yaml:4:23: models[0].pricing.prompt: found 'a', {READS}",
        f"config/models.yaml:7:29: models[0].route[1].pricing.request: found 'b', {READS}",
        f"config/routing.yaml:4:23: local_deployment[0].pricing.prompt: found 'c', {READS}",
        f"config/routing.yaml:6:71: remote_deployment[0].pricing.completion: found 'd', {READS}",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pricing: 3", "pricing: found 3, expected a mapping"),
        ("pricing: {prompt: -1}", "pricing.prompt: found -1, expected a price"),
        ("pricing: {prompt: ''}", "pricing.prompt: found '', expected a price"),
        ("pricing: [x]", "pricing: found a list, expected a mapping"),
    ],
)
def test_an_entrys_pricing_refuses(text: str, told: str) -> None:
    for found in (faults(models(f"route: [{{{text}}}]")), faults(routing=split(text))):
        assert len(found) == 1
        assert told in found[0]


def test_what_is_no_list_or_mapping_has_a_fault_of_its_own() -> None:
    assert [fault.partition(" found")[2] for fault in faults("models: [3]", "local_deployment: 3")] == [
        " 3, expected a mapping",
        " 3, expected a list",
    ]
