"""What a JSON answer says that it took."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.execution.answer import AttemptFailedError
from gateway.execution.hold import Whole, _looked_at
from gateway.execution.outcome import Usage
from gateway.execution.usage import _usage_anywhere, usage_in


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}', Usage(1, 2)),
        (b'{"usage": {"prompt_tokens": 1, "total_tokens": 1}}', Usage(1, None)),
        (
            b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":7}}}',
            Usage(9, None, 7),
        ),
        (
            b'{"usage":{"completion_tokens":8,"completion_tokens_details":{"reasoning_tokens":6}}}',
            Usage(None, 8, None, 6),
        ),
        (b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}', Usage(9)),
        (b'"usage":{"a":{"b":{"c":"}{"}},"prompt_tokens":1,"completion_tokens":2,"d":["\\"}"]},"x":1', Usage(1, 2)),
        (b'{"usage":{"completion_tokens":1}},{"usage":{"completion_tokens":2}}', Usage(None, 2)),
        (b'{"usage":{"completion_tokens":1}},{"usage":null}', Usage(None, 1)),
        (b'{"usage":{"completion_tokens":1}},{"usage":{"completion_tok', Usage(None, 1)),
        (
            b'{"usage":{"completion_tokens":1},"choices":[{"text":"\\"usage\\":{\\"completion_tokens\\":9}"}]}',
            Usage(None, 1),
        ),
        (b'\x80\xff"usage":{"prompt_tokens":1}', Usage(1, None)),
        (b'{"usage":{"prompt_tokens":"1"}}', Usage()),
        (b'{"usage":{"prompt_tokens":5,"completion_tokens":9,"prompt_tokens_details":[]}}', Usage(5, 9)),
        (b'{"usage":{"prompt_tokens":5.0,"completion_tokens":9.5}}', Usage(5)),
        (b'{"usage":{"prompt_tokens":true,"completion_tokens":1e400}}', Usage()),
        (
            b'{"usage":{"prompt_tokens":"5","completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":"0"}}}',
            Usage(None, 9),
        ),
        (b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":3.0}}}', Usage(5, None, 3)),
        (b'{"usage":{"input_tokens":5,"output_tokens":9.0,"input_tokens_details":""}}', Usage(5, 9)),
        (b'{"usage":{"prompt_tokens":1', None),
        (b'{"usage":{"a":' + b"[" * 4000, None),
        (b'{"usage":[]}', None),
        (b'o","choices":[],"usage":{"completion_tokens":1},"system_fingerprint":"fp"}\n', Usage(None, 1)),
        (b'"usage":{"completion_tokens":1},"\\u0075sage":{"completion_tokens":2}}', Usage(None, 1)),
        (b'"usage":{"completion_tokens":1},"x":"usage"}', Usage(None, 1)),
        (b'"usage":{"completion_tokens":1},"x":{"usage":{"completion_tokens":2}}}', Usage(None, 2)),
        (b'{"x":{"usage":{"completion_tokens":1}},"y":1}', Usage(None, 1)),
        (b'{"usage":{"completion_tokens":1}} "', Usage(None, 1)),
        (b'{"usage":{"prompt_tokens":-5,"completion_tokens":7}}', Usage(None, 7)),
        (b'{"usage":{"prompt_tokens":8,"completion_tokens":99999999999999999999999999},"x":"\\""}', Usage(8)),
        (b"", None),
    ],
)
def test_the_usage_in_a_tail_is_the_last_whole_one(tail: bytes, usage: Usage | None) -> None:
    assert usage_in(tail) == usage


TOKENS = st.sampled_from(
    ["1", "0", "-1", "1.0", "1e2", "1.5", '"1"', "null", "true", "[]", "{}", "NaN", str(1 << 70), "01"]
)
USAGES = st.lists(
    st.tuples(
        st.sampled_from(
            ["prompt_tokens", "completion_tokens", "total_tokens", "cost", "us\\u0061ge", "prompt_tokens_details"]
        ),
        TOKENS | TOKENS.map('{{"cached_tokens":{},"x":"}}{{"}}'.format),
    ).map('"{0[0]}": {0[1]}'.format),
    max_size=3,
).map(",".join)
BITS = (
    st.sampled_from(
        [
            *'{}[],:" \n\\',
            '"usage"',
            '"x":',
            '"x"',
            '\\"usage\\":{}',
            '"a }"',
            '"system_fingerprint":null',
            "\x1f",
            "\N{NO-BREAK SPACE}",
            "ä",
        ]
    )
    | USAGES.map('"usage":{{{}}}'.format)
    | USAGES.map('"usage" : {{{}}},'.format)
)


@pytest.mark.exhaustive
@settings(max_examples=500)
@given(
    st.lists(BITS, max_size=6),
    USAGES,
    st.sampled_from(["}", "}}", ',"x":1}', "", "}\n", '},"y":{}}', ',"usage":null}']),
)
def test_the_usage_is_the_same_wherever_it_stands(before: list[str], usage: str, after: str) -> None:
    """There is a fast path to the usual one."""
    tail = f'{"".join(before)}"usage":{{{usage}}}{after}'.encode()
    assert usage_in(tail) == _usage_anywhere(tail)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":1},"choices":[{"usage":{"prompt_tokens":9}}]}', Usage(1)),
        (b'{"choices":[{"usage":{"prompt_tokens":9}}]}', Usage(9)),
        (b'{"choices":[{"usage":{"prompt_tokens":9}}],"x":"' + b"x" * (1 << 14) + b'"}', None),
        (b'{"usage":{"prompt_tokens":8},"choices":[{"text":"' + b"x" * (1 << 14) + b'"}]}', Usage(8)),
        (b'{"usage":{"prompt_tokens":8,"x":"\xc3\xa4"}}', Usage(8)),
        (b'{"usage":null}', None),
        (b'{"usage":[]}', None),
        (b'{"choices":[NaN],"usage":{"prompt_tokens":8}}', Usage(8)),
        (b'{"usage":{"prompt_tokens":8,"completion_tokens":-1},"choices":[]}', Usage(8)),
    ],
)
def test_the_usage_of_a_body_is_its_own(body: bytes, usage: Usage | None) -> None:
    assert _looked_at(body).usage == usage


@pytest.mark.parametrize(
    "body", [b'{"usage":[' + b'{"usage":[' * 90_000, b'{"usage":' * 90_000, b'{"a":[' + b'"usage":{,' * 90_000]
)
def test_what_is_nested_without_end_is_no_answer(body: bytes) -> None:
    with pytest.raises(AttemptFailedError, match="cut_answer"):
        _looked_at(body)


def test_a_usage_that_is_nested_as_deep_as_can_be_read_stops_nothing() -> None:
    """It is read twice, and not from the same depth of the stack."""

    def told(whole: Whole, deeper: int) -> Usage | None:
        return told(whole, deeper - 1) if deeper else whole.usage

    read = 0
    for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
        try:
            whole = _looked_at(b'{"usage":{"prompt_tokens":1,"x":' + b"[" * depth + b"]" * depth + b"}}")
        except AttemptFailedError:
            continue
        read += 1
        assert told(whole, 40) in {None, Usage(1)}
    assert read


def test_a_body_is_not_shown() -> None:
    assert repr(_looked_at(b'{"choices": ["canary"]}')) == "<23 bytes>"
