"""The arithmetic of `scripts/bench`."""

import math

import pytest

from scripts.benchmark.configurations import many, renamed, usual
from scripts.benchmark.table import Measure, medians, per, render, shown, with_ratio


def section(**rows: dict[str, float]) -> Measure:
    return Measure("json", "JSON answers", rows, "CPU us/request")


def test_seconds_apiece_are_microseconds() -> None:
    assert per(0.3, 2000) == 150.0
    assert math.isnan(per(0.3, 0))


def test_the_ratio_to_nginx_stands_behind_its_column() -> None:
    rows = {"gateway": {"CPU us/request": 60.0, "errors": 0}, "nginx": {"CPU us/request": 15.0, "errors": 1}}
    found = with_ratio(section(**rows))
    assert found.rows == {
        "gateway": {"CPU us/request": 60.0, "x nginx": 4.0, "errors": 0},
        "nginx": {"CPU us/request": 15.0, "x nginx": 1.0, "errors": 1},
    }
    assert found.columns() == ["CPU us/request", "x nginx", "errors"]


def test_without_nginx_there_is_no_ratio() -> None:
    measured = section(gateway={"CPU us/request": 60.0})
    assert with_ratio(measured) == measured


def test_a_section_without_a_ratio_stays_as_it_is() -> None:
    measured = Measure("start", "start", {"gateway": {"p50 s": 1.0}, "nginx": {"p50 s": 0.5}})
    assert with_ratio(measured) == measured


def test_rounds_are_merged_by_the_median_of_each_figure() -> None:
    rounds = [
        section(gateway={"CPU us/request": 90.0, "errors": 0}),
        section(gateway={"CPU us/request": 60.0, "errors": 2}, nginx={"CPU us/request": 15.0}),
        section(gateway={"CPU us/request": 70.0, "errors": 0}, nginx={"CPU us/request": 17.0}),
    ]
    merged = medians(rounds)
    assert merged.rows == {"gateway": {"CPU us/request": 70.0, "errors": 0}, "nginx": {"CPU us/request": 16.0}}
    assert (merged.name, merged.title, merged.ratio_of) == ("json", "JSON answers", "CPU us/request")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.4712, "0.471"), (14.96, "15"), (99.94, "99.9"), (306.7, "307"), (63622.4, "63,622"), (math.nan, "-")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_section_is_printed_in_columns() -> None:
    rows = section(gateway={"CPU us/request": 307.0, "errors": 0}, nginx={"CPU us/request": 15.2})
    assert render(rows).splitlines() == [
        "JSON answers",
        "           CPU us/request  errors",
        "  gateway             307       0",
        "  nginx              15.2",
    ]


def test_configurations_have_the_size_they_are_asked_for() -> None:
    models, routing = many(9, models=3, deployments=2, weight=5.0)
    assert [model["id"] for model in models] == ["m", "m1", "m2"]
    assert [entry["weight"] for entry in models[2]["route"]] == [5.0, 1.0]
    assert len({entry["base_url"] for entry in models[0]["route"]}) == 2
    assert routing == {}
    assert usual(9)[0][0]["route"][0]["base_url"] == "http://127.0.0.1:9/local/v1"
    assert renamed(9, "other")[0][0]["provider_model_id"] == "other"
