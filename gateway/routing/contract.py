"""A strategy's contract: from the name in routing.yaml to weights that can be relied on.

A user's own strategy is not trusted. Whatever it raises when it is imported, made or called, and every wrong return
value, becomes a `StrategyError` and nothing else. No message contains a value that came from a variable or is named
like a secret, nor a deployment's key, even where the strategy's own message did.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Final, cast, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from gateway.config.environment import Interpolated
from gateway.config.faults import nearest
from gateway.config.fields import freeze
from gateway.config.messages import expectation
from gateway.config.shown import Path, is_secret, shortened, shown
from gateway.routing.snapshot import Deployment, Selection
from gateway.routing.strategies import BUILT_IN, Strategy, StrategyError, exact

_STRATEGY: Final = "routing_strategy"
_PARAMETERS: Final = "routing_parameter"
_SHORTEST_SECRET: Final = 4
_OWN_MESSAGES: Final = {"value_error": "Value error, ", "assertion_error": "Assertion failed, "}


class ResolvedStrategy:
    """A strategy in use, with its contract enforced. `selection` says how its weights are to be drawn."""

    def __init__(self, name: str, strategy: Strategy, selection: Selection, host: "_Host") -> None:
        """See `resolve`."""
        self.name = name
        self.selection = selection
        self._strategy = strategy
        self._host = host

    def __repr__(self) -> str:
        return f"<{self.name} {self.selection}>"

    def assign(self, usable: Iterable[Deployment]) -> dict[Deployment, Fraction]:
        """Ask for the weights of one model's usable deployments, and scale them to sum to 1.

        Return nothing when no deployment is usable, or none is given weight.

        Raises:
            StrategyError: the strategy raised, or returned something other than a mapping of the deployments it was
                given to finite weights of at least 0.

        """
        given = tuple(usable)
        if not given:
            return {}
        asking = f"{self.name}.assign for {given[0].model}"
        local, remote = (tuple(each for each in given if each.group == group) for group in ("local", "remote"))
        with self._host.running(f"{asking} raised", [each.key for each in given]):
            weights = self._checked(asking, self._strategy.assign(local, remote), frozenset(given))
        total = sum(weights.values())
        return {deployment: weight / total for deployment, weight in weights.items()} if total else {}

    def _checked(self, asking: str, answer: object, given: frozenset[Deployment]) -> dict[Deployment, Fraction]:
        if not isinstance(answer, Mapping):
            found = type(answer).__name__
            raise self._host.error(f"{asking} returned {found}, expected a mapping of deployments to weights")
        if strangers := answer.keys() - given:
            found = shortened(repr(next(iter(strangers))))
            raise self._host.error(f"{asking} returned {found}, expected only deployments it was given")
        return {deployment: self._weight(asking, deployment, weight) for deployment, weight in answer.items()}

    def _weight(self, asking: str, deployment: Deployment, weight: object) -> Fraction:
        try:
            fraction = exact(weight)
        except (TypeError, ValueError):
            fraction = Fraction(-1)
        if fraction < 0:
            found = f"{asking} gave {deployment.name} the weight {shortened(repr(weight))}"
            raise self._host.error(f"{found}, expected a finite number of at least 0")
        return fraction


def resolve(name: str, written: Mapping[str, object]) -> ResolvedStrategy:
    """Make the strategy that routing.yaml names; `written` are its parameters, with values from variables marked.

    Raises:
        StrategyError: it is unknown, cannot be imported or made, refuses its parameters, or has a `selection` other
            than `random` and `smooth`.

    """
    host = _Host(name, written)
    kind = BUILT_IN.get(name) or _imported(name, host)
    arguments = _arguments(name, kind, written, host)
    with host.running(f"{name} cannot be made:"):
        strategy = cast("Strategy", kind(*arguments))
        selection = getattr(strategy, "selection", "random")
    if selection not in get_args(Selection):
        raise host.error(f"found {name}.selection {shortened(repr(selection))}, expected 'random' or 'smooth'")
    return ResolvedStrategy(name, strategy, cast("Selection", selection), host)


class _Host:
    """Runs foreign code, and makes errors with secrets masked."""

    def __init__(self, name: str, written: Mapping[str, object]) -> None:
        found = dict(_hidden(written, (_PARAMETERS,)))
        if isinstance(name, Interpolated) and name not in BUILT_IN:
            parts = (part for part in (str(name), *name.replace(":", ".").split(".")) if len(part) >= _SHORTEST_SECRET)
            found |= dict.fromkeys(parts, shown(name, (_STRATEGY,)))
        self._hidden = sorted(found.items(), key=lambda pair: -len(pair[0]))

    @contextmanager
    def running(self, doing: str, keys: Iterable[SecretStr | None] = ()) -> Iterator[None]:
        try:
            yield
        except (StrategyError, KeyboardInterrupt):  # Ctrl-C ends `gateway check`
            raise
        except BaseException as error:  # a panic in Rust code is no Exception; nothing is awaited here
            told = f"{doing} {type(error).__name__}: {_words(error)}"
            for key in (key.get_secret_value() for key in keys if key is not None and len(key) >= _SHORTEST_SECRET):
                told = told.replace(key, "***")
            raise self.error(told) from error

    def error(self, message: str) -> StrategyError:
        return StrategyError([((_STRATEGY,), self._masked(message))])

    def refusal(self, problems: Iterable[tuple[Path, str]]) -> StrategyError:
        return StrategyError((path, self._masked(message)) for path, message in problems)

    def _masked(self, message: str) -> str:
        for text, instead in self._hidden:
            message = message.replace(text, instead)
        return message


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - __str__ is foreign code too
        return "its message cannot be read"


def _hidden(value: object, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the texts in parameters that must not be shown, each with what is shown instead."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _hidden(item, (*path, key))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _hidden(item, (*path, position))
    elif (
        isinstance(value, str)
        and len(value) >= _SHORTEST_SECRET
        and (isinstance(value, Interpolated) or is_secret(path))
    ):
        yield str(value), shown(value, path)


def _imported(name: str, host: _Host) -> type:
    module_name, colon, class_name = name.partition(":")
    if not colon:
        known = ", ".join(BUILT_IN)
        told = f"found {shown(name, (_STRATEGY,))}, expected one of {known} or package.module:ClassName"
        raise host.error(told + ("" if isinstance(name, Interpolated) else nearest(name, BUILT_IN)))
    with host.running(f"cannot import {name}:"):
        importlib.invalidate_caches()  # the module may be newer than the cached listing of its folder
        found = getattr(importlib.import_module(module_name), class_name)
    if not isinstance(found, type) or not callable(getattr(found, "assign", None)):
        raise host.error(f"{name} is not a class with a method assign(self, local, remote)")
    return found


def _arguments(name: str, kind: type, written: Mapping[str, object], host: _Host) -> tuple[BaseModel, ...]:
    declared = getattr(kind, "Parameters", None)
    if declared is None:
        if written:
            told = "unknown key {!r}, {} takes none"
            raise host.refusal(((_PARAMETERS, key), told.format(shortened(key), name)) for key in written)
        return ()
    if not isinstance(declared, type) or not issubclass(declared, BaseModel):
        raise host.error(f"found {name}.Parameters {shortened(repr(declared))}, expected a pydantic model")
    with host.running(f"{name} refuses its parameters:"):
        try:
            return (declared.model_validate(_plain(freeze(written))),)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
    raise host.refusal(_problem(name, declared, detail, written) for detail in details)


def _problem(
    name: str, declared: type[BaseModel], detail: ErrorDetails, written: Mapping[str, object]
) -> tuple[Path, str]:
    at, kind, told = detail["loc"], detail["type"], detail["msg"]
    path = (_PARAMETERS, *at)
    if kind == "missing":
        return path, f"missing, {name} needs it"
    if kind == "extra_forbidden":
        key = str(at[-1])
        close = nearest(key, declared.model_fields) if len(at) == 1 else ""
        return path, f"unknown key {shortened(key)!r} for {name}{close}"
    if kind in _OWN_MESSAGES:
        return path, told.removeprefix(_OWN_MESSAGES[kind])
    reached, value = _reached(written, at)
    expected = expectation(detail) or told.removeprefix("Input should be ")
    told = told[:1].lower() + told[1:] if expected == told else f"expected {expected}"
    return reached, f"found {shown(value, reached)}, {told}"


def _reached(written: object, at: Path) -> tuple[Path, object]:
    """Follow a pydantic path as far as the parameters go: its last steps may name the branches of a union."""
    path: Path = (_PARAMETERS,)
    for step in at:
        match written:
            case dict() if step in written:
                written = written[step]
            case list() if isinstance(step, int):
                written = written[step]
            case _:
                break
        path = (*path, step)
    return path, written


def _plain(value: object) -> object:
    """Return frozen data as YAML loads it: dicts, lists, text and numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
