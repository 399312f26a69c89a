"""What monitoring is built on: the page that lists the metrics, the board, the alerts."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import gateway
from gateway.observe.metrics.observer import Metrics
from tests.observe.metrics.reading import FAMILIES, Clock

ROOT = Path(gateway.__file__).parents[1]
FOLDER = ROOT / "deploy" / "monitoring"
PAGE = (ROOT / "docs" / "monitoring.md").read_text()
BOARD = json.loads((FOLDER / "grafana.json").read_text())
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
TARGET = {"instance", "job"}
"""Labels that Prometheus adds to all of a target's series."""

NAMED = re.compile(r"\b((?:gateway|process|python)_\w+|up)\b(?:\{([^}]*)\})?")


def series() -> dict[str, set[str]]:
    """Give the names of what is exported as queries know them, each with its labels."""
    known = {"up": set(TARGET)}
    for family in FAMILIES:
        labels = TARGET | set(family.labels)
        if family.kind == "histogram":
            known |= {f"{family.name}_count": labels, f"{family.name}_sum": labels}
            known[f"{family.name}_bucket"] = labels | {"le"}
        else:
            known[family.name] = labels
    for beside in text_string_to_metric_families(generate_latest(Metrics(Clock()).registry).decode()):
        for sample in beside.samples:
            known[sample.name] = TARGET | set(sample.labels)
    return known


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


QUERIES = [
    *((f"board: {title} {target['refId']}", target["expr"]) for title, target in targets()),
    *((f"board: {each['name']}", each["expr"]) for each in BOARD["annotations"]["list"]),
    *((f"alert: {rule['alert']}", rule["expr"]) for rule in ALERTS),
    *((f"page: {number}", query) for number, query in enumerate(re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL))),
]


@pytest.mark.parametrize("query", [query for _, query in QUERIES], ids=[name for name, _ in QUERIES])
def test_a_query_names_metrics_and_labels_that_are_exported(query: str) -> None:
    known = series()
    named = NAMED.findall(query)
    assert named
    for name, selector in named:
        assert name in known
        assert set(re.findall(r"(\w+)\s*(?:=|!)", selector)) <= known[name], name
    labels = set().union(*(known[name] for name, _ in named))
    for grouped in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", query):
        made = set(re.findall(r'label_replace\(.*?"(\w+)"', query))
        assert set(re.findall(r"\w+", grouped)) <= labels | made


@pytest.mark.parametrize("query", [query for _, query in QUERIES if re.search(r"result!", query)])
def test_an_attempt_that_the_client_left_or_the_stop_cut_is_no_failure(query: str) -> None:
    assert {"client_left", "cut"} <= set(re.findall(r"\w+", query.partition("result!~")[2].split('"')[1]))


def test_every_metric_is_on_the_board() -> None:
    told = " ".join(query for name, query in QUERIES if name.startswith("board"))
    missing = {family.name for family in FAMILIES if family.name not in told}
    assert missing == set()


def test_the_page_lists_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `(gateway_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    told = {(name, kind, tuple(re.findall(r"`(\w+)`", labels)), tells) for name, kind, labels, tells in rows}
    assert told == {(family.name, family.kind, family.labels, family.tells) for family in FAMILIES}
    assert len(rows) == len(FAMILIES)


def test_the_page_lists_every_alert_and_no_other() -> None:
    rows = re.findall(r"^\| `(Gateway\w+)` \| (\w+) \| (\w+) \| .+ \|$", PAGE, re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"], rule["for"]) for rule in ALERTS]


def test_the_page_shows_the_configuration_that_is_shipped() -> None:
    [shown] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert (FOLDER / "prometheus.yml").read_text().endswith(shown)


def test_the_page_names_what_is_told_of_the_process() -> None:
    named = set(re.findall(r"`(process_\w+)`", PAGE))
    assert len(named) == 6
    assert named <= set(series())


async def test_the_page_shows_how_to_add_a_metric() -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shown = f"{snippet}\nprint(app[GATEWAY].metrics.registry.get_sample_value('mine'))"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", shown, stdout=pipe, cwd=ROOT)
    said, _ = await process.communicate()
    assert said == b"3.0\n"


def test_links_lead_somewhere() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert linked
    assert [each for each in linked if not (ROOT / "docs" / each).exists()] == []


def test_an_alert_says_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert len(set(names)) == len(names) > 10
    for rule in ALERTS:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "runbook"}
        assert all(text.endswith(".") for text in rule["annotations"].values())


def test_every_alert_is_tested() -> None:
    tests = (FOLDER / "alerts_test.yaml").read_text()
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tests] == []


def test_the_board_is_one_that_grafana_can_lay_out() -> None:
    panels = BOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_board_works_on_any_data_source() -> None:
    known = {variable["name"] for variable in BOARD["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD))) - {"__all"}
    assert used == known
    for title, target in targets():
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml"), ("check", "config", "prometheus.yml")],
    ids=" ".join,
)
async def test_promtool_accepts_it(arguments: tuple[str, ...]) -> None:
    pipe, out = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec("promtool", *arguments, stdout=pipe, stderr=out, cwd=FOLDER)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert b"SUCCESS" in said
