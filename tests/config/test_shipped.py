import os
from pathlib import Path

from gateway.config.fields import Unset
from gateway.config.load import Loaded, parse
from gateway.config.sources import ConfigFiles, read

CONFIG = Path(__file__).parents[2] / "config"


def shipped(**environ: str) -> Loaded:
    files = ConfigFiles.of(CONFIG, environ, Path(os.devnull))
    return parse(read(files), files, environ)


def test_the_shipped_files_are_good_without_any_variable() -> None:
    loaded = shipped()
    assert not loaded.faults
    assert not loaded.notices
    assert loaded.models is not None
    assert loaded.routing is not None
    large, small = loaded.models.models
    assert (large.id, small.id) == ("llama-3.3-70b-instruct", "llama-4-scout")
    assert large.route is not None
    assert [entry.base_url for entry in large.route] == [
        "http://localhost:8000",
        Unset("LLAMA_BASE_URL", "${LLAMA_BASE_URL}"),
    ]
    assert small.base_url == "http://localhost:8000"


def test_the_shipped_split_is_the_60_40_example() -> None:
    routing = shipped(LLAMA_BASE_URL="https://api.example.com/v1", LLAMA_API_KEY="k").routing
    assert routing is not None
    assert routing.routing_strategy == "fixed"
    assert routing.routing_parameter == {"local_fraction": 0.6}
    assert (routing.timeout, routing.health_check.interval, routing.logging.output) == (2, 30, "output.log")
    (local,), (remote,) = routing.local_deployment, routing.remote_deployment
    assert (local.endpoint, local.models) == ("http://localhost:8000", ("llama-3.3-70b-instruct", "llama-4-scout"))
    assert (remote.endpoint, remote.models) == ("https://api.example.com/v1", ("llama-3.3-70b-instruct",))
