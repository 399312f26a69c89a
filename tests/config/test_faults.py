import os

import pytest

from gateway.config import faults
from gateway.config.faults import ConfigError, Fault, nearest
from tests.config import loading

FAULT = Fault("config/models.yaml", 12, 9, "models[0].route[1].weight", "found -1, expected a number of at least 0")


def test_a_fault_reads_as_file_line_column_path_and_message() -> None:
    assert str(FAULT) == (
        "config/models.yaml:12:9: models[0].route[1].weight: found -1, expected a number of at least 0"
    )


def test_a_fault_of_a_whole_file_names_no_line() -> None:
    assert str(Fault("config/models.yaml", 0, 0, "", "not found")) == "config/models.yaml: not found"


def test_a_fault_of_a_whole_document_names_no_path() -> None:
    assert str(Fault("m.yaml", 1, 2, "", "empty")) == "m.yaml:1:2: empty"


def test_a_fault_as_a_mapping_has_all_its_parts() -> None:
    assert FAULT.as_dict() == {
        "file": "config/models.yaml",
        "line": 12,
        "column": 9,
        "path": "models[0].route[1].weight",
        "message": "found -1, expected a number of at least 0",
    }


def test_a_fault_as_a_mapping_can_be_encoded() -> None:
    fault = Fault(os.fsdecode(b"n\xe9/models.yaml"), 1, 1, "\ud800", "found \ud800, é")
    assert fault.as_dict() == {
        "file": r"n\udce9/models.yaml",
        "line": 1,
        "column": 1,
        "path": r"\ud800",
        "message": r"found \ud800, é",
    }


def test_a_config_error_shows_one_fault_a_line() -> None:
    error = ConfigError([FAULT, Fault("r.yaml", 0, 0, "", "empty")])
    assert error.faults == (FAULT, Fault("r.yaml", 0, 0, "", "empty"))
    assert str(error).splitlines() == [str(FAULT), "r.yaml: empty"]


def test_nearest_offers_a_close_name_whatever_its_case() -> None:
    assert nearest("wieght", ["weight", "name"]) == ", did you mean 'weight'?"
    assert nearest("LLAMA_4", ["Llama_4"]) == ", did you mean 'Llama_4'?"


def test_nearest_offers_nothing_far_away() -> None:
    assert nearest("zzz", ["weight", "name"]) == ""
    assert nearest("weight", []) == ""


@pytest.mark.parametrize(
    ("models", "routing", "env"),
    [
        ("", "local_deployment: [{endpoint: 'http://x', models: [aab, bba, cca, aab]}]", ""),
        ("    fallbacks: [aab, bba, cca, aab]\n", None, ""),
        ("    description: '${aab}${bba}${cca}'\n    owned_by: '${aab}'\n", None, "aaa=1\nbbb=2\nccc=3\n"),
    ],
    ids=["listed", "fallbacks", "variables"],
)
def test_among_many_names_the_nearest_is_offered_for_the_first_faults_and_those_alike(
    models: str, routing: str | None, env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "MOST_COMPARISONS", 6)
    known = "models:\n" + "".join(f"  - id: {name}\n    base_url: http://x\n" for name in ("aaa", "bbb", "ccc"))
    told = loading.faults(known + models, routing, env=env)
    assert [fault.partition("did you mean ")[2] for fault in told] == ["'aaa'?", "'bbb'?", "", "'aaa'?"]
