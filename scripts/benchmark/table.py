"""The arithmetic of the table, and how it is printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

REFERENCE: Final = "nginx"
_DIGITS: Final = 3


@dataclass(frozen=True, slots=True)
class Measure:
    """A section of the table: its rows by subject, each with its figures by column."""

    name: str
    title: str
    rows: Mapping[str, Mapping[str, float]]
    ratio_of: str | None = None
    """The column whose ratio to nginx's is shown."""

    def columns(self) -> list[str]:
        """Return every column that any row has, in order."""
        return list(dict.fromkeys(column for row in self.rows.values() for column in row))


def per(seconds: float, count: float) -> float:
    """Return microseconds per item."""
    return seconds * 1e6 / count if count else float("nan")


def with_ratio(measure: Measure) -> Measure:
    """Add the ratio of one column to nginx's, if nginx was measured."""
    column = measure.ratio_of
    reference = measure.rows.get(REFERENCE, {}).get(column or "")
    if column is None or not reference:
        return measure
    rows = {name: _after(row, column, row[column] / reference) for name, row in measure.rows.items() if column in row}
    return Measure(measure.name, measure.title, rows, column)


def _after(row: Mapping[str, float], column: str, ratio: float) -> dict[str, float]:
    added: dict[str, float] = {}
    for name, value in row.items():
        added[name] = value
        if name == column:
            added[f"x {REFERENCE}"] = ratio
    return added


def medians(rounds: Sequence[Measure]) -> Measure:
    """Merge several rounds of one measure: the median of each figure. A row may be missing in a round."""
    first = rounds[0]
    rows: dict[str, dict[str, float]] = {}
    for subject in dict.fromkeys(subject for measure in rounds for subject in measure.rows):
        found = [measure.rows[subject] for measure in rounds if subject in measure.rows]
        columns = dict.fromkeys(column for row in found for column in row)
        rows[subject] = {column: median(row[column] for row in found if column in row) for column in columns}
    return Measure(first.name, first.title, rows, first.ratio_of)


def shown(value: float) -> str:
    """Write a figure with three significant digits, from 100 on as a whole number."""
    if value != value:  # noqa: PLR0124 - a NaN
        return "-"
    if abs(value) >= 10 ** (_DIGITS - 1):
        return f"{value:,.0f}"
    return f"{value:.{_DIGITS}g}"


def render(measure: Measure) -> str:
    """Return a section as text."""
    columns = measure.columns()
    lines = [["", *columns]]
    lines += [[name, *(shown(row[c]) if c in row else "" for c in columns)] for name, row in measure.rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = [measure.title]
    for subject, *cells in lines:
        filled = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        printed.append("  ".join(["  " + subject.ljust(widths[0]), *filled]).rstrip())
    return "\n".join(printed)
