"""Plain (unquoted) YAML scalars, read by the core schema of YAML 1.2.2 (section 10.3.2).

A scalar that YAML 1.1 and 1.2 read differently is a surprise: its author may have meant either.
"""

import math
import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""What UTF-8 text cannot hold; an escape in YAML, or bytes in the environment, can produce one."""

Scalar = bool | int | float | str | None

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_DECIMAL = re.compile(r"[-+]?[0-9]+", re.ASCII)
_OCTAL = re.compile(r"0o[0-7]+", re.ASCII)
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_INFINITY = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})

_LONGEST_NUMBER = 40
_LARGEST_INTEGER = 2**63 - 1

_SURPRISES = (
    (
        re.compile(r"(?i:yes|no|on|off|y|n)"),
        "which YAML 1.1 reads as true or false and YAML 1.2 as text: write true or false, or quote it",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", re.ASCII),
        "which YAML 1.1 reads as a number in base 60: quote it",
    ),
    (
        re.compile(r"[-+]?0[0-9_]+", re.ASCII),
        "which YAML 1.1 reads as octal and YAML 1.2 as decimal: quote it, or leave out the leading zero",
    ),
    (
        re.compile(r"[-+]?0b[01_]+", re.ASCII),
        "which YAML 1.1 reads as binary and YAML 1.2 as text: quote it, or write it as decimal",
    ),
    (
        re.compile(r"[-+]0x[0-9a-fA-F_]+", re.ASCII),
        "which YAML 1.1 reads as hexadecimal and YAML 1.2 as text: quote it, or write it as decimal",
    ),
    (
        re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t]+[0-9]{1,2}:[0-9]{2}:[0-9]{2}.*)?", re.ASCII),
        "which YAML 1.1 reads as a date: quote it",
    ),
    (
        re.compile(
            r"(?=[^_]*_)([-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9_]+)([eE][-+]?[0-9]+)?|0x[0-9a-fA-F_]+)", re.ASCII
        ),
        "which YAML 1.1 reads as a number and YAML 1.2 as text: leave out the underscores, or quote it",
    ),
)


def resolve(text: str) -> Scalar:
    """Return a plain scalar's value; a number too large for a double, or an integer of over 40 digits, is infinite."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _DECIMAL.fullmatch(text):
        return int(text) if len(text) <= _LONGEST_NUMBER else math.inf
    if _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) or _INFINITY.fullmatch(text):
        return float(text.lower().replace(".inf", "inf"))
    return math.nan if text in _NAN else text


def surprise(text: str) -> str | None:
    """Return why a plain scalar is a surprise, and what to write, as the end of a message; None if it is not one."""
    for pattern, advice in _SURPRISES:
        if pattern.fullmatch(text):
            return advice
    value = resolve(text)
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        return "expected a number of at most 64 bits"
    return None
