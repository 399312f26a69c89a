"""What a finished request leaves behind: one frozen record, handed to every observer."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try on one deployment.

    `deployment` is its name, unique within the model; `model` the model it belongs to. `failure` is the failure's
    name (`routing.failures`), absent when the attempt answered the client. `status` is the upstream's HTTP status,
    absent when none arrived. `milliseconds` run from the attempt's start to its end, the relayed body included.
    """

    model: str
    deployment: str
    group: str
    milliseconds: float
    status: int | None = None
    failure: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the upstream counted them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished request.

    `status` is what the client got; 499 stands for a client that left (nginx's convention). `failure` names why the
    client got no whole answer. `fallback` tells whether the deployment that answered is not the one drawn first.
    Times are in milliseconds: `first_content` from the request's arrival to the answer's first content.
    """

    request_id: str
    operation: str
    model: str
    served_model: str | None
    generation: int
    stream: bool
    status: int
    attempts: tuple[Attempt, ...]
    fallback: bool
    duration: float
    bytes_out: int = 0
    first_content: float | None = None
    usage: Usage | None = None
    failure: str | None = None


Observer = Callable[[Outcome], None]
