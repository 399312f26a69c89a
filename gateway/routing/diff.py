"""What a new configuration changes, for the log and `/routing` after a save, and `gateway check --diff` before it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, Final, Literal, get_args

import msgspec

from gateway.routing.outline import DeploymentOutline, ModelOutline, Outline
from gateway.routing.snapshot import Clocks, Deployment, Identity

Part = Literal[
    "models_added",
    "models_removed",
    "models_changed",
    "deployments_added",
    "deployments_removed",
    "deployments_changed",
    "weights",
    "fallback",
    "inactive",
    "active",
    "settings",
]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
_CLOCKS: Final = tuple(field.name for field in msgspec.structs.fields(Clocks))
"""The clocks' names. To ask for the fields leaves a reference cycle behind each time."""


class Change(msgspec.Struct, frozen=True):
    """One change: to a deployment of a model, to a model, or, with neither, to the settings."""

    part: Part
    text: str = ""
    model: str | None = None
    deployment: str | None = None

    @property
    def line(self) -> str:
        """The change in one line: `llama/box-a: 0.6 -> 0.8`."""
        about = "/".join(name for name in (self.model, self.deployment) if name is not None)
        return ": ".join(part for part in (about, self.text) if part)


@dataclass(frozen=True)
class Diff:
    """All changes: models, deployments, weights (from -> to) and settings. It contains no key."""

    changes: tuple[Change, ...] = ()

    def as_dict(self) -> dict[str, list[str]]:
        """Return the lines of each part that has any; they are built once."""
        return self._parts

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        parts: dict[str, list[str]] = {}
        for change in self.changes:
            parts.setdefault(change.part, []).append(change.line)
        return {part: parts[part] for part in PARTS if part in parts}


def diff(
    old: Outline | None,
    new: Outline,
    other_keys: frozenset[Identity] = frozenset(),
    rekeyed_clients: Iterable[str] = (),
) -> Diff:
    """Compare the last configuration, if there was one, with the new one.

    Outlines contain no keys. A key that is added or removed is always reported; one that changes is reported only for
    the deployments in `other_keys` (see `rekeyed`) and the clients in `rekeyed_clients`.
    """
    was = {model.id: model for model in old.models} if old else {}
    now = {model.id: model for model in new.models}
    changes: list[Change] = []
    for id_, model in now.items():
        before = was.get(id_)
        if before is None or old is None:
            changes.append(Change("models_added", model=id_))
        else:
            changes += _model(before, model, (old.clocks, new.clocks))
        changes += _deployments(before, model, other_keys)
    for id_, model in was.items():
        if id_ not in now:
            changes.append(Change("models_removed", model=id_))
            changes += (Change("deployments_removed", "", id_, gone.name) for gone in model.deployments)
    changes += _settings(old, new) if old else ()
    changes += (Change("settings", f"clients: the key of {name} changed") for name in rekeyed_clients)
    return Diff(tuple(changes))


def same(one: object, other: object) -> bool:
    """Return whether plain JSON values are equal, types included: to Python, 1 equals 1.0 and true."""
    return one == other and _json(one) == _json(other)


def rekeyed(old: Mapping[Identity, Deployment], new: Mapping[Identity, Deployment]) -> frozenset[Identity]:
    """Return the deployments whose key has changed."""
    return frozenset(each for each in old.keys() & new.keys() if old[each].key != new[each].key)


def _model(old: ModelOutline, new: ModelOutline, defaults: tuple[Clocks, Clocks]) -> Iterator[Change]:
    """Yield the changes to a model itself; clocks that follow routing.yaml's `defaults` are reported there."""

    def said(text: str) -> Change:
        return Change("models_changed", text, new.id)

    if old.aliases != new.aliases:
        yield said(f"aliases {_listed(old.aliases)} -> {_listed(new.aliases)}")
    names = {**old.metadata, **new.metadata}
    changed = [name for name in names if old.metadata.get(name) != new.metadata.get(name)]
    if changed:
        yield said(f"{', '.join(changed)} changed")
    for name in _CLOCKS:
        clock = attrgetter(name)
        change = clock(old.clocks), clock(new.clocks)
        if len(set(change)) > 1 and change != tuple(map(clock, defaults)):
            yield said(f"timeouts.{name} {_text(change[0])} -> {_text(change[1])}")
    if old.fallbacks != new.fallbacks:
        yield said(f"fallbacks {_listed(old.fallbacks)} -> {_listed(new.fallbacks)}")
    if old.rescue != new.rescue:
        yield said(f"rescue {old.rescue} -> {new.rescue}")
    if _is_reordered(old, new):
        yield said(f"tried in the order {', '.join(each.name for each in new.deployments)}")


def _is_reordered(old: ModelOutline, new: ModelOutline) -> bool:
    """Return whether the remaining deployments are tried in another order, other than by their weights."""
    weights = {each.name: each.weight for each in new.deployments}
    was = [each.name for each in old.deployments if each.name in weights]
    was.sort(key=weights.__getitem__, reverse=True)
    stays = set(was)
    return was != [name for name in weights if name in stays]


def _deployments(old: ModelOutline | None, new: ModelOutline, other_keys: frozenset[Identity]) -> Iterator[Change]:
    was = {deployment.name: deployment for deployment in old.deployments} if old else {}
    now = {deployment.name: deployment for deployment in new.deployments}
    same_prices = old is not None and old.metadata.get("pricing") == new.metadata.get("pricing")
    for name, deployment in now.items():
        before = was.get(name)
        if before is None:
            place = f"{deployment.group} at {deployment.endpoint}"
            yield Change("deployments_added", f"{place}, weight {_number(deployment.weight)}", new.id, name)
        else:
            for text in _particulars(before, deployment, rekeyed=(new.id, name) in other_keys):
                yield Change("deployments_changed", text, new.id, name)
            if same_prices and before.group == deployment.group and before.pricing != deployment.pricing:
                text = f"pricing {before.pricing} -> {deployment.pricing}"
                yield Change("deployments_changed", text, new.id, name)
        yield from _weight(new.id, before, deployment)
    yield from (Change("deployments_removed", "", new.id, name) for name in was if name not in now)
    yield from _waiting(old, new)


def _weight(model: str, old: DeploymentOutline | None, new: DeploymentOutline) -> Iterator[Change]:
    was = old.weight if old else None
    if was is not None and was != new.weight:
        told = _number(was), _number(new.weight)
        told = (_json(was), _json(new.weight)) if told[0] == told[1] else told
        yield Change("weights", " -> ".join(told), model, new.name)
    if not new.weight and was != 0:
        yield Change("fallback", "becomes a fallback" if old else "a fallback", model, new.name)
    if was == 0 and new.weight:
        yield Change("fallback", "is no fallback any more", model, new.name)


def _waiting(old: ModelOutline | None, new: ModelOutline) -> Iterator[Change]:
    """Yield the deployments that begin or cease to wait for a variable."""
    was = [(each.name, each.variable) for each in old.inactive] if old else []
    now = [(each.name, each.variable) for each in new.inactive]
    served = {deployment.name for deployment in old.deployments} if old else set()
    serves = {deployment.name for deployment in new.deployments}
    for name, variable in (each for each in now if each not in was):
        verb = "becomes inactive" if name in served else "inactive"
        yield Change("inactive", f"{verb}, {variable} is not set", new.id, name)
    for name, variable in (each for each in was if each not in now):
        text = "becomes active" if name in serves else f"waits for {variable} no more"
        yield Change("active", text, new.id, name)


def _number(weight: float) -> str:
    return f"{weight:.6g}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _particulars(old: DeploymentOutline, new: DeploymentOutline, *, rekeyed: bool) -> Iterator[str]:
    for part in ("base_url", "kind", "group", "provider_model_id"):
        was, now = map(attrgetter(part), (old, new))
        if was != now:
            yield f"{part} {was} -> {now}"
    if old.endpoint == new.endpoint and old.health_url != new.health_url:
        yield f"health at {old.health_url} -> {new.health_url}"
    if old.has_key != new.has_key:
        yield "api_key " + ("added" if new.has_key else "removed")
    elif rekeyed:
        yield "api_key changed"


def _settings(old: Outline, new: Outline) -> Iterator[Change]:
    if old.split != new.split:
        yield Change("settings", "routing.yaml: " + ("added" if new.split else "removed"))
    yield from _values("", old.settings, new.settings)
    yield from _values("routing_parameter.", old.parameters, new.parameters)


def _values(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in {**old, **new}:
        was, now = old.get(name), new.get(name)
        if not same(was, now):
            told = _text(was), _text(now)
            told = (_json(was), _json(now)) if told[0] == told[1] else told
            yield Change("settings", f"{prefix}{name}: {' -> '.join(told)}")


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
