"""What requests cost, and what they would have cost elsewhere.

A request is charged to the deployment that answered it (`Outcome.answered`), at the prices in force when it ends.
Tokens that a broken stream took beyond the answer are charged to the deployment where it broke. `avoided` is what the
answer's tokens would have cost at the cheapest remote deployment of that model, if the one that answered is not itself
remote; lost tokens avoid nothing.

A cost is unknown if the deployment has no known price, or if it has one and the upstream reported no tokens. A request
that an upstream refused costs nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise, repeat
from operator import attrgetter
from typing import Final

from msgspec import Struct

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Alike, Batch, Column, Columns, Mixed
from gateway.observe.metrics.series import Key
from gateway.routing.pricing import FREE, NANO, Prices, Tokens, cheapest
from gateway.routing.snapshot import Catalogue, Identity, Snapshot


class Cost(Struct, frozen=True, gc=False):
    """What was spent on a request, and what was avoided, in nanodollars: billionths of a US dollar."""

    spent: int = 0
    avoided: int = 0


NOTHING: Final = Cost()
MOST_NANO: Final = 10**15
"""A million dollars, more than any request costs: costs are capped here, so that sums fit a database."""
_BAD: Final = 400
_LEFT: Final = 499


class _Tariff(Struct, frozen=True):
    """A deployment's prices, and those of the remote deployments that could have answered in its place."""

    prices: Prices | None
    elsewhere: tuple[Prices, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether its price is known, and its answers can cost or avoid anything."""
        return self.prices is not None and (self.prices != FREE or bool(self.elsewhere))


_UNKNOWN: Final = _Tariff(None)


class _Ready(Struct, frozen=True):
    """A catalogue's tariffs `now`, those `before` it, and `both` merged; `priced` names those of `now` that count."""

    catalogue: Catalogue | None
    before: dict[Identity, _Tariff]
    now: dict[Identity, _Tariff]
    both: dict[Identity, _Tariff]
    priced: tuple[Key, ...] = ()


class Costs:
    """The observer that works out costs and adds them up, by deployment and group, since the process began.

    It comes before the observers that need a request's cost: it writes costs into the batch. Mutable: the totals, and
    the tariffs of the configuration in force; those of the previous one serve requests under way.
    """

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        """Start without prices. `settle` is called before totals are read: it delivers the requests that wait."""
        self._settle = settle
        self._tariffs: dict[Identity, _Tariff] = {}
        self._current: dict[Identity, _Tariff] = {}
        self._ready = _Ready(None, self._current, {}, {})
        self._priced: tuple[Key, ...] = ()
        self._spent: dict[Key, int] = {}
        self._avoided: dict[Key, int] = {}

    def prepare(self, catalogue: Catalogue) -> None:
        """Work out, in any thread, the tariffs of a configuration before it is adopted."""
        before, now = self._current, dict(_tariffs(catalogue))
        priced = ((each, now[each.identity]) for each in catalogue.deployments.values())
        keys = tuple((each.model, each.name, each.group) for each, tariff in priced if tariff.counts)
        self._ready = _Ready(catalogue, before, now, before | now, keys)

    def adopt(self, snapshot: Snapshot) -> None:
        """Switch to a configuration's prices."""
        if self._ready.catalogue is not snapshot.catalogue or self._ready.before is not self._current:
            self.prepare(snapshot.catalogue)
        self._current, self._tariffs, self._priced = self._ready.now, self._ready.both, self._ready.priced

    def take(self, batch: Batch) -> None:
        """Count finished requests, and write into the batch what each cost."""
        for alike in batch.alike:
            if _BAD <= alike.status < _LEFT:
                alike.spent = alike.avoided = (0,) * len(alike.places)
            else:
                self._take_alike(alike)
        for mixed in batch.mixed:
            if _BAD <= mixed.status < _LEFT:
                mixed.spent = mixed.avoided = (0,) * len(mixed.places)
            else:
                self._take_mixed(mixed)
        batch.odd_costs = [self.count(outcome) for _, outcome in batch.odd]

    def count(self, outcome: Outcome) -> Cost | None:
        """Count a finished request; return what it cost, or None if that is unknown."""
        cost = self.cost_of(outcome)
        if cost is not None and (cost.spent or cost.avoided):
            if cost.spent > MOST_NANO or cost.avoided > MOST_NANO:
                cost = Cost(min(cost.spent, MOST_NANO), min(cost.avoided, MOST_NANO))
            lost = min(self._lost(outcome), cost.spent) if outcome.lost is not None else 0
            if lost:
                self._add(_key(_broken(outcome)), lost, 0)
            if cost.spent > lost or cost.avoided:
                self._add(_key(outcome.answered or outcome.attempts[-1]), cost.spent - lost, cost.avoided)
        return cost

    def _take_alike(self, alike: Alike) -> None:
        identity = alike.model, alike.deployment
        spent, avoided = _spend(alike, *_answers(self._tariffs.get(identity, _UNKNOWN), alike))
        if spent or avoided:
            self._add((*identity, alike.group), spent, avoided)

    def _take_mixed(self, mixed: Mixed) -> None:
        known = self._tariffs
        tariffs = [*map(known.get, mixed.identities, repeat(_UNKNOWN))]
        is_one = len(set(map(id, tariffs))) == 1
        if any(_spend(mixed, *(_answers(tariffs[0], mixed) if is_one else _each(tariffs, mixed)))):
            for attempt, spent, avoided in zip(mixed.attempts, mixed.spent, mixed.avoided, strict=True):
                if spent or avoided:
                    self._add(_key(attempt), spent or 0, avoided or 0)

    def _add(self, key: Key, spent: int, avoided: int) -> None:
        self._spent[key] = self._spent.get(key, 0) + spent
        self._avoided[key] = self._avoided.get(key, 0) + avoided

    def cost_of(self, outcome: Outcome) -> Cost | None:
        """Return what a request cost, or None if that is unknown."""
        answered = outcome.answered
        if answered is None or _BAD <= outcome.status < _LEFT:
            return Cost(self._lost(outcome)) if outcome.lost is not None else NOTHING
        tariff = self._tariffs.get((answered.model, answered.deployment), _UNKNOWN)
        cost = _answer(tariff, tokens(outcome.usage))
        if cost is None or outcome.lost is None:
            return cost
        return Cost(cost.spent + self._lost(outcome), cost.avoided)

    @property
    def totals(self) -> Mapping[Key, Cost]:
        """What each deployment has cost and avoided in its group since the process began, as far as it is known.

        Configured deployments that have a price, or can avoid one, are included from the start.
        """
        self._settle()
        counted = {each: Cost(spent, self._avoided[each]) for each, spent in self._spent.items()}
        return dict.fromkeys(self._priced, NOTHING) | counted

    def money(self) -> Mapping[str, float] | None:
        """Return what was `spent` and `avoided` since the process began, in USD; None while nothing has a price."""
        self._settle()
        if not self._spent and all(tariff.prices in (None, FREE) for tariff in self._current.values()):
            return None
        totals = {"spent": self._spent, "avoided": self._avoided}
        return {name: sum(total.values()) / NANO for name, total in totals.items()}

    def _lost(self, outcome: Outcome) -> int:
        """Price the lost tokens at the deployment that lost them."""
        used = tokens(outcome.lost)
        if used is None or not outcome.attempts:
            return 0
        broken = _broken(outcome)
        prices = self._tariffs.get((broken.model, broken.deployment), _UNKNOWN).prices
        return prices.cost_of_tokens(used) if prices is not None else 0


def _key(attempt: Attempt) -> Key:
    return attempt.model, attempt.deployment, attempt.group


def _broken(outcome: Outcome) -> Attempt:
    """Return the attempt whose stream broke first: the one before the attempt that took over, or the last."""
    return next((one for one, other in pairwise(outcome.attempts) if other.rescue), outcome.attempts[-1])


def _answer(tariff: _Tariff, used: Tokens | None) -> Cost | None:
    """Return what an answer costs, without the tokens lost on the way to it."""
    spent = _paid(tariff.prices, used)
    if spent is None:
        return None
    avoided = cheapest(tariff.elsewhere, used) if used is not None and tariff.elsewhere else 0
    return Cost(spent, avoided) if spent or avoided else NOTHING


def _answers(tariff: _Tariff, plain: Columns) -> tuple[Column, Column]:
    """Return what each of these answers costs and avoids, as `_answer` does."""
    number = len(plain.places)
    if tariff.prices is None:
        return (None,) * number, (None,) * number
    if tariff.prices is FREE and not tariff.elsewhere:
        return (0,) * number, (0,) * number
    used = plain.used
    if used is None:
        return _each([tariff] * number, plain)
    spent = (0,) * number if tariff.prices is FREE else tariff.prices.costs(*used)
    offers = [prices.costs(*used) for prices in tariff.elsewhere] or [[0] * number]
    return spent, offers[0] if len(offers) == 1 else list(map(min, *offers))


def _each(tariffs: Sequence[_Tariff], plain: Columns) -> tuple[Column, Column]:
    """Return what each of these answers costs and avoids by its own tariff, as `_answer` does."""
    columns = plain.prompt, plain.completion, plain.cached, plain.reasoning
    used = (tokens(Usage(*counts)) for counts in zip(*columns, strict=True))
    each = [_answer(tariff, some) for tariff, some in zip(tariffs, used, strict=True)]
    return [cost.spent if cost else None for cost in each], [cost.avoided if cost else None for cost in each]


def _spend(plain: Columns, spent: Column, avoided: Column) -> tuple[int, int]:
    """Store what each request cost and avoided, within bounds; return the sums."""
    sums = sum(filter(None, spent)), sum(filter(None, avoided))
    if max(sums) > MOST_NANO:
        spent, avoided = _bounded(spent), _bounded(avoided)
        sums = sum(filter(None, spent)), sum(filter(None, avoided))
    plain.spent, plain.avoided = spent, avoided
    return sums


def _bounded(costs: Column) -> Column:
    return [cost and min(cost, MOST_NANO) for cost in costs]


def tokens(usage: Usage | None) -> Tokens | None:
    """Return the upstream's counts, no part above its whole; None if it reported neither prompt nor completion."""
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    cached, reasoning = usage.cached_tokens or 0, usage.reasoning_tokens or 0
    return prompt, completion, min(cached, prompt), min(reasoning, completion)


def _paid(prices: Prices | None, used: Tokens | None) -> int | None:
    if prices is FREE:
        return 0
    if prices is None:
        return None
    if used is not None:
        return prices.cost(used)
    return 0 if prices == FREE else None


def _tariffs(catalogue: Catalogue) -> Iterator[tuple[Identity, _Tariff]]:
    """Yield each deployment's tariff; deployments of a model that charge the same share one."""
    for _, deployments in groupby(catalogue.deployments.values(), attrgetter("model")):
        chain = tuple(deployments)
        remote = {each.prices: None for each in chain if each.group == "remote"}
        offers = tuple(prices for prices in remote if prices is not None)
        known: dict[tuple[Prices | None, bool], _Tariff] = {}
        for deployment in chain:
            key = deployment.prices, deployment.group == "remote"
            if key not in known:
                known[key] = _Tariff(deployment.prices, () if key[1] else offers)
            yield deployment.identity, known[key]
