"""Strategies as users may write them: good ones, and one for each way to go wrong."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar

from pydantic import BaseModel, Field, field_validator

from gateway.routing.snapshot import Deployment

Group = Sequence[Deployment]


class FirstLocal:
    """Everything to the first local deployment; drawn at random, without parameters."""

    def assign(self, local: Group, remote: Group) -> dict[Deployment, bool]:
        return {(*local, *remote)[0]: True}


class Tier(BaseModel):
    names: list[str] = Field(max_length=3)
    share: float = Field(gt=0)


class TierParameters(BaseModel):
    tiers: dict[str, Tier]
    token: str = ""
    limit: int | bool = 3

    @field_validator("token")
    @classmethod
    def _is_known(cls, token: str) -> str:
        assert token != "tiny", f"{token} is too little"
        if token and not token.startswith("t-"):
            raise ValueError(f"{token} does not begin with t-")
        return token


class Tiers:
    """Shares by name."""

    Parameters: ClassVar = TierParameters
    selection = "smooth"

    def __init__(self, parameters: TierParameters) -> None:
        self.parameters = parameters

    def __repr__(self) -> str:
        return f"Tiers({self.parameters})"

    def assign(self, local: Group, remote: Group) -> dict[Deployment, float]:
        return {
            deployment: tier.share
            for tier in self.parameters.tiers.values()
            for deployment in (*local, *remote)
            if deployment.name in tier.names
        }


class Tagged(Tiers):
    """Fails for a dead b, with its token in the message."""

    def assign(self, local: Group, remote: Group) -> dict[Deployment, float]:
        if not any(deployment.name == "b" for deployment in local):
            raise LookupError(f"{self.parameters.token}: b is gone")
        return super().assign(local, remote)


class StrictParameters(BaseModel, extra="forbid", strict=True):
    names: list[str]
    nested: dict[str, dict[str, list[int]]] = {}


class Strict:
    Parameters = StrictParameters

    def __init__(self, parameters: StrictParameters) -> None:
        self.parameters = parameters

    def assign(self, local: Group, remote: Group) -> dict[Deployment, float]:
        return {deployment: 1 for deployment in (*local, *remote) if deployment.name in self.parameters.names}


class Answers:
    """Answers whatever a test has put here."""

    answer: ClassVar[Any] = None

    def assign(self, local: Group, remote: Group) -> Any:
        return self.answer(local, remote)


class Asked:
    """Remembers what it was asked; the same for everyone."""

    calls: ClassVar[list[tuple[list[str], list[str]]]] = []

    def assign(self, local: Group, remote: Group) -> dict[Deployment, Fraction]:
        self.calls.append(([each.name for each in local], [each.name for each in remote]))
        return dict.fromkeys((*local, *remote), Fraction(1, 7))


class RaisesWhenMade(FirstLocal):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class Wants(FirstLocal):
    selection: ClassVar[Any] = ["dice"]


class RaisesOnSelection(FirstLocal):
    @property
    def selection(self) -> str:
        raise RuntimeError("undecided")


class BadParameters(FirstLocal):
    Parameters = dict[str, int]


class PlainParameters(FirstLocal):
    Parameters = dict


class RaisingParameters(BaseModel):
    @field_validator("*", mode="before")
    @classmethod
    def _raises(cls, _: object) -> object:
        raise KeyError("lost")

    name: str


class RaisesOnParameters(FirstLocal):
    Parameters = RaisingParameters


class NoAssign:
    pass


class Lazy(Mapping[Deployment, float]):
    """A mapping whose items raise."""

    def __getitem__(self, key: Deployment) -> float:
        raise KeyError(key)

    def __iter__(self) -> Iterator[Deployment]:
        raise OSError("asleep")

    def __len__(self) -> int:
        return 1


def leaves(local: Group, remote: Group) -> object:
    sys.exit(f"{len(local) + len(remote)} are too many")


class PanicException(BaseException):
    """As the panics of Rust code, it is no Exception."""


class MuteError(Exception):
    """Has no message that could be had."""

    def __str__(self) -> str:
        return self.args[0]()  # type: ignore[no-any-return]


def raises(error: BaseException) -> Callable[[Group, Group], object]:
    def answer(*_: Group) -> object:
        raise error

    return answer


BAD_WEIGHTS: tuple[object, ...] = (-1, -0.5, float("nan"), float("inf"), "1", None, 1j, Decimal(1), [])
not_a_class = FirstLocal()


class Anything(BaseModel, extra="allow"):
    pass


class Open(FirstLocal):
    """Takes any parameters."""

    Parameters = Anything

    def __init__(self, _: Anything) -> None:
        pass
