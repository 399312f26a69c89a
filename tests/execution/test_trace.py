"""W3C Trace Context, https://www.w3.org/TR/trace-context-2/."""

import re
from itertools import pairwise

import pytest

from gateway.execution.trace import RANDOM, SAMPLED, Sampling, Trace, new_span_id
from tests.execution.support import chain, running
from tests.fakes.upstream import ScriptedUpstream, Send, json_answer, refused_url
from tests.running import Config

ALL = Sampling()
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID, PARENT_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


def test_without_a_caller_a_trace_begins() -> None:
    trace = ALL.begin([], ["vendor=1"])
    assert (trace.parent_id, trace.flags, trace.state) == (None, SAMPLED | RANDOM, None)
    assert 0 < trace.trace_id < 1 << 128
    assert 0 < trace.span_id < 1 << 64
    assert ALL.begin([], []).trace_id != trace.trace_id


def test_a_callers_trace_goes_on() -> None:
    trace = ALL.begin([PARENT], ["vendor=1", "other=2"])
    assert (trace.trace_id, trace.parent_id, trace.flags) == (TRACE_ID, PARENT_ID, SAMPLED)
    assert trace.span_id != PARENT_ID
    assert trace.state == "vendor=1,other=2"


def test_an_upstream_is_told_the_span_that_asks_it() -> None:
    trace = Trace(TRACE_ID, 1, PARENT_ID, SAMPLED | RANDOM, "vendor=1")
    assert trace.fields(0xAB) == {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ab-03",
        "tracestate": "vendor=1",
    }
    assert Trace(1, 1, None, 0).fields(2) == {"traceparent": f"00-{1:032x}-{2:016x}-00"}
    fields = ALL.begin([], []).fields(new_span_id())
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-03", fields["traceparent"])


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + " ",
        PARENT + "-00",
        PARENT.replace("00-4", "ff-4"),
        PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        PARENT.replace("00f067aa0ba902b7", "0" * 16),
        PARENT.replace("-01", "-0g"),
        "01" + PARENT[2:] + "x",
    ],
)
def test_a_malformed_traceparent_is_as_none(parent: str) -> None:
    trace = ALL.begin([parent], ["vendor=1"])
    assert (trace.parent_id, trace.state) == (None, None)
    assert trace.trace_id != TRACE_ID


def test_two_traceparents_are_as_none() -> None:
    assert ALL.begin([PARENT, PARENT], []).parent_id is None


@pytest.mark.parametrize("more", ["", "-what-the-future-brings"])
def test_a_later_version_is_read_as_far_as_it_is_known(more: str) -> None:
    trace = ALL.begin(["cc" + PARENT[2:-2] + "ff" + more], [])
    assert (trace.trace_id, trace.parent_id, trace.flags) == (TRACE_ID, PARENT_ID, SAMPLED | RANDOM)


@pytest.mark.parametrize(
    "state",
    [
        "v=\x07",
        "v=\xe9",
        ",".join(["v=" + "x" * 250, "w=" + "x" * 250, "y=zzzzz"]),
        "v=" + "x" * 257,
        "k" * 257 + "=1",
        "Session=abc1",
        "v=1,Session=abc1",
        "=1",
        "v",
        "v=",
        "v= ",
        "v=1=2",
        "v =1",
        "@v=1",
        "sess\u0131on=1",
        "v=1\n",
        ",".join(f"v{number}=1" for number in range(33)),
    ],
)
def test_a_state_that_is_no_list_of_members_is_left_out(state: str) -> None:
    assert ALL.begin([PARENT], [state]).state is None


@pytest.mark.parametrize(
    "states",
    [
        ['v= !"#+-<>~'],
        ["1v_-*/=1", "tenant@system=2"],
        ["v=1 ,\tw=2,, x=3\t"],
        ["", "v=1"],
        ["k" * 256 + "=1", "v=" + "x" * 250],
        [f"v{number}=1" for number in range(32)],
    ],
)
def test_a_state_of_members_is_passed_on_as_it_is(states: list[str]) -> None:
    assert ALL.begin([PARENT], states).state == ",".join(states)


@pytest.mark.parametrize(
    ("name", "alone", "below_recorded", "below_unrecorded"),
    [
        ("always_on", True, True, True),
        ("always_off", False, False, False),
        ("parentbased_always_on", True, True, False),
        ("parentbased_always_off", False, True, False),
        ("parentbased_traceidratio", False, True, False),
    ],
)
def test_samplers(name: str, *, alone: bool, below_recorded: bool, below_unrecorded: bool) -> None:
    sampling = Sampling.of(name, 0.0)
    assert sampling is not None
    assert sampling.begin([], []).sampled is alone
    assert sampling.begin([PARENT], []).sampled is below_recorded
    assert sampling.begin([PARENT[:-1] + "0"], []).sampled is below_unrecorded


def test_a_ratio_is_taken_of_the_trace_ids() -> None:
    half = Sampling.of("traceidratio", 0.5)
    assert half is not None
    low, high = "0" * 31 + "1", "0" * 16 + "8" + "0" * 15
    assert half.begin([f"00-{low}-00f067aa0ba902b7-00"], []).sampled
    assert not half.begin([f"00-{high}-00f067aa0ba902b7-01"], []).sampled
    recorded = sum(half.begin([], []).sampled for _ in range(1000))
    assert 300 < recorded < 700


def test_an_unknown_sampler_is_none() -> None:
    assert Sampling.of("jaeger_remote", 1.0) is None


async def test_attempts_tell_when_they_began_and_without_tracing_nothing_of_traces(config: Config) -> None:
    urls = (refused_url(), refused_url())
    async with ScriptedUpstream([Send(json_answer({}))]) as box, running(config, {"m": chain(*urls, box.url)}) as gate:
        assert (await gate.post("m")).status == 200
        outcome = await gate.outcome()
    attempts = outcome.attempts
    assert attempts[0].offset >= 0
    assert all(one.offset + one.milliseconds <= next_.offset for one, next_ in pairwise(attempts))
    assert attempts[-1].offset + attempts[-1].milliseconds <= outcome.duration
    assert (outcome.trace, {attempt.span_id for attempt in attempts}) == (None, {None})
