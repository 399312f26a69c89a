"""Requests as no client library would send them.

https://www.rfc-editor.org/rfc/rfc9112 for the framing, 9110 for the rest. CANARY stands for what a request may hold
and nobody may repeat.
"""

from tests.fakes.upstream import chunk, last_chunk

BODY = b'{"model":"m"}'
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: gateway\r\n"
LENGTH = b"Content-Length: 13\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = chunk(BODY) + last_chunk()


def request(
    *fields: bytes, line: bytes = LINE, host: bytes = HOST, length: bytes = LENGTH, body: bytes = BODY
) -> bytes:
    return b"".join((line, host, length, *(field + b"\r\n" for field in fields), b"\r\n", body))


def chunked(chunks: bytes = CHUNKS, *fields: bytes, coding: bytes = CHUNKED) -> bytes:
    return request(*fields, length=coding, body=chunks)


def aimed(target: bytes, method: bytes = b"POST", *fields: bytes) -> bytes:
    return request(*fields, line=b"%b %b HTTP/1.1\r\n" % (method, target))


def bare(line: bytes, *fields: bytes) -> bytes:
    return request(*fields, line=line + b"\r\n", length=b"", body=b"")


MALFORMED = {
    "both lengths (9112 6.1)": request(CHUNKED[:-2], body=CHUNKS),
    "both lengths, the coding first": chunked(CHUNKS, LENGTH[:-2]),
    "two equal lengths (9110 8.6)": request(LENGTH[:-2]),
    "two lengths (9112 6.3)": request(b"Content-Length: 3"),
    "a list of lengths (9112 6.3)": request(length=b"Content-Length: 13, 13\r\n"),
    "a negative length": request(length=b"Content-Length: -13\r\n"),
    "a signed length": request(length=b"Content-Length: +13\r\n"),
    "a hexadecimal length": request(length=b"Content-Length: 0xd\r\n"),
    "a length with a gap": request(length=b"Content-Length: 1 3\r\n"),
    "an empty length": request(length=b"Content-Length:\r\n"),
    "a length beyond all numbers": request(length=b"Content-Length: 18446744073709551629\r\n"),
    "a folded length (9112 5.2)": request(length=b"Content-Length:\r\n 13\r\n"),
    "a length with a space before its colon (9112 5.1)": request(length=b"Content-Length : 13\r\n"),
    "obs-fold (9112 5.2)": request(b"X-A: a\r\n CANARY"),
    "obs-fold with a tab": request(b"X-A: a\r\n\tCANARY"),
    "a folded first field (9112 2.2)": LINE + b" X-A: CANARY\r\n" + request(line=b""),
    "NUL in a field (9110 5.5)": request(b"X-A: CANARY\x00"),
    "NUL in a name": request(b"X-\x00A: CANARY"),
    "a control character in a field": request(b"X-A: CANARY\x01"),
    "DEL in a field": request(b"X-A: CANARY\x7f"),
    "CR in a field (9112 2.2)": request(b"X-A: CANARY\rX-B: b"),
    "CR at the end of a field": request(b"X-A: CANARY\r"),
    "LF in a field (9112 2.2)": request(b"X-A: CANARY\nX-B: b"),
    "lines that end with LF": request(b"X-A: CANARY").replace(b"\r\n", b"\n"),
    "a request line that ends with LF": request(b"X-A: CANARY", line=LINE.replace(b"\r", b"")),
    "a space before the colon (9112 5.1)": request(b"X-A : CANARY"),
    "a field without a colon": request(b"CANARY"),
    "a field without a name": request(b": CANARY"),
    "a name that is no token (9110 5.1)": request(b"X(A): CANARY"),
    "a name beyond ASCII": request(b"X-\xc3\xa4: CANARY"),
    "two content types (9110 8.3)": request(b"Content-Type: application/json", b"Content-Type: text/CANARY"),
    "an unknown coding (9112 6.1)": chunked(coding=b"Transfer-Encoding: xchunked\r\n"),
    "a coding in quotes": chunked(coding=b'Transfer-Encoding: "chunked"\r\n'),
    "a coding behind a control character": chunked(coding=b"Transfer-Encoding: \x0bchunked\r\n"),
    "a coding with a space before its colon": chunked(coding=b"Transfer-Encoding : chunked\r\n"),
    "a folded coding": chunked(coding=b"Transfer-Encoding:\r\n chunked\r\n"),
    "chunked before another coding (9112 6.1)": chunked(coding=b"Transfer-Encoding: chunked, gzip\r\n"),
    "chunked twice (9112 7.1)": chunked(coding=CHUNKED * 2),
    "the coding that is none": chunked(coding=b"Transfer-Encoding: identity\r\n"),
    "the coding that is none, and a length": request(b"Transfer-Encoding: identity"),
    "a bad chunk size (9112 7.1)": chunked(b"CANARY\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "no chunk size": chunked(b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a prefixed chunk size": chunked(b"0xd\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a negative chunk size": chunked(b"-d\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a signed chunk size": chunked(b"+d\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk size beyond all numbers": chunked(b"1000000000000000d\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a space behind a chunk size": chunked(b"d \r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk size line that ends with LF": chunked(b"d\n" + BODY + b"\r\n0\r\n\r\n"),
    "LF in a chunk extension (9112 7.1.1)": chunked(b"d;CANARY\n" + BODY + b"\r\n0\r\n\r\n"),
    "CR in a chunk extension": chunked(b"d;CAN\rARY\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk without its end": chunked(b"d\r\n" + BODY + b"0\r\n\r\n"),
    "a chunk longer than its size": chunked(b"c\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a length in the trailer (9110 6.5.1)": chunked(chunk(BODY) + b"0\r\nContent-Length: 3\r\n\r\n"),
    "a coding in the trailer": chunked(chunk(BODY) + b"0\r\n" + CHUNKED + b"\r\n"),
    "a trailer without a colon": chunked(chunk(BODY) + b"0\r\nCANARY\r\n\r\n"),
    "a trailer without end": chunked(chunk(BODY) + b"0\r\n" + b"X-A: CANARY\r\n" * 200 + b"\r\n"),
    "no Host (9112 3.2)": request(host=b""),
    "two equal Hosts (9112 3.2)": request(HOST[:-2]),
    "two Hosts": request(b"Host: CANARY"),
    "the preface of HTTP/2 (9113 3.4)": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "a version with one digit (9112 2.3)": request(line=LINE.replace(b"1.1", b"2")),
    "a version with two digits": request(line=LINE.replace(b"1.1", b"1.10")),
    "a version that is none": request(line=LINE.replace(b"1.1", b"1.2")),
    "a version that is no HTTP": request(line=LINE.replace(b"HTTP/1.1", b"CANARY/1.1")),
    "a version in lower case": request(line=LINE.replace(b"HTTP", b"http")),
    "a method that is none": aimed(b"/v1/chat/completions", b"CANARY"),
    "a method in lower case": aimed(b"/v1/chat/completions", b"post"),
    "tabs in the request line (9112 3)": request(line=LINE.replace(b" ", b"\t")),
    "a space in the target (9112 3.2)": aimed(b"/v1/chat completions"),
    "NUL in the target": aimed(b"/v1/chat/completions\x00CANARY"),
    "CR in the target": aimed(b"/v1/chat/completions\rCANARY"),
    "a target beyond ASCII": aimed(b"/v1/CANARY\xff"),
    "a target without a slash": aimed(b"CANARY/v1/chat/completions"),
    "a target that is an authority (9112 3.2.3)": aimed(b"CANARY@evil.test:80"),
    "an absolute target with a bad port": aimed(b"http://evil.test:CANARY/v1/chat/completions"),
    "an absolute target with a bad host": aimed(b"http://[CANARY/v1/chat/completions"),
    "a tunnel to a bad port": aimed(b"evil.test:CANARY", b"CONNECT"),
    "a target of 100 KB": aimed(b"/" + b"CANARY" * 17_000),
    "a field of 100 KB": request(b"X-A: " + b"CANARY" * 17_000),
    "a name of 100 KB": request(b"CANARY" * 17_000 + b": a"),
    "200 fields": request(*[b"X-%d: CANARY" % number for number in range(200)]),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03CANARY\r\n\r\n",
    "a body without a length": request(length=b"", body=b"CANARY\r\n\r\n"),
}

CLOSED = {
    "HTTP/2.0 (9110 15.6.6)": (505, request(line=LINE.replace(b"1.1", b"2.0"))),
    "HTTP/2.0 without Host": (505, request(line=LINE.replace(b"1.1", b"2.0"), host=b"")),
    "HTTP/2.0 with an expectation": (417, request(b"Expect: CANARY", line=LINE.replace(b"1.1", b"2.0"))),
    "HTTP/0.9": (505, request(line=LINE.replace(b"1.1", b"0.9"))),
    "the line of HTTP/0.9": (505, b"POST /v1/chat/completions\r\n\r\n"),
    "a Host with a path (9112 3.2)": (400, request(host=b"Host: CANARY/a\r\n")),
    "a Host with a query": (400, request(host=b"Host: gateway?CANARY\r\n")),
    "a Host with a user": (400, request(host=b"Host: CANARY@gateway\r\n")),
    "a Host with a space": (400, request(host=b"Host: CANARY gateway\r\n")),
    "a Host with a port that is none": (400, request(host=b"Host: gateway:CANARY\r\n")),
    "a Host with half a bracket": (400, request(host=b"Host: [::1\r\n")),
    "a Host beyond ASCII": (400, request(host=b"Host: CANARY\xff\r\n")),
    "a list of Hosts": (400, request(host=b"Host: gateway, evil/\r\n")),
    "a bad Host and an expectation": (400, request(b"Expect: 100-continue", host=b"Host: CANARY/a\r\n")),
    "a coding in HTTP/1.0 (9112 6.1)": (400, chunked().replace(b"HTTP/1.1", b"HTTP/1.0")),
    "a coding besides chunked (9112 6.1)": (501, chunked(coding=b"Transfer-Encoding: gzip, chunked\r\n")),
    "an empty coding, and a length": (501, request(length=b"Transfer-Encoding:\r\n" + LENGTH)),
    "an empty coding of JSON, and a length": (
        501,
        request(b"Content-Type: application/json", length=b"Transfer-Encoding:\r\n" + LENGTH),
    ),
    "a tunnel (9110 9.3.6)": (404, bare(b"CONNECT evil.test:443 HTTP/1.1")),
}

KEPT = {
    "// and a host": (404, aimed(b"//evil.test/v1/chat/completions")),
    "// and no host": (404, aimed(b"/v1//chat/completions")),
    "dots": (404, aimed(b"/v1/CANARY/../../v1/chat/completions")),
    "dots, encoded": (404, aimed(b"/v1/%2e%2e/v1/chat/completions")),
    "a dot": (404, aimed(b"/v1/./chat/completions")),
    "a slash, encoded": (404, aimed(b"/v1%2fchat/completions")),
    "a slash, encoded, inside": (404, aimed(b"/v1/chat%2Fcompletions")),
    "a letter, encoded twice": (404, aimed(b"/v1/%2563hat/completions")),
    "NUL, encoded": (404, aimed(b"/v1/chat/completions%00CANARY")),
    "a field, encoded": (404, aimed(b"/v1/chat/completions%0d%0aX-A:%20CANARY")),
    "backslashes": (404, aimed(b"/v1\\chat\\completions")),
    "a slash too many": (404, aimed(b"/v1/chat/completions/")),
    "capitals": (404, aimed(b"/V1/chat/completions")),
    "an absolute target without a path": (404, aimed(b"http://evil.test")),
    "OPTIONS * (9112 3.2.4)": (404, bare(b"OPTIONS * HTTP/1.1")),
    "TRACE (9110 9.3.8)": (405, bare(b"TRACE /v1/chat/completions HTTP/1.1", b"Cookie: CANARY")),
    "TRACE with a body": (405, aimed(b"/v1/chat/completions", b"TRACE", b"Cookie: CANARY")),
    "another expectation (9110 10.1.1)": (417, request(b"Expect: CANARY")),
    "two expectations": (417, request(b"Expect: 100-continue, CANARY")),
}

UPGRADE = [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: Q0FOQVJZ", b"Sec-WebSocket-Version: 13"]
KEPT_BACK = """
Authorization: Bearer CANARY; Cookie: a=CANARY; X-Api-Key: CANARY; Api-Key: CANARY; Proxy-Authorization: Basic CANARY
Proxy-Connection: CANARY; Keep-Alive: CANARY; TE: trailers, CANARY; Trailer: CANARY; Connection: x-a; X-A: CANARY
X-Forwarded-For: CANARY; X-Forwarded-Host: evil.test; X-Real-IP: CANARY; Forwarded: for=CANARY; Via: 1.1 CANARY
X-Original-URL: /CANARY; X-HTTP-Method-Override: GET; Content_Length: 3; Range: bytes=0-1; If-Match: CANARY
User-Agent: CANARY; Accept-Encoding: CANARY; Accept-Language: CANARY; Origin: http://evil.test; Referer: CANARY
OpenAI-Organization: CANARY; X-Request-ID: a CANARY; Date: CANARY; Accept: CANARY\xff; Tracestate: CANARY\xc3\xa9
""".strip()
NEUTRAL = {
    "no field is passed on unasked": request(
        b"Content-Type: application/json", *KEPT_BACK.replace("; ", "\n").encode("latin-1").splitlines()
    ),
    "Connection names the length (9110 7.6.1)": request(b"Connection: content-length"),
    "Connection names the coding": chunked(CHUNKS, b"Connection: transfer-encoding"),
    "Connection names what we add": request(b"Connection: authorization, host, x-request-id, content-type"),
    "an absolute target (9112 3.2.2)": aimed(b"http://evil.test/v1/chat/completions"),
    "an absolute target with a user": aimed(b"https://CANARY:b@evil.test:99/v1/chat/completions"),
    "a letter, encoded": aimed(b"/v1/%63hat/completions"),
    "a query and a fragment": aimed(b"/v1/chat/completions?key=CANARY&a=%0d%0aX:#CANARY"),
    "spaces in the request line (9112 3)": request(line=LINE.replace(b" ", b"  ")),
    "an empty line first (9112 2.2)": b"\r\n\r\n" + request(),
    "an empty Host (9112 3.2)": request(host=b"Host:\r\n"),
    "an IPv6 Host": request(host=b"Host: [::1]:8080\r\n"),
    "another Host": request(host=b"Host: evil.test\r\n"),
    "a length with zeros before it": request(length=b"Content-Length: 00013\r\n"),
    "a coding in capitals": chunked(coding=b"TRANSFER-ENCODING: CHUNKED\r\n"),
    "a chunk size with zeros before it": chunked(b"0" * 30 + b"d\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk extension (9112 7.1.1)": chunked(b'd;CANARY="a"\r\n' + BODY + b"\r\n0;CANARY\r\n\r\n"),
    "a chunk extension of 100 KB": chunked(b"d;" + b"CANARY" * 17_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a trailer (9112 7.1.2)": chunked(chunk(BODY) + b"0\r\nX-Trailer: CANARY\r\n\r\n"),
    "authority in the trailer": chunked(chunk(BODY) + b"0\r\nAuthorization: Bearer CANARY\r\n\r\n"),
}

LAST = {
    "HTTP/1.0": request(line=LINE.replace(b"1.1", b"1.0")),
    "HTTP/1.0 without Host": request(line=LINE.replace(b"1.1", b"1.0"), host=b""),
    "RTSP/1.0, which aiohttp's parser takes for HTTP/1.0": request(line=LINE.replace(b"HTTP/1.1", b"RTSP/1.0")),
    "an upgrade to HTTP/2 (9110 7.8)": request(
        b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: CANARY"
    ),
    "an upgrade to WebSocket": request(*UPGRADE),
    "an upgrade to TLS (2817)": request(b"Connection: Upgrade", b"Upgrade: TLS/1.3"),
    "an upgrade of a chunked request": chunked(CHUNKS, b"Connection: Upgrade", b"Upgrade: CANARY"),
}

HIDDEN = b"Content-Length: %d\r\n" % len(request())
SMUGGLED = {
    "both lengths": request(CHUNKED[:-2], length=HIDDEN, body=last_chunk() + request()),
    "two lengths": request(b"Content-Length: 0", length=HIDDEN, body=request()),
    "an empty coding and a length": request(length=b"Transfer-Encoding:\r\n" + HIDDEN, body=request()),
    "an empty coding and no length": request(b"Transfer-Encoding:", length=b"", body=request()),
    "an empty coding of JSON": request(
        b"Transfer-Encoding:", b"Content-Type: application/json", length=b"", body=request()
    ),
    "an empty coding and an expectation": request(b"Transfer-Encoding:", b"Expect: CANARY", length=b"", body=request()),
    "a coding in HTTP/1.0 and an expectation": chunked(
        last_chunk() + request(), b"Connection: keep-alive", b"Expect: CANARY"
    ).replace(b"1.1", b"1.0", 1),
    "a coding besides chunked": chunked(last_chunk() + request(), coding=b"Transfer-Encoding: gzip, chunked\r\n"),
    "a coding in HTTP/1.0": chunked(last_chunk() + request()).replace(b"1.1", b"1.0", 1),
    "a coding behind CR": request(b"X-A: a\rTransfer-Encoding: chunked", body=last_chunk() + request()),
    "a length behind CR": request(b"X-A: a\rContent-Length: 0", length=HIDDEN, body=request()),
    "a folded coding": request(b"X-A: a\r\n Transfer-Encoding: chunked", length=HIDDEN, body=request()),
    "a chunk extension with LF": chunked(b"d;a\n" + request()),
    "a body of GET": request(line=b"GET /v1/models HTTP/1.1\r\n", length=HIDDEN, body=request()),
    "a body of GET to nowhere": request(line=b"GET /nowhere HTTP/1.1\r\n", length=HIDDEN, body=request()),
    "a body of OPTIONS": request(line=b"OPTIONS * HTTP/1.1\r\n", length=HIDDEN, body=request()),
    "a body of TRACE": request(line=LINE.replace(b"POST", b"TRACE"), length=HIDDEN, body=request()),
    "a body of CONNECT": request(line=b"CONNECT evil.test:443 HTTP/1.1\r\n", length=HIDDEN, body=request()),
    "a tunnel": bare(b"CONNECT evil.test:443 HTTP/1.1") + request(),
    "a body with an upgrade": request(*UPGRADE, line=b"GET /health HTTP/1.1\r\n", length=HIDDEN, body=request()),
    "a body with an expectation": request(b"Expect: CANARY", length=HIDDEN, body=request()),
    "a body in a strange coding": request(b"Content-Encoding: gzip", length=HIDDEN, body=request()),
    "a bad Host": request(host=b"Host: a/b\r\n", length=HIDDEN, body=request()) + request(),
    "HTTP/2.0": request(line=LINE.replace(b"1.1", b"2.0")) + request(),
}
