"""docs/strategies.md: its configurations are loaded, its strategy is run, its tables and faults are compared."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config.faults import ConfigError
from gateway.config.load import parse
from gateway.config.sources import ConfigFiles, Sources
from gateway.routing.manager import RoutingManager
from gateway.routing.plan import Plan, plan
from tests.routing.planning import DEAD, snapshot, weights

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[MODELS] = [block for _, block in BLOCKS if block.startswith("# models.yaml")]
FIXED, ROUND_ROBIN, OWN, FAULTY = [block for _, block in BLOCKS if block.startswith("# routing.yaml")]
[MODULE] = [block for kind, block in BLOCKS if kind == "python"]
[FAULTS] = [block for kind, block in BLOCKS if kind == "text"]
ROW = re.compile(r"^\| (.+) \| (\d+) % \| (\d+) % \| (\d+) % \|$", re.MULTILINE)
ENDPOINTS = {"gpu-1": "http://gpu-1:8000", "gpu-2": "http://gpu-2:8000", "cloud": "https://api.example.com"}


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the page's module into a folder; what is imported and looked for is as before afterwards."""
    (tmp_path / "by_kind.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("by_kind", None)


def make(routing: str, **environ: str) -> Plan:
    files = ConfigFiles.of(Path("config"), environ)
    return plan(parse(Sources(MODELS.encode(), routing.encode()), files, environ), "")


def percent(made: Plan, *down: str) -> dict[str, float]:
    manager = RoutingManager()
    manager.adopt(made)
    for name in down:
        manager.probed(ENDPOINTS[name], DEAD, 1.0)
    route = snapshot(manager).routes["llama-3.3-70b-instruct"]
    return {name: float(weight * 100) for name, weight in weights(route).items()}


@pytest.mark.parametrize("row", ROW.findall(PAGE), ids=lambda row: row[0])
def test_the_table_of_shares(row: tuple[str, str, str, str]) -> None:
    down, *shares = row
    found = percent(make(FIXED), *(() if down == "nobody" else down.split(", ")))
    assert [found["gpu-1"], found["gpu-2"], found["cloud"]] == [float(share) for share in shares]


def test_the_table_is_found() -> None:
    assert len(ROW.findall(PAGE)) == 5


def test_round_robin() -> None:
    assert percent(make(ROUND_ROBIN)) == {"gpu-1": 50, "cloud": 50, "gpu-2": 0}


def test_your_own(own_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own_module)
    made = make(OWN)
    assert percent(made) == {"gpu-1": 40, "gpu-2": 40, "cloud": 20}
    assert percent(made, "gpu-1") == {"gpu-2": 80, "cloud": 20, "gpu-1": 0}
    assert made.strategy.selection == "smooth"
    assert made.notices == ()


def test_its_faults(own_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own_module)
    with pytest.raises(ConfigError) as caught:
        make(FAULTY, CLOUD_SHARE="none")
    assert str(caught.value) + "\n" == FAULTS


def test_it_is_found_in_the_working_directory(
    own_module: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = own_module / "config"
    config.mkdir()
    (config / "models.yaml").write_text(MODELS, encoding="utf-8")
    (config / "routing.yaml").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(own_module)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert main(["check"]) == 0
    assert "40.00%  gpu-1" in capsys.readouterr().out
    assert sys.path[-1] == str(own_module)
    assert main(["check"]) == 0
    assert sys.path.count(str(own_module)) == 1
