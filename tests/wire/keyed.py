"""A configuration that holds a key wherever one can be, boxes that echo it, and a strategy that cannot keep it.

Every key has WORD in it and nothing else has, so that a part of a key is found too.
"""

import gzip
import json
from urllib.parse import quote

from tests.execution.support import CONTENT, FINISH
from tests.fakes.upstream import (
    Close,
    Hang,
    Request,
    Reset,
    Send,
    Step,
    chunk,
    json_answer,
    last_chunk,
    sse_head,
    status,
)
from tests.running import Config

WORD = "cuckoo"
KEYS = {
    "written": 'sk-cuckoo/written+"0123456789',
    "environment": "sk-cuckoo-environment-0123456789",
    "dotenv": "sk-cuckoo-dotenv-0123456789",
    "split": "sk-cuckoo-split-0123456789",
}
TOKEN, SITE = "sk-cuckoo-token-0123456789", "cuckoo.example"
OTHER, LATER = "sk-cuckoo-other-0123456789", "sk-cuckoo-later-0123456789"
CLIENTS, PROMPT = "sk-cuckoo-clients-0123456789", "why does a cuckoo sing?"
ENVIRON = {"KEY": KEYS["environment"], "SITE": SITE, "OTHER": OTHER}
FIELDS = [("authorization", f"Bearer {CLIENTS}"), ("cookie", f"a={CLIENTS}"), ("x-api-key", CLIENTS)]

GUEST = """
from pydantic import BaseModel

class Parameters(BaseModel):
    token: str
    site: str

class Guest:
    Parameters = Parameters

    def __init__(self, parameters):
        self.parameters = parameters

    def assign(self, local, remote):
        if len(local) < 2:
            key = local[0].key.get_secret_value()
            raise ValueError(f"{self.parameters} {local} {vars(self)} {key} {local[0].headers}")
        return dict.fromkeys(local, 1)
"""


def boxes(_: int, request: Request) -> list[Step]:
    """Answer as the request's `user` says, and echo the key that came with it in every spelling and place."""
    if not request.body:
        return [Send(status(200, "OK"))]
    key = request.values("authorization")[0].removeprefix("Bearer ")
    fields = [("x-ratelimit-limit-requests", key), ("retry-after", f"Bearer {key}"), ("x-key", key), ("server", key)]
    slashed = json.dumps(key)[1:-1].replace("/", "\\/")
    error = f"{json.dumps({'error': key})} {key} {quote(key, safe='')} {slashed}".encode()
    user = request.json().get("user")
    if isinstance(user, int):
        return [Send(status(user, f"No {key}", error, fields))]
    begun = sse_head(200, fields) + chunk(CONTENT)
    steps: dict[str | None, list[Step]] = {
        None: [Send(json_answer({"choices": []}, 200, fields))],
        "coded": [Send(status(400, "No", gzip.compress(error), [("content-encoding", "gzip")]))],
        "large": [Send(status(400, "No", error * 20_000))],
        "typed": [Send(status(400, "No", error, [("content-type", f"text/plain; key={key}")]))],
        "garbage": [Send(key.encode() + b"\r\n\r\n"), Hang()],
        "field": [Send(f"HTTP/1.1 200 OK\r\nauthorization {key}\r\n\r\n".encode()), Hang()],
        "cut": [Send(f"HTTP/1.1 200 OK\r\nauthorization: {key}\r\n".encode()), Close()],
        "reset": [Reset()],
        "stream": [Send(begun + chunk(FINISH) + last_chunk())],
        "broken": [Send(begun), Reset()],
        "unframed": [Send(begun + f"{key}\r\n{key}\r\n".encode()), Hang()],
    }
    return steps[user]


def configure(config: Config, url: str, other: str) -> None:
    """Write a model for each way to give a key; `other` is the one box of `split` that takes no requests."""
    keys = {"written": KEYS["written"].replace("$", "$$"), "environment": "${KEY}", "dotenv": "${DOTENV}"}
    routes = {model: {model: {"base_url": f"{url}/{model}", "api_key": key}} for model, key in keys.items()}
    config.models(**routes, split={"one": f"{url}/split", "two": other}, down={"gone": f"{other}/gone"})
    (config.path.parent / ".env").write_text(f"DOTENV={KEYS['dotenv']}\n")
    local = [
        {"endpoint": f"{url}/split", "models": ["split"], "api_key": KEYS["split"]},
        {"endpoint": other, "models": ["split"], "api_key": OTHER},
    ]
    config.routing(
        timeout=5,
        routing_strategy="wire_guest:Guest",
        routing_parameter={"token": TOKEN, "site": "${SITE}"},
        local_deployment=local,
    )
