"""Which deployments are local and which are remote: the two documents become each model's deployments.

`drafts.py` works out what the files say about each deployment. This module checks the drafts against each other,
collects faults and notices for the author of the files, and makes a deployment of each draft that waits for no
variable.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from msgspec import Struct
from pydantic import SecretStr

from gateway.adapters.openai_compatible import Address, authorization
from gateway.config.documents import ModelEntry, ModelsDocument, RouteEntry, RoutingDocument
from gateway.config.faults import Fault
from gateway.config.fields import Unset
from gateway.config.load import Loaded
from gateway.config.shown import dotted
from gateway.routing.drafts import Claim, Claims, Draft, Place, claims_of, drafts_of, inherits_key
from gateway.routing.snapshot import Deployment, Endpoint, Inactive
from gateway.routing.strategies import exact

Remark = tuple[Place, str]
"""A place in the files, and the message about it."""


class Matched(Struct, frozen=True):
    """What two documents mean.

    `members` are each model's active deployments in the order written; empty when there are faults. `split` are the
    models that routing.yaml lists.
    """

    members: Mapping[str, tuple[Deployment, ...]]
    split: frozenset[str]
    inactive: tuple[Inactive, ...]
    faults: tuple[Fault, ...]
    notices: tuple[Fault, ...]


def match(loaded: Loaded, models: ModelsDocument, routing: RoutingDocument) -> Matched:
    """Match the documents; `loaded` places the faults and notices in their files."""
    claims = claims_of(models, routing)
    entries = [(model, Place("models", ("models", position))) for position, model in enumerate(models.models)]
    drafts = {model.id: drafts_of(model, place, claims.get(model.id, {})) for model, place in entries}
    flat = [draft for of_model in drafts.values() for draft in of_model]
    split = frozenset(claims)
    faults = [*_unplaced(entries, drafts), *_claimed_twice(claims, drafts), *_clashes(drafts), *_health_conflicts(flat)]
    notices = [*_unused_keys(entries), *_waiting(drafts), *_unlisted(flat, split)]
    return Matched(
        members=MappingProxyType({} if faults else _members(drafts, routing.health_check.path)),
        split=split,
        inactive=tuple(
            Inactive(draft.model, draft.group, draft.waits_for[0], draft.called) for draft in flat if draft.waits_for
        ),
        faults=_told(loaded, faults),
        notices=_told(loaded, notices),
    )


def _told(loaded: Loaded, remarks: Iterable[Remark]) -> tuple[Fault, ...]:
    return tuple(loaded.fault(place.source, place.path, message) for place, message in remarks)


_Entries = Iterable[tuple[ModelEntry, Place]]
_Drafts = Mapping[str, tuple[Draft, ...]]


def _unplaced(entries: _Entries, drafts: _Drafts) -> Iterator[Remark]:
    for model, place in entries:
        if model.base_url is None:
            for position, entry in enumerate(model.route or ()):
                if entry.base_url is None:
                    at = place.below("route", position, "base_url")
                    yield at, f"missing, neither this entry nor {model.id} has one"
        if model.route is None and not drafts[model.id]:
            yield place, f"{model.id} has no deployment: give it a base_url or a route, or list it in routing.yaml"


def _claimed_twice(claims: Claims, drafts: _Drafts) -> Iterator[Remark]:
    """Yield claims of one thing twice: of what models.yaml registers, or of what they add with the same key."""
    for model, by_endpoint in claims.items():
        registered = {each.target.identity for each in drafts.get(model, ()) if each.first_place.source == "models"}
        for identity, found in by_endpoint.items():
            known: dict[object, Claim] = {}
            for claim in found if isinstance(found[0].target.address, Address) else ():
                first = known.setdefault(None if identity in registered else claim.entry.api_key, claim)
                if first is not claim:
                    told = f"{model} at {identity} is claimed by {dotted(first.place.path)} already, expected one entry"
                    yield claim.place.below("models", claim.listed), told


def _clashes(drafts: _Drafts) -> Iterator[Remark]:
    for model, of_model in drafts.items():
        served: dict[tuple[str, str, object], Draft] = {}
        called: dict[str, Draft] = {}
        for draft in of_model:
            if draft.waits_for:
                continue
            what = draft.served_model, draft.target.identity
            if (first := served.setdefault((*what, draft.key), draft)) is not draft:
                told = f"{model} has {' at '.join(what)} twice, expected each deployment once"
            elif (first := called.setdefault(draft.called, draft)) is not draft:
                told = f"two deployments of {model} are called {draft.called}, give one a `name` of its own"
            else:
                continue
            if draft.place != first.place:
                yield draft.place, f"{told}: see {dotted(first.place.path)}"
            else:  # the same entry claims both
                seen = f"{dotted(first.first_place.path)} and {dotted(draft.place.path)}"
                yield draft.first_place, f"{told}: see {seen}"


def _health_conflicts(drafts: Iterable[Draft]) -> Iterator[Remark]:
    known: dict[str, Draft] = {}
    for draft in drafts:
        if draft.health_path is not None and isinstance(draft.target.address, Address):
            identity = draft.target.identity
            first = known.setdefault(identity, draft)
            if first.health_path != draft.health_path:
                other = f"{first.health_path} (see {dotted(first.place.path)})"
                told = f"{identity} has the health_path {draft.health_path} and {other}, expected one of the two"
                yield draft.place.below("health_path"), told


def _unused_keys(entries: _Entries) -> Iterator[Remark]:
    for model, place in entries:
        users = model.route or ((RouteEntry(),) if model.base_url else ())
        if isinstance(model.api_key, SecretStr) and not any(inherits_key(model, entry) for entry in users):
            told = (
                "nothing uses this key: no deployment without a key of its own is registered on the base_url's origin"
            )
            yield place.below("api_key"), told


def _waiting(drafts: _Drafts) -> Iterator[Remark]:
    for model, of_model in drafts.items():
        active = any(draft.waits_for is None for draft in of_model)
        for draft in of_model:
            if draft.waits_for:
                variable, place = draft.waits_for
                told = f"{variable} is not set or empty, so a deployment of {model} is inactive"
                yield place, told if active else f"{told}, and it has no other"


def _unlisted(drafts: Iterable[Draft], split: frozenset[str]) -> Iterator[Remark]:
    for draft in drafts:
        if draft.group == "unlisted" and draft.model in split and not draft.waits_for:
            told = f"routing.yaml lists {draft.model} but not at {draft.target.identity}, so this is a fallback only"
            yield draft.place, told


def _members(drafts: _Drafts, default_path: str | None) -> dict[str, tuple[Deployment, ...]]:
    flat = (draft for of_model in drafts.values() for draft in of_model)
    paths = {draft.target.identity: draft.health_path for draft in flat if draft.health_path}
    members: dict[str, tuple[Deployment, ...]] = {}
    for model, of_model in drafts.items():
        made = (_deployment(draft, paths.get(draft.target.identity, default_path)) for draft in of_model)
        members[model] = tuple(deployment for deployment in made if deployment)
    return members


def _deployment(draft: Draft, health_path: str | None) -> Deployment | None:
    """Make the deployment of a draft, unless it waits for a variable."""
    address, key = draft.target.address, draft.key
    if isinstance(address, Unset) or isinstance(key, Unset):
        return None
    return Deployment(
        model=draft.model,
        name=draft.called,
        endpoint=Endpoint(address.identity, address.health_url(health_path)),
        kind=draft.kind,
        group=draft.group,
        weight=exact(draft.weight),
        served_model=draft.served_model,
        key=key,
        urls=address.operation_urls(),
        headers=authorization(key.get_secret_value() if key else None),
        context_length=draft.context_length,
        prices=draft.prices,
    )
