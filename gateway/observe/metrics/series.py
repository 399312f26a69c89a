"""The counts of one subject, and how long they are kept.

Counters outlive a configuration: a series is kept for as long as its subject is configured, and for an hour after. A
subject that comes back within the hour continues where it was; one that comes back later starts at zero, which
Prometheus takes for a restart.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import accumulate, repeat
from typing import Final, Generic, TypeVar

from msgspec import Struct

from gateway.observe.metrics.families import DURATION, FIRST_TOKEN, NONE, ONE, SPEED, Family
from gateway.observe.metrics.text import labelled

KEPT: Final = 3600.0
"""Seconds that a series is kept after its subject was removed."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Key = tuple[str, str, str]
"""A deployment's model, name and group; or a model, `none` and `none`, for its requests that no deployment answered."""


class Comparison(Struct, Generic[K, V], frozen=True):
    """The keys configured `before` and `now`; those that are `new`, with their values, and those that are `gone`."""

    before: frozenset[K]
    now: frozenset[K]
    new: Mapping[K, V]
    gone: Sequence[K]


class Kept(dict[K, V], Generic[K, V]):
    """Values by key, made on first use.

    Mutable besides the values: the keys that are configured, and since when each of the others is not.
    """

    def __init__(self, make: Callable[[K], V], clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        super().__init__()
        self._make = make
        self._clock = clock
        self._configured: frozenset[K] = frozenset()
        self._gone: dict[K, float] = {}

    def __missing__(self, key: K) -> V:
        made = self[key] = self._make(key)
        self._gone[key] = self._clock()  # a configured key is never missing
        return made

    def compare(self, configured: Iterable[K]) -> Comparison[K, V]:
        """Work out, in any thread, what is new and what is gone if these keys are configured."""
        wanted = dict.fromkeys(configured)
        new = [key for key in wanted if key not in self._configured]
        return Comparison(
            before=self._configured,
            now=frozenset(wanted),
            new={key: self._make(key) for key in new},
            gone=[key for key in self._configured if key not in wanted],
        )

    def follow(self, comparison: Comparison[K, V]) -> None:
        """Keep the keys that are now configured, and the others for an hour."""
        if comparison.before is not self._configured:
            comparison = self.compare(comparison.now)
        now = self._clock()
        self._configured = comparison.now
        self._gone |= dict.fromkeys(comparison.gone, now)
        for key, made in comparison.new.items():
            self._gone.pop(key, None)
            self.setdefault(key, made)

    def is_gone(self, key: K) -> bool:
        """Return whether a key is no longer configured."""
        return key in self._gone

    def forget(self) -> bool:
        """Drop what has been gone for an hour; return whether there was any."""
        now = self._clock()
        over = [key for key, since in self._gone.items() if now - since >= KEPT]
        for key in over:
            del self[key], self._gone[key]
        return bool(over)


class Histogram:
    """Counts values by the bucket they fall into, and sums them."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, family: Family) -> None:
        """Start at zero."""
        self._bounds = family.bounds
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def __bool__(self) -> bool:
        return any(self._counts)

    def observe(self, value: float) -> None:
        """Count a value; a bucket includes its upper bound."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: list[float]) -> None:
        """Count values, whose order may be changed: many values are sorted, and the bounds are looked up in them."""
        if len(values) <= len(self._bounds):
            counts = self._counts
            for place in map(bisect_left, repeat(self._bounds), values):
                counts[place] += 1
            self._sum += sum(values)
            return
        values.sort()
        below = 0
        for place, bound in enumerate(self._bounds):
            upto = bisect_right(values, bound, below)
            self._counts[place] += upto - below
            below = upto
        self._counts[-1] += len(values) - below
        self._sum += sum(values)

    def text(self, family: Family, labels: str) -> str:
        """Return its lines."""
        name, comma = family.name, "," if labels else ""
        sums = tuple(accumulate(self._counts))
        buckets = [
            f'{name}_bucket{{{labels}{comma}le="{bound}"}} {below}\n'
            for bound, below in zip((*self._bounds, "+Inf"), sums, strict=True)
        ]
        braced = f"{{{labels}}}" if labels else ""
        return f"{''.join(buckets)}{name}_count{braced} {sums[-1]}\n{name}_sum{braced} {self._sum}\n"


class Series:
    """The counts of one deployment, or of a model's requests that no deployment answered.

    `labels` are written once. The numbers only grow. `plain` counts requests of one attempt that were answered with a
    2xx and are counted one by one: they are in neither `requests` nor `attempts`.
    """

    __slots__ = (
        "attempts",
        "cached",
        "completion",
        "duration",
        "failed",
        "fallbacks",
        "first_token",
        "key",
        "labels",
        "lost",
        "malformed",
        "plain",
        "prompt",
        "reasoning",
        "requests",
        "rescues",
        "speed",
    )

    def __init__(self, key: Key) -> None:
        """Start at zero."""
        self.key = key
        self.labels = labelled(ONE, key)
        self.requests: dict[str, int] = defaultdict(int)
        self.failed: dict[tuple[str, str], int] = defaultdict(int)
        self.attempts: dict[str, int] = defaultdict(int)
        self.rescues: dict[tuple[str, str], int] = defaultdict(int)
        self.fallbacks: dict[tuple[str, str, str], int] = defaultdict(int)
        self.lost: dict[str, int] = defaultdict(int)
        self.plain = 0
        self.malformed = 0
        self.prompt = 0
        self.completion = 0
        self.cached = 0
        self.reasoning = 0
        self.first_token = Histogram(FIRST_TOKEN)
        self.duration = Histogram(DURATION)
        self.speed = Histogram(SPEED)
        if self.is_deployment:
            self.requests["2xx"] = self.attempts["ok"] = 0  # rate() misses a first request that has no 0 before it

    @property
    def is_deployment(self) -> bool:
        """Whether it is about a deployment; a group is never called `none`, a deployment may be."""
        return self.key[2] != NONE
