import asyncio
import errno
import select
import socket
import ssl
import sys
import threading

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from gateway.execution import protocol
from gateway.execution.direct import LARGEST, Exchange
from gateway.execution.fields import Fields
from gateway.execution.outbox import Outbox
from gateway.execution.protocol import AnswerProtocol, LastHeads
from gateway.execution.upstream import Call, Upstream, failure_of
from gateway.routing.failures import Cause
from tests.execution.support import CONTENT, chain, deployment, error_of, no_descriptors, running
from tests.execution.test_wire_client import Recorded
from tests.fakes.connection import PATIENCE
from tests.fakes.leaping import leap
from tests.fakes.upstream import (
    Hang,
    Reset,
    ScriptedUpstream,
    Send,
    chunk,
    json_answer,
    sse_head,
)
from tests.running import Config, until

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
CALL = Call("chat/completions", b'{"model": "m"}', Fields(()), "id")
SIZES = [LARGEST // 2, LARGEST * 4]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_fault_of_ours_blames_nobody_and_passes(config: Config, host: str) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a, ScriptedUpstream([Send(json_answer({}))]) as b:
        url = a.url.replace("127.0.0.1", host)
        async with running(config, {"m": chain(url, b.url)}, health_check=3600) as gate, gate.client() as client:
            for box in (a, b):
                await box.arrived()
                await box.all_closed()
            await client.send(b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n")
            await client.read_answer()
            await gate.log()
            with no_descriptors():
                await client.send(b'POST /v1/embeddings HTTP/1.1\r\nhost: g\r\ncontent-length: 13\r\n\r\n{"model":"m"}')
                answer = await client.read_answer()
            error = error_of(answer)
            assert (answer.status, error["code"], error["type"]) == (
                503,
                "gateway_exhausted",
                "service_unavailable_error",
            )
            assert (answer.head.get("retry-after"), answer.head.get("x-gateway-attempts")) == ("1", "1")
            assert (await gate.failures(), gate.outcomes[0].failure) == (["local_fault"], "local_fault")
            assert (await gate.post("m")).status == 200
            snapshot = gate.gateway.manager.snapshot
            assert snapshot is not None
            assert (snapshot.revision, snapshot.down) == (0, frozenset())
            assert all(request.target == "/health" for request in b.requests)


async def _passes(seconds: float) -> None:
    """Let time pass; what is due then is done."""
    leap(seconds)
    for _ in range(2):
        await asyncio.sleep(0)


class Ending(Recorded):
    """A transport that tells how it was ended; so many bytes wait in it, and it may be TLS's."""

    def __init__(self, waits: int, *, secure: bool) -> None:
        super().__init__()
        self.waits, self.secure, self.ended = waits, secure, ""
        self.socket = socket.socket()

    def get_write_buffer_size(self) -> int:
        return self.waits

    def get_extra_info(self, name: str, default: object = None) -> object:
        if name == "socket":
            return self.socket
        return ssl.create_default_context() if self.secure and name == "sslcontext" else default

    def close(self) -> None:
        self.ended = "close"

    def abort(self) -> None:
        self.ended = "abort"


async def test_sessions_grow_old_and_close_after_their_last_answer() -> None:
    steps = [Send(sse_head() + chunk(CONTENT)), Hang()]
    whole = [Send(json_answer({}))]
    async with ScriptedUpstream(lambda index, _: whole if index in {1, 3} else steps) as a:
        upstream = Upstream(session_age=10)
        old = await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert await old.chunk() == CONTENT
        await _passes(9)
        kept = await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert await kept.read(99) == b"{}"
        await _passes(1.5)
        new = await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert a.connections == 3
        await asyncio.sleep(0)
        assert a.open == 3
        old.close()
        old.close()
        await a.until(lambda: a.open == 1)
        assert await new.chunk() == CONTENT
        await _passes(10)
        idle = await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert await idle.read(99) == b"{}"
        new.close()
        await upstream.close()
        await a.all_closed()


async def test_a_session_without_answers_closes_when_it_is_old() -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(session_age=10)
        for fresh in (False, True, False, True):
            answer = await upstream.open(deployment(a.url), CALL, connect_timeout=5, fresh=fresh)
            assert await answer.read(99) == b"{}"
            await _passes(6)
        await a.closed_by_peer(1)
        assert a.connections == 4
        await upstream.close()
        await a.all_closed()


async def test_an_open_that_is_given_up_leaves_nothing() -> None:
    async with ScriptedUpstream([Hang()]) as a:
        upstream = Upstream()
        opening = asyncio.create_task(upstream.open(deployment(a.url), CALL, connect_timeout=5))
        await a.arrived()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await a.closed_by_peer()
        assert upstream._pooled is not None
        assert upstream._pooled.open == 0
        await upstream.close()


@pytest.mark.parametrize("size", [LARGEST // 2, LARGEST, LARGEST * 32])
async def test_a_box_that_does_not_read_is_not_waited_for(size: int) -> None:
    """One that had stopped kept the connection, and the body, for as long as it lived."""
    with socket.create_server(("127.0.0.1", 0)) as box:
        box.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        upstream = Upstream()
        call = Call("chat/completions", b"x" * size, Fields({}.items()), "id")
        url = f"http://127.0.0.1:{box.getsockname()[1]}"
        opening = asyncio.create_task(upstream.open(deployment(url), call, connect_timeout=5))
        connection, _ = await asyncio.to_thread(box.accept)
        with connection:
            ends = select.poll()
            ends.register(connection, select.POLLIN)
            await until(lambda: bool(ends.poll(0)))
            assert not ends.poll(0)[0][1] & select.POLLHUP
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await until(lambda: bool(ends.poll(0)[0][1] & select.POLLHUP))
        await upstream.close()


@pytest.mark.parametrize(
    ("waits", "secure", "asked", "ended"),
    [(0, False, True, "close"), (0, True, False, "close"), (0, True, True, "abort"), (1, False, False, "abort")],
)
@pytest.mark.parametrize("closing", [True, False])
async def test_who_is_in_the_midst_is_closed_without_a_farewell(
    waits: int, ended: str, *, secure: bool, asked: bool, closing: bool
) -> None:
    transport = Ending(waits, secure=secure)
    protocol = AnswerProtocol(Outbox(), asyncio.get_running_loop())
    protocol.connection_made(transport)
    if asked:
        asking = protocol.ask(b"POST", LastHeads())
        assert not asking.done()
    if closing:
        transport.closing = True
        transport.socket.close()
    protocol.close()
    transport.socket.close()
    assert transport.ended == ended


@pytest.mark.parametrize(
    ("came", "ended"),
    [
        ([], "close"),
        ([b""], "abort"),
        ([HEAD + b"a"], "abort"),
        ([HEAD + b"ab"], "close"),
        ([HEAD + b"ab", b""], "abort"),
    ],
)
async def test_what_aiohttp_reads_itself_may_be_in_the_midst_too(came: list[bytes], ended: str) -> None:
    """A large body over TLS held its connection for half a minute."""
    transport = Ending(0, secure=True)
    protocol = AnswerProtocol(Outbox(), asyncio.get_running_loop())
    protocol.connection_made(transport)
    for answer in came:
        protocol.set_response_params()
        protocol.data_received(answer)
    protocol.close()
    transport.socket.close()
    assert transport.ended == ended


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's user timeout")
async def test_what_surely_fits_is_to_be_acknowledged_soon() -> None:
    """A box that reads nothing for a while, and has no room for more, is alive."""
    transport = Ending(0, secure=False)
    protocol = AnswerProtocol(Outbox(), asyncio.get_running_loop())
    protocol.connection_made(transport)
    bounds = []
    for size in (1, 1 << 14, (1 << 14) + 1, 1 << 16, 1 << 14):
        asking = protocol.ask(b"x" * size, LastHeads())
        assert not asking.done()
        bounds.append(transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    assert bounds == [20_000, 20_000, 0, 0, 20_000]
    transport.socket.close()


@pytest.mark.parametrize("size", SIZES)
async def test_an_answer_that_comes_before_the_body_is_sent_passes(config: Config, size: int) -> None:
    async with (
        ScriptedUpstream([Reset()], on_accept=[Send(json_answer({"error": "too large"}, 413))]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        answer = await gate.post({"model": "m", "prompt": "x" * size})
        assert (answer.status, answer.json()) == (413, {"error": "too large"})


@pytest.mark.parametrize("size", SIZES)
async def test_an_answer_is_read_though_the_rest_of_the_body_has_nowhere_to_go(size: int) -> None:
    """As llama.cpp answers who has not its key, or comes while it loads; it was told as a lost connection."""
    refused = b"HTTP/1.1 401 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

    def refuse() -> None:
        connection, _ = box.accept()
        with connection:
            connection.recv(100)
            connection.sendall(refused)

    upstream = Upstream()
    call = Call("chat/completions", b"x" * size, Fields({}.items()), "id")
    with socket.create_server(("127.0.0.1", 0)) as box:
        box.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(5):
            refusing = asyncio.create_task(asyncio.to_thread(refuse))
            url = f"http://127.0.0.1:{box.getsockname()[1]}"
            answer = await upstream.open(deployment(url), call, connect_timeout=5)
            assert answer.status == 401
            answer.close()
            await refusing
    await upstream.close()


async def test_a_connection_whose_request_was_answered_half_read_is_not_used_again() -> None:
    """What the box does not read would be ahead of the next request."""
    ended = threading.Event()

    def answer_at_once() -> None:
        connections = []
        for number in range(2):
            connection, _ = box.accept()
            connections.append(connection)
            connection.recv(100)
            connection.sendall(HEAD + b"%d%d" % (number, number))
        ended.wait(PATIENCE)
        for connection in connections:
            connection.close()

    upstream = Upstream()
    large = Call("chat/completions", b"x" * LARGEST, Fields(()), "id")
    with socket.create_server(("127.0.0.1", 0)) as box:
        box.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        answering = asyncio.create_task(asyncio.to_thread(answer_at_once))
        url = f"http://127.0.0.1:{box.getsockname()[1]}"
        try:
            for call, expected in ((large, b"00"), (CALL, b"11")):
                answer = await upstream.open(deployment(url), call, connect_timeout=5)
                assert await answer.read(99) == expected
        finally:
            ended.set()
            await answering
    await upstream.close()


class Counting(Exchange):
    """An exchange that counts how often it was told that the request is sent."""

    times: int = 0

    def sent(self) -> None:
        self.times += 1


async def test_a_long_request_is_sent_for_as_long_as_the_box_takes_some_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to the first content was counted from when the request had begun to wait for the box."""
    monkeypatch.setattr(protocol, "_LOOK", 0.001)
    goes_on = [threading.Event() for _ in range(4)]

    def answer_twice() -> None:
        connection, _ = box.accept()
        with connection, connection.makefile("rb") as requests:
            for parts in ([len(CALL.body)], [LARGEST // 2, LARGEST // 2]):
                while requests.readline() != b"\r\n":
                    pass
                for part in parts:
                    requests.read(part)
                    next(steps).wait(PATIENCE)
                connection.sendall(HEAD + b"{}")
            next(steps).wait(PATIENCE)

    steps = iter(goes_on)
    goes_on[0].set()
    upstream, exchange = Upstream(), Counting()
    with socket.create_server(("127.0.0.1", 0)) as box:
        box.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        answering = asyncio.create_task(asyncio.to_thread(answer_twice))
        place = deployment(f"http://127.0.0.1:{box.getsockname()[1]}")
        assert await (await upstream.open(place, CALL, connect_timeout=5)).read(99) == b"{}"
        assert upstream._pooled is not None
        assert upstream._pooled.direct is not None
        ((link,),) = (origin._waiting for origin in upstream._pooled.direct._origins.values())
        transport = link.protocol.transport
        assert transport is not None
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        large = Call("chat/completions", b"x" * LARGEST, Fields(()), "id")
        opening = asyncio.create_task(upstream.open(place, large, connect_timeout=5, exchange=exchange))
        await until(lambda: exchange.times > 1)
        assert transport.get_write_buffer_size() > 0
        told = exchange.times
        goes_on[1].set()
        await until(lambda: exchange.times > told and not transport.get_write_buffer_size())
        goes_on[2].set()
        assert await (await opening).read(99) == b"{}"
        goes_on[3].set()
        await answering
    await upstream.close()


def distrusted(why: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = why
    return error


KEY = ConnectionKey("::1", 80, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)


@pytest.mark.parametrize(
    ("error", "cause", "detail"),
    [
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EADDRNOTAVAIL, "")), Cause.UNREACHABLE, "EADDRNOTAVAIL"),
        (aiohttp.ClientConnectorError(KEY, OSError("several")), Cause.UNREACHABLE, "no address answered"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EHOSTUNREACH, "")), Cause.UNREACHABLE, "EHOSTUNREACH"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNRESET, "")), Cause.CONNECT_RESET, "ECONNRESET"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ETIMEDOUT, "")), Cause.CONNECT_TIMEOUT, "ETIMEDOUT"),
        (
            aiohttp.ClientConnectorError(KEY._replace(host="box"), OSError(errno.EADDRNOTAVAIL, "")),
            Cause.LOCAL_FAULT,
            "EADDRNOTAVAIL",
        ),
        (
            aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(socket.EAI_MEMORY, "")),
            Cause.LOCAL_FAULT,
            "name lookup failed",
        ),
        (aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(socket.EAI_AGAIN, "")), Cause.DNS, "name lookup failed"),
        (ssl.SSLError("record"), Cause.TLS, "SSLError"),
        (aiohttp.ClientOSError(errno.ENOBUFS, ""), Cause.LOCAL_FAULT, "ENOBUFS"),
        (aiohttp.ClientPayloadError(), Cause.MALFORMED_ANSWER, "the answer is not HTTP"),
        (aiohttp.ClientConnectionError(), Cause.DISCONNECTED, "closed without an answer"),
        (
            aiohttp.ClientConnectorCertificateError(
                KEY, distrusted("Hostname mismatch, certificate is not valid for 'a'")
            ),
            Cause.TLS,
            "Hostname mismatch",
        ),
        (aiohttp.ClientConnectorCertificateError(KEY, ValueError("x")), Cause.TLS, "ClientConnectorCertificateError"),
    ],
)
def test_each_error_has_its_cause(error: Exception, cause: Cause, detail: str) -> None:
    failure = failure_of(error, reused=True)
    assert (failure.cause, failure.detail, failure.stale) == (cause, detail, cause is Cause.DISCONNECTED)
