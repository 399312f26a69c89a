"""Strategies: how the usable deployments of a model share its traffic.

A strategy is called when a snapshot is built, never for a request. It is given the usable deployments of the two groups
and returns a weight for each; the weights are then scaled to sum to 1 (`contract.py`). A deployment that it leaves out,
or gives 0, is a fallback.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from numbers import Rational, Real
from typing import ClassVar, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from gateway.config.shown import Path
from gateway.routing.snapshot import Deployment, Selection

Weight = int | float | Fraction
Problem = tuple[Path, str]
"""The routing.yaml path to look at, and what is wrong there."""


class Strategy(Protocol):
    """What a strategy has to provide.

    A class may declare `Parameters`, a pydantic model for `routing_parameter`, and is then constructed with an
    instance of it; otherwise it is constructed without arguments and takes no parameters. It may declare `selection`:
    `random` (the default) or `smooth`.
    """

    def assign(self, local: Sequence[Deployment], remote: Sequence[Deployment]) -> Mapping[Deployment, Weight]:
        """Return the weights of one model's usable deployments; at least one of the groups is not empty."""
        ...


class StrategyError(Exception):
    """A strategy could not be made, or broke its contract."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Keep what went wrong, and where."""
        self.problems = tuple(problems)
        super().__init__("; ".join(message for _, message in self.problems))


class FixedParameters(BaseModel):
    """`routing_parameter` of `fixed`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    local_fraction: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)
    selection: Selection = "random"


class FixedRatioStrategy:
    """The local group gets `local_fraction`, the remote group the rest; inside a group traffic goes by weight."""

    Parameters: ClassVar = FixedParameters

    def __init__(self, parameters: FixedParameters) -> None:
        """Read the parameters."""
        self.selection = parameters.selection
        self._local = exact(parameters.local_fraction)

    def assign(self, local: Sequence[Deployment], remote: Sequence[Deployment]) -> Mapping[Deployment, Weight]:
        """Split between the groups; if one group has no weighted deployment, the other gets everything."""
        local_total, remote_total = (sum(deployment.weight for deployment in group) for group in (local, remote))
        fraction = self._local if local_total and remote_total else Fraction(1 if local_total else 0)
        return {
            deployment: deployment.weight * share / total
            for group, share, total in ((local, fraction, local_total), (remote, 1 - fraction, remote_total))
            for deployment in group
            if total
        }


class RoundRobinStrategy:
    """Every weighted deployment gets the same share, in turn."""

    selection: Selection = "smooth"

    def assign(self, local: Sequence[Deployment], remote: Sequence[Deployment]) -> Mapping[Deployment, Weight]:
        """Return each weighted deployment the same weight."""
        return {deployment: 1 for deployment in (*local, *remote) if deployment.weight}


BUILT_IN: Final[Mapping[str, type]] = {"fixed": FixedRatioStrategy, "round_robin": RoundRobinStrategy}
_SIMPLE: Final = 1_000_000


def exact(weight: object) -> Fraction:
    """Read a weight as the fraction that was meant: 0.6 is 3/5, and 1 / 3 is 1/3.

    A float is read as the nearest fraction with a denominator up to a million if that converts to the same float, else
    as the decimal that it is written as.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite.

    """
    if isinstance(weight, Rational):
        return Fraction(int(weight.numerator), int(weight.denominator))
    if not isinstance(weight, Real):
        raise TypeError(f"found {type(weight).__name__}, expected a number")
    return _meant(float(weight))


@lru_cache(1024)
def _meant(number: float) -> Fraction:
    """Read a float as a fraction; cached, because most weights are one of a few."""
    decimal = Fraction(str(number))
    simple = decimal.limit_denominator(_SIMPLE)
    return simple if float(simple) == number else decimal
