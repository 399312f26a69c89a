"""What tokens cost: the prices of a deployment, in whole numbers.

Prices are written as OpenRouter writes them: US dollars per token (`request`: per request), as numbers or as text that
reads as one. They are kept as whole femtodollars (1e-15), so that a request's cost is exact, and a cost is returned in
whole nanodollars (1e-9), rounded once. Integers have the same sum in whatever order they are added: SQLite, PostgreSQL
and this process agree to the last digit, which sums of floats do not.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from msgspec import Struct

from gateway.config.prices import COUNTED

FEMTO: Final = 10**15
NANO: Final = 10**9
_ROUNDED: Final = FEMTO // NANO


Tokens = tuple[int, int, int, int]
"""What a request used: prompt and completion tokens, and the cached and the reasoning tokens among these."""


class Prices(Struct, frozen=True):
    """What a deployment charges, in femtodollars: per token of each kind, and per request.

    `cached` is the price of a prompt token read from a cache, `reasoning` that of a reasoning token.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    request: int = 0

    @classmethod
    def of(cls, pricing: Mapping[str, float | str] | None) -> "Prices | None":
        """Read a `pricing`; return None if it has none of the counted prices.

        A cached token without a price of its own costs as much as a prompt token, a reasoning token as much as a
        completion token. OpenRouter lists `internal_reasoning: "0"` for models whose reasoning is billed as completion,
        so a 0 there counts as no price.
        """
        if pricing is None or not COUNTED & pricing.keys():
            return None
        known = {name: _femto(pricing[name]) for name in COUNTED & pricing.keys()}
        prompt, completion = known.get("prompt", 0), known.get("completion", 0)
        return cls(
            prompt=prompt,
            completion=completion,
            cached=known.get("input_cache_read", prompt),
            reasoning=known.get("internal_reasoning", 0) or completion,
            request=known.get("request", 0),
        )

    def cost(self, used: Tokens) -> int:
        """Return the cost of a request with these tokens, in nanodollars."""
        return (self.request + self._femto(used) + _ROUNDED // 2) // _ROUNDED

    def costs(
        self,
        prompt: Sequence[int],
        completion: Sequence[int],
        cached: Sequence[int | None],
        reasoning: Sequence[int | None],
    ) -> list[int]:
        """Return the cost of each of several requests, as `cost` does, from the columns of their token counts."""
        read, written, fixed = self.prompt, self.completion, self.request + _ROUNDED // 2
        if not any(cached) and not any(reasoning):
            used = zip(prompt, completion, strict=True)
            return [(fixed + read * some + written * more) // _ROUNDED for some, more in used]
        every = zip(prompt, completion, cached, reasoning, strict=True)
        return [self.cost((some, more, again or 0, thought or 0)) for some, more, again, thought in every]

    def cost_of_tokens(self, used: Tokens) -> int:
        """Return the cost of these tokens without the price per request, in nanodollars."""
        return (self._femto(used) + _ROUNDED // 2) // _ROUNDED

    def _femto(self, used: Tokens) -> int:
        prompt, completion, cached, reasoning = used
        cost = prompt * self.prompt + completion * self.completion
        if cached:
            cost += cached * (self.cached - self.prompt)
        if reasoning:
            cost += reasoning * (self.reasoning - self.completion)
        return cost

    def __str__(self) -> str:
        names = ("prompt", "completion", "input_cache_read", "internal_reasoning", "request")
        values = (self.prompt, self.completion, self.cached, self.reasoning, self.request)
        charged = [f"{name} {value / FEMTO:g}" for name, value in zip(names, values, strict=True) if value]
        return ", ".join(charged) or "free"


FREE: Final = Prices()
"""The prices of a local deployment that has no pricing of its own."""


def cheapest(offers: Sequence[Prices], used: Tokens) -> int:
    """Return the lowest cost of a request with these tokens, in nanodollars; 0 without an offer."""
    if len(offers) == 1:
        return offers[0].cost(used)
    return min((prices.cost(used) for prices in offers), default=0)


def _femto(price: float | str) -> int:
    return round(Decimal(str(price)) * FEMTO)
