"""The text formats of Prometheus (0.0.4) and OpenMetrics (1.0.0), line by line.

prometheus-client writes both, but its version 0.26 takes 4.8 and 8.1 us a line, where this takes 0.2; a thousand models
on four deployments each make a quarter of a million lines. Its registry is still the way to add what is not the
gateway's.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gateway.observe.metrics.families import Family

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_VERSIONS: Final = frozenset({"", "0.0.1", "1.0.0"})
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_LONGEST_ACCEPT: Final = 4096
_SLICE: Final = 1 << 16
_PARTS: Final = 2_000

Told = tuple[Family, Iterable[str]]
"""A metric and its lines; one text may hold several."""


def wants_openmetrics(accept: Sequence[str]) -> bool:
    """Return whether Accept fields (RFC 9110 12.5.1) name OpenMetrics and do not prefer the older text format.

    Of fields longer than any client sends, only the beginning counts: a head may hold four million commas.
    """
    openmetrics, plain = 0.0, 0.0
    for item in ",".join(accept)[:_LONGEST_ACCEPT].split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        named = dict(parameter.partition("=")[::2] for parameter in parameters)
        quality = _quality(named.get("q", "1"))
        if kind == "application/openmetrics-text" and named.get("version", "") in _VERSIONS:
            openmetrics = max(openmetrics, quality)
        elif kind == "text/plain":
            plain = max(plain, quality)
    return openmetrics > 0 and openmetrics >= plain


def _quality(written: str) -> float:
    try:
        return float(written)
    except ValueError:
        return 0.0


def labelled(names: Iterable[str], values: Iterable[str]) -> str:
    """Write labels, without their braces."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True))


def line(family: Family, labels: str, value: float) -> str:
    """Write a line of a metric that is not a histogram."""
    return f"{family.name}{{{labels}}} {value}\n" if labels else f"{family.name} {value}\n"


def head(family: Family, *, openmetrics: bool) -> str:
    """Write the HELP and TYPE lines of a metric."""
    name, kind = family.name, family.kind
    if openmetrics:
        name = name.removesuffix("_total" if kind == "counter" else "_info" if kind == "info" else "")
    elif kind == "info":
        kind = "gauge"
    return f"# HELP {name} {family.tells}\n# TYPE {name} {kind}\n"


def slices(told: Iterable[Told], rest: bytes, *, openmetrics: bool) -> Iterator[bytes]:
    """Yield everything in slices; `rest` is the registry's own text, which ends as the format requires."""
    parts: list[str] = []
    size = 0
    for family, lines in told:
        parts.append(head(family, openmetrics=openmetrics))
        for text in lines:
            parts.append(text)
            size += len(text)
            if size >= _SLICE or len(parts) >= _PARTS:
                yield _encoded(parts)
                parts, size = [], 0
    yield _encoded(parts) + rest


def _encoded(parts: Iterable[str]) -> bytes:
    return "".join(parts).encode("utf-8", "replace")
