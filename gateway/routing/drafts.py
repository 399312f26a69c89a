"""Drafts of deployments: what the entries of both files say about each.

models.yaml registers deployments. A routing.yaml entry claims, for each model that it lists, those registered at its
endpoint, and puts them into its group; if there are none, it adds one. So a deployment is described in up to three
places, and what one leaves open the next decides: the claim, then the route entry, then the model.

Inheritance has two limits. A claimed deployment keeps the address it was registered with: the two compare equal, but
one of them may end in `/v1`. And a key stays on the origin that it was written for (RFC 6454): a route entry on another
origin does not inherit the model's key, and a deployment that a claim adds inherits none.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace
from pydantic import SecretStr

from gateway.adapters.openai_compatible import Address
from gateway.config.documents import ModelEntry, ModelsDocument, RouteEntry, RoutingDocument, SplitEntry
from gateway.config.fields import Unset
from gateway.config.shown import Path
from gateway.routing.pricing import FREE, Prices
from gateway.routing.snapshot import Group


class Place(Struct, frozen=True):
    """A place in one of the two files."""

    source: Literal["models", "routing"]
    path: Path

    def below(self, *steps: str | int) -> "Place":
        """Return the place that these steps below this one lead to."""
        return Place(self.source, (*self.path, *steps))


class Target(Struct, frozen=True):
    """An endpoint's address, or the variable that it waits for."""

    address: Address | Unset

    @classmethod
    def of(cls, url: str | Unset) -> "Target":
        """Parse a URL, unless it waits for a variable."""
        return cls(url if isinstance(url, Unset) else Address.of(url))

    @property
    def identity(self) -> str:
        """What endpoints are compared by; the text as written, not to be shown, if it waits for a variable."""
        if isinstance(self.address, Unset):
            return self.address.written.rstrip("/").removesuffix("/v1").rstrip("/")
        return self.address.identity

    @property
    def host_port(self) -> str:
        """The name of a deployment that was given none."""
        return f"${{{self.address.variable}}}" if isinstance(self.address, Unset) else self.address.host_port


class Claim(Struct, frozen=True):
    """A routing.yaml entry, for one of the models that it lists; `listed` is that model's place in the list."""

    group: Group
    entry: SplitEntry
    target: Target
    place: Place
    listed: int


Claims = Mapping[str, Mapping[str, Sequence[Claim]]]
"""All claims, by model id and endpoint identity. For a registered deployment the first counts; one is expected."""


class Draft(Struct, frozen=True):
    """A deployment in the making; `first_place` is the entry that created it, `place` the one that overrides it."""

    model: str
    target: Target
    first_place: Place
    place: Place
    target_place: Place
    kind: str
    served_model: str
    key: SecretStr | Unset | None
    key_place: Place
    weight: float = 1.0
    name: str | None = None
    health_path: str | None = None
    group: Group = "unlisted"
    context_length: int | None = None
    own_prices: Prices | None = None
    model_prices: Prices | None = None

    @property
    def prices(self) -> Prices | None:
        """What it costs: its own pricing, else nothing if it is local, else the model's pricing."""
        return self.own_prices or (FREE if self.group == "local" else self.model_prices)

    @property
    def called(self) -> str:
        """Its name, unique among the active deployments of its model."""
        return self.name or self.target.host_port

    @property
    def waits_for(self) -> tuple[str, Place] | None:
        """The unset variable that keeps the deployment inactive, and the place that names it."""
        if isinstance(self.target.address, Unset):
            return self.target.address.variable, self.target_place
        return (self.key.variable, self.key_place) if isinstance(self.key, Unset) else None


def claims_of(models: ModelsDocument, routing: RoutingDocument) -> Claims:
    """Collect the claims of routing.yaml, local entries first."""
    found: defaultdict[str, defaultdict[str, list[Claim]]] = defaultdict(lambda: defaultdict(list))
    ids = {name: model.id for model in models.models for name in (model.id, *model.aliases)}
    for claim, name in _claims(routing):
        found[ids[name]][claim.target.identity].append(claim)
    return found


def _claims(routing: RoutingDocument) -> Iterator[tuple[Claim, str]]:
    groups: tuple[tuple[Group, tuple[SplitEntry, ...]], ...] = (
        ("local", routing.local_deployment),
        ("remote", routing.remote_deployment),
    )
    for group, entries in groups:
        for position, entry in enumerate(entries):
            target, place = Target.of(entry.endpoint), Place("routing", (f"{group}_deployment", position))
            for listed, name in enumerate(entry.models):
                yield Claim(group, entry, target, place, listed), name


def drafts_of(model: ModelEntry, place: Place, claims: Mapping[str, Sequence[Claim]]) -> tuple[Draft, ...]:
    """Draft a model's deployments in the order written: those it registers, then those that claims add."""
    registered = tuple(_registered(model, place))
    known = {draft.target.identity for draft in registered}
    return (
        *(_claimed(draft, claims.get(draft.target.identity, ())) for draft in registered),
        *(_added(model, one) for identity, found in claims.items() if identity not in known for one in _keyed(found)),
    )


def _keyed(claims: Sequence[Claim]) -> Iterable[Claim]:
    """Return the first claim for each key: another key makes another deployment of the same model and endpoint."""
    found: dict[object, Claim] = {}
    for claim in claims:
        found.setdefault(claim.entry.api_key, claim)
    return found.values()


def _registered(model: ModelEntry, place: Place) -> Iterator[Draft]:
    entries = [(entry, place.below("route", position)) for position, entry in enumerate(model.route or ())]
    for entry, at in entries or [(RouteEntry(), place)]:
        url = entry.base_url or model.base_url
        if url is not None:
            owner = at if entry.base_url else place
            draft = _draft(model, Target.of(url), at, owner.below("base_url"))
            if inherits_key(model, entry):
                draft = replace(draft, key=model.api_key, key_place=place.below("api_key"))
            yield replace(draft, **_said(entry, at))


def inherits_key(model: ModelEntry, entry: RouteEntry) -> bool:
    """Return whether a route entry inherits the model's key: it has none of its own and is on the same origin."""
    if entry.api_key is not None:
        return False
    if entry.base_url is None:
        return True
    if not isinstance(entry.base_url, str) or not isinstance(model.base_url, str):
        return False
    return Address.of(entry.base_url).origin == Address.of(model.base_url).origin


def _claimed(draft: Draft, claims: Sequence[Claim]) -> Draft:
    if not claims:
        return draft
    claim = claims[0]
    return replace(draft, group=claim.group, place=claim.place, **_said(claim.entry, claim.place))


def _added(model: ModelEntry, claim: Claim) -> Draft:
    draft = _draft(model, claim.target, claim.place, claim.place.below("endpoint"))
    return replace(draft, group=claim.group, **_said(claim.entry, claim.place))


def _draft(model: ModelEntry, target: Target, place: Place, target_place: Place) -> Draft:
    """Draft a deployment from the model alone, without its key."""
    return Draft(
        model=model.id,
        target=target,
        first_place=place,
        place=place,
        target_place=target_place,
        kind=model.provider,
        served_model=model.provider_model_id or model.id,
        key=None,
        key_place=place,
        context_length=model.context_length,
        model_prices=Prices.of(model.pricing),
    )


def _said(entry: RouteEntry | SplitEntry, place: Place) -> dict[str, Any]:
    """Return the values that an entry itself sets, by the draft's fields."""
    fields = {
        "kind": entry.kind,
        "served_model": entry.provider_model_id,
        "key": entry.api_key,
        "key_place": None if entry.api_key is None else place.below("api_key"),
        "weight": entry.weight,
        "name": entry.name,
        "health_path": entry.health_path,
        "own_prices": Prices.of(entry.pricing),
    }
    return {name: value for name, value in fields.items() if value is not None}
