"""`gateway stats`: ask a running gateway for the statistics of its ledger, and print them as a table."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode

from gateway.asking import UnreachableError, ask, printable

_SECONDS: Final = 60.0
_MOST: Final = 16 << 20
_LEAST: Final = 0.000001
_LONG: Final = 9_999_500
"""The milliseconds from which four significant digits do not show whole seconds."""
_NARROWED: Final = ("model", "deployment", "client")
_FIELDS: Final = frozenset({"hours", "until", *_NARROWED, "total", "models", "deployments", "clients", "ledger"})

Numbers = Mapping[str, Any]


def fetch(url: str, question: Mapping[str, str | None]) -> Numbers:
    """Ask the gateway at a URL; `question` holds the parameters of `/stats`. Blocking.

    Raises:
        UnreachableError: it cannot be reached, or refuses.

    """
    told = {name: value for name, value in question.items() if value is not None}
    asked = urlencode(told, errors="surrogateescape")  # as given on the command line
    try:
        body = ask(f"{url.rstrip('/')}/stats?{asked}", _SECONDS, _MOST)
    except HTTPError as error:
        with error:
            raise UnreachableError(_refusal(error, url)) from None
    return _object(body, url)


def table(answer: Numbers) -> str:
    """Return an answer of `/stats` as a table of text."""
    about = [f"{name} {answer[name]}" for name in _NARROWED if answer[name] is not None]
    heading = ", ".join((f"{answer['hours']:g} h until {answer['until']}", *about))
    blank = ("", *[""] * len(_COLUMNS))
    rows = [("", *_COLUMNS), ("all", *_cells(answer["total"])), blank]
    rows += [(group["model"] or "(no such model)", *_cells(group)) for group in answer["models"]]
    rows += [blank, *((_called(each), *_cells(each)) for each in answer["deployments"])]
    if answer["clients"]:
        rows += [blank, *((each["client"], *_cells(each)) for each in answer["clients"])]
    return "\n".join(map(printable, (heading, "", *_aligned(rows), *_notes(answer))))


def _called(of: Numbers) -> str:
    return f"{of['model']}/{of['deployment']} ({of['group']})"


def _percent(share: float) -> str:
    return f"{share:.2%}" if share else "0%"


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    if milliseconds >= _LONG:
        return f"{milliseconds / 1000:.0f} s"
    return f"{milliseconds:.3g} ms" if milliseconds < 999.5 else f"{milliseconds / 1000:.4g} s"  # noqa: PLR2004 - to 1 s


def _money(numbers: Numbers, name: str) -> str:
    if numbers["requests"] and numbers["cost_unknown"] == numbers["requests"]:
        return "unknown"
    return _usd(numbers[name])


def _usd(amount: float) -> str:
    if not amount:
        return "0"
    return f"{amount:.2f}" if amount >= 1 else "<0.000001" if amount < _LEAST else f"{amount:.6f}"


_COLUMNS: Final[Mapping[str, Callable[[Numbers], str]]] = {
    "requests": lambda of: f"{of['requests']}",
    "errors": lambda of: f"{of['errors']}",
    "rate": lambda of: _percent(of["error_rate"]),
    "fallbacks": lambda of: f"{of['fallbacks']}",
    "ttft p50": lambda of: _time(of["ttft_ms"]["p50"]),
    "p99": lambda of: _time(of["ttft_ms"]["p99"]),
    "duration p50": lambda of: _time(of["duration_ms"]["p50"]),
    "p99 ": lambda of: _time(of["duration_ms"]["p99"]),
    "prompt": lambda of: f"{of['prompt_tokens']}",
    "completion": lambda of: f"{of['completion_tokens']}",
    "cost USD": lambda of: _money(of, "cost_usd"),
    "avoided USD": lambda of: _money(of, "avoided_usd"),
}


def _cells(numbers: Numbers) -> Iterator[str]:
    return (of(numbers) for of in _COLUMNS.values())


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        shown = (cell.strip().rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join((name.ljust(widths[0]), *shown)).rstrip()


def _notes(answer: Numbers) -> Iterator[str]:
    """Yield notes on what the numbers leave out."""
    unknown, ledger = answer["total"]["cost_unknown"], answer["ledger"]
    notes = {
        f"{unknown} requests have no known cost: their deployment has no pricing, or reported no tokens": unknown,
        f"{ledger['waiting']} rows wait to be written": ledger["waiting"],
        f"{ledger['dropped']} rows were dropped since the gateway started": ledger["dropped"],
    }
    told = [note for note, applies in notes.items() if applies]
    yield from ("", *told) if told else ()


def _object(body: bytes, url: str) -> Numbers:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not answer.keys() >= _FIELDS:
        raise UnreachableError(f"{url} is not a gateway: it answers something else")
    return answer


def _refusal(error: HTTPError, url: str) -> str:
    """Return the gateway's message about a refusal, if the answer has one."""
    try:
        return printable(str(json.loads(error.read(_MOST))["error"]["message"]))
    except (ValueError, LookupError, TypeError, OSError, HTTPException, RecursionError):
        return f"{url} answers {error.code}, expected a gateway there"
