"""`gateway check --diff`: ask the running gateway for its plan, and print what a save would change."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TextIO
from urllib.error import HTTPError

import msgspec

from gateway.api.plan import PATH, InForce
from gateway.asking import UnreachableError, ask, printable
from gateway.routing.diff import Change, Diff
from gateway.routing.plan import Plan

_TIMEOUT: Final = 5.0
_LARGEST: Final = 256 << 20
_COLOURS: Final = {"+": "\x1b[32m", "-": "\x1b[31m", "~": "\x1b[33m"}
_PLAIN: Final = "\x1b[0m"
_SIGNS: Final = {
    "models_added": "+",
    "models_removed": "-",
    "deployments_added": "+",
    "deployments_removed": "-",
}


def in_force(url: str) -> InForce:
    """Ask the gateway at `url` for its plan. Blocking.

    Raises:
        UnreachableError: there is no gateway, or its answer is not a plan.

    """
    address = url.rstrip("/") + PATH
    try:
        return msgspec.json.decode(ask(address, _TIMEOUT, _LARGEST), type=InForce)
    except HTTPError as error:
        error.close()
        raise UnreachableError(f"{address}: status {error.code}, expected the plan of a gateway") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreachableError(f"{address}: the answer is not the plan of a gateway of this version") from error


def as_json(url: str, found: InForce, changes: Diff, built: Plan) -> dict[str, object]:
    """Return the comparison ready for JSON; `changes` are those that a reload would log."""
    return {
        "faults": [],
        "warnings": [notice.as_dict() for notice in built.notices],
        "running": {"url": url, "generation": found.generation, "hash": found.hash},
        "changes": changes.as_dict(),
    }


def as_text(url: str, found: InForce, changes: Diff, built: Plan, *, colour: bool) -> str:
    """Return the comparison as text, model by model, with a line for each deployment that changes."""
    warnings = [f"warning: {notice}" for notice in built.notices]
    blocks = [line for group in _grouped(changes.changes) for line in _block(group)]
    lines = [_coloured(line) if colour else line for line in map(printable, blocks)]
    parts = changes.as_dict()
    number = len(changes.changes)
    count = f"{number or 'no'} change{'' if number == 1 else 's'}"
    where = f"generation {found.generation} at {url}" if found.plan else f"{url}, which has no configuration yet"
    end = [f"{count} to {where}; keys are not compared"]
    if {"inactive", "active"} & parts.keys() or any(line.startswith("clients:") for line in parts.get("settings", ())):
        end.append("variables are those of this shell and the .env: the gateway's own may differ")
    return "\n\n".join("\n".join(block) for block in (warnings, lines, end) if block)


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether to colour the output to a stream (https://no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _grouped(changes: Iterable[Change]) -> Iterable[list[Change]]:
    """Return the changes grouped by model, with the settings last."""
    groups: dict[str | None, list[Change]] = {}
    for change in changes:
        groups.setdefault(change.model, []).append(change)
    settings = groups.pop(None, None)
    return [*groups.values(), *([settings] if settings else ())]


def _block(changes: list[Change]) -> Iterator[str]:
    """Yield the lines for the changes of one model, or of the settings."""
    whole = next(
        (_SIGNS[change.part] for change in changes if change.part.startswith("models_") and not change.text), " "
    )
    yield f"{whole} {'settings' if changes[0].model is None else changes[0].model}"
    rows: dict[str | None, list[Change]] = {}
    for change in changes:
        rows.setdefault(change.deployment, []).append(change)
    for change in rows.pop(None, ()):
        if change.text:
            yield f"    ~ {change.text}"
    width = max(map(len, filter(None, rows)), default=0)
    for name, row in rows.items():
        sign = next((_SIGNS[change.part] for change in row if change.part in _SIGNS), "~")
        texts = (f"weight {change.text}" if change.part == "weights" else change.text for change in row)
        yield f"    {sign} {(name or '').ljust(width)}  {', '.join(filter(None, texts))}".rstrip()


def _coloured(line: str) -> str:
    colour = _COLOURS.get(line.strip()[:1] if line[0] == " " else line[0])
    return f"{colour}{line}{_PLAIN}" if colour else line
