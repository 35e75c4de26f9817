# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What is no pull, sent byte for byte to the real edge and to the real rewrite front, with something behind each that notes every byte.

    pytest tests/unit/roles/test_attacks.py -s

prints the table that docs/security.md shows: the attack, and what either answered.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import socketserver
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import until
from ansible_collections.mirrorfleet.registry.tests.unit.roles import test_haproxy_front as haproxy_front
from ansible_collections.mirrorfleet.registry.tests.unit.roles import test_mirror_edge as mirror_edge
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render, upstream_port
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_haproxy_front import CREDENTIAL, DIGEST, MANIFEST, PASSWORD, PREFIX, SMUGGLED, get

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/security.md"
HEAD = "| attack | edge | rewrite front |\n| --- | --- | --- |"
LATEST = "/v2/a/manifests/latest"
DIGESTED = f"/v2/a/blobs/{DIGEST}"
CHUNKED = "Transfer-Encoding: chunked"
# SMUGGLED is what a server that believes a length, or chunks, takes for a body, and what another takes for a request.
LENGTH = f"Content-Length: {len(SMUGGLED)}"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)


def lines(*each: str, end: str = "\r\n") -> bytes:
    return "".join(line + end for line in (*each, "")).encode("latin-1")


PATHS = {
    # dot segments
    "dot segments": get("/v2/../../api/security/users"),
    "dot segments in a name": get("/v2/a/../../api/manifests/latest"),
    "dot segments before v2": get("/x/../v2/a/manifests/latest"),
    "dot segments at the end": get("/v2/a/manifests/latest/.."),
    "one dot": get("/v2/./a/manifests/latest"),
    "one dot before v2": get("/./v2/a/manifests/latest"),
    "three dots": get("/v2/.../a/manifests/latest"),
    "dots as a tag": get("/v2/a/manifests/.."),
    "dot as a tag": get("/v2/a/manifests/."),
    "dots and a parameter": get("/v2/..;/..;/api/manifests/latest"),
    "encoded dots": get("/v2/%2e%2e/%2E%2E/api/security/users"),
    "half encoded dots": get("/v2/.%2e/a/manifests/latest"),
    "double encoded dots": get("/v2/%252e%252e/a/manifests/latest"),
    "triple encoded dots": get("/v2/%25252e%25252e/a/manifests/latest"),
    "dots encoded in their encoding": get("/v2/%%32%65%%32%65/a/manifests/latest"),
    "dots as %u": get("/v2/%u002e%u002e/a/manifests/latest"),
    "overlong UTF-8 dots": get("/v2/%c0%ae%c0%ae/a/manifests/latest"),
    "full-width dots": get("/v2/%ef%bc%8e%ef%bc%8e/a/manifests/latest"),
    "root of the store": get("/v2/a/blobs/sha256:../../../../../../etc/passwd"),
    "digest and more": get(f"/v2/a/blobs/{DIGEST}/../data"),
    "catalog behind dots": get("/v2/a/manifests/../../_catalog"),
    # slashes
    "encoded slashes": get("/v2/..%2f..%2fapi%2fmanifests/latest"),
    "encoded slash in a name": get("/v2/team%2fapp/manifests/latest"),
    "encoded slash after v2": get("/v2%2f_catalog"),
    "double encoded slashes": get("/v2/..%252f..%252fapi/manifests/latest"),
    "overlong UTF-8 slashes": get("/v2/..%c0%af..%c0%afapi/manifests/latest"),
    "backslashes": get("/v2/..\\..\\api/manifests/latest"),
    "encoded backslashes": get("/v2/..%5c..%5capi/manifests/latest"),
    "double slash": get("/v2//a/manifests/latest"),
    "double slash in a name": get("/v2/a//b/manifests/latest"),
    "leading double slash": get("//v2/a/manifests/latest"),
    "host behind a double slash": get("//169.254.169.254/v2/a/manifests/latest"),
    "trailing slash": get("/v2/a/manifests/latest/"),
    # bytes
    "NUL": get("/v2/a\0/manifests/latest"),
    "encoded NUL": get("/v2/a%00/manifests/latest"),
    "digest and an encoded NUL": get(f"/v2/a/blobs/{DIGEST}%00"),
    "digest and an encoded line": get(f"/v2/a/blobs/{DIGEST}%0d%0aX-A:%20b"),
    "encoded letters": get("/v2/%61/manifests/latest"),
    "encoded line": get("/v2/a%0d%0aHost:%20b/manifests/latest"),
    "double encoded line": get("/v2/a%250d%250a/manifests/latest"),
    "bare carriage return in the path": get("/v2/a\r/manifests/latest"),
    "tab in the path": get("/v2/a\t/manifests/latest"),
    "space in the path": get("/v2/a /manifests/latest"),
    "encoded space": get("/v2/a%20b/manifests/latest"),
    "high byte": get("/v2/a\xff/manifests/latest"),
    "delete byte": get("/v2/a\x7f/manifests/latest"),
    "percent without digits": get("/v2/a%/manifests/latest"),
    # what is no name, tag or digest
    "upper case name": get("/v2/A/manifests/latest"),
    "upper case v2": get("/V2/a/manifests/latest"),
    "name that begins with a hyphen": get("/v2/-a/manifests/latest"),
    "name that ends with a dot": get("/v2/a./manifests/latest"),
    "no name": get("/v2/manifests/latest"),
    "no tag": get("/v2/a/manifests/"),
    "long name": get(f"/v2/{'a' * 256}/manifests/latest"),
    "long name of components": get(f"/v2/{'a/' * 128}b/manifests/latest"),
    "very long name": get(f"/v2/{'a' * 40000}/manifests/latest"),
    "long tag": get(f"/v2/a/manifests/{'t' * 129}"),
    "short digest": get(f"/v2/a/blobs/sha256:{'a' * 63}"),
    "long digest": get(f"/v2/a/blobs/sha256:{'a' * 65}"),
    "digest in upper case": get(f"/v2/a/blobs/sha256:{'A' * 64}"),
    "algorithm in upper case": get(f"/v2/a/blobs/SHA256:{'a' * 64}"),
    "digest that is not hexadecimal": get(f"/v2/a/blobs/sha256:{'g' * 64}"),
    "digest without algorithm": get(f"/v2/a/blobs/{'a' * 64}"),
    "other digest": get(f"/v2/a/blobs/md5:{'a' * 32}"),
    "sha512 blob": get(f"/v2/a/blobs/sha512:{'a' * 128}"),
    "sha512 manifest": get(f"/v2/a/manifests/sha512:{'a' * 128}"),
    "tag as blob": get("/v2/a/blobs/latest"),
    "path parameter": get("/v2/a;/../manifests/latest"),
    "parameter of a tag": get("/v2/a/manifests/latest;x=1"),
    "encoded parameter": get("/v2/a/manifests/latest%3bx=1"),
    "fragment": get("/v2/a/manifests/latest#/../x"),
    "encoded fragment": get("/v2/a/manifests/latest%23"),
    "encoded question mark": get("/v2/a/manifests/latest%3fx=y"),
    # queries
    "tag list with an unknown query": get("/v2/a/tags/list?n=1&x=/../"),
    "path in the query": get(f"{LATEST}?/../../_catalog"),
    "second question mark": get(f"{LATEST}?a?b"),
    "line feed in the query": get(f"{LATEST}?x=%0d%0aX-A:%20b"),
    "NUL in the query": get(f"{LATEST}?x=%00"),
    "long query": get(f"{MANIFEST}?x={'a' * 600}"),
    "host of a namespace": get(f"{LATEST}?ns=http://169.254.169.254/"),
    "ping and a path in its query": get("/v2/?/_catalog"),
    # what registries and mirrors have beside pulls
    "no path": get("*", method="GET"),
    "root": get("/"),
    "v2 without its slash": get("/v2"),
    "version 1": get("/v1/search?q=a"),
    "catalog": get("/v2/_catalog"),
    "catalog with a query": get("/v2/_catalog?n=10000"),
    "encoded catalog": get("/v2/%5fcatalog"),
    "referrers": get(f"/v2/a/referrers/{DIGEST}"),
    "signatures": get("/v2/a/_trust/tuf/root.json"),
    "upload": get("/v2/a/blobs/uploads/"),
    "upload of an id": get("/v2/a/blobs/uploads/0c8a3a4e-5a1f-4d2d-8d3e-1f3a5b7c9d1e?_state=x"),
    "prefix itself": get(f"{PREFIX}/v2/a/manifests/latest"),
    "upstream's own interface": get("/artifactory/api/security/users"),
    "token endpoint of an upstream without one": get("/token?scope=x"),
    "redirect to a host that is not named": get("/redirect/http/169.254.169.254/latest/meta-data/"),
    "redirect to the upstream": get("/redirect/https/localhost/artifactory/api/security/users"),
    "metrics": get("/metrics"),
    "statistics": get("/stats"),
    "debugger": get("/debug/pprof/"),
}
TARGETS_AND_HOSTS = {
    "absolute URI": get("http://127.0.0.1/v2/a/manifests/latest"),
    "absolute URI of another host": get("http://169.254.169.254/v2/a/manifests/latest"),
    "absolute URI of another host's catalog": get("http://169.254.169.254/v2/_catalog"),
    "absolute URI with dots": get("http://127.0.0.1/v2/../api/manifests/latest"),
    "absolute URI with a user": get("http://127.0.0.1@169.254.169.254/v2/a/manifests/latest"),
    "absolute URI with TLS": get("https://127.0.0.1/v2/a/manifests/latest"),
    "file URI": get("file:///etc/passwd"),
    "path without its slash": get("v2/a/manifests/latest"),
    "host and port": get("169.254.169.254:80"),
    "another host": lines(f"GET {LATEST} HTTP/1.1", "Host: 169.254.169.254"),
    "two hosts": get(MANIFEST, "Host: evil.example"),
    "no host": lines(f"GET {MANIFEST} HTTP/1.1"),
    "host with a path": lines(f"GET {MANIFEST} HTTP/1.1", "Host: a/../b"),
    "host with a user": lines(f"GET {MANIFEST} HTTP/1.1", "Host: 127.0.0.1@169.254.169.254"),
    "host with a NUL": lines(f"GET {MANIFEST} HTTP/1.1", "Host: a\0b"),
    "host with a space": lines(f"GET {MANIFEST} HTTP/1.1", "Host: a b"),
    "host with a query": lines(f"GET {MANIFEST} HTTP/1.1", "Host: a?b#c"),
}
METHODS = {
    "POST": get(MANIFEST, "Content-Length: 0", method="POST"),
    "PUT": get(MANIFEST, "Content-Length: 2", method="PUT") + b"{}",
    "PATCH": get(MANIFEST, "Content-Length: 0", method="PATCH"),
    "DELETE": get(MANIFEST, method="DELETE"),
    "OPTIONS": get(MANIFEST, method="OPTIONS"),
    "OPTIONS of everything": get("*", method="OPTIONS"),
    "TRACE": get(MANIFEST, method="TRACE"),
    "CONNECT": get("169.254.169.254:80", method="CONNECT"),
    "CONNECT of a pull": get(MANIFEST, method="CONNECT"),
    "PROPFIND": get(MANIFEST, method="PROPFIND"),
    "lower case method": get(MANIFEST, method="get"),
    "method that begins with GET": get(MANIFEST, method="GETX"),
    "upload by POST": get("/v2/a/blobs/uploads/", "Content-Length: 0", method="POST"),
    "upload by GET and override": get("/v2/a/blobs/uploads/", "X-HTTP-Method-Override: POST"),
    "method overridden": get(MANIFEST, "X-HTTP-Method-Override: GET", "Content-Length: 0", method="POST"),
    "method in the query": get(f"{MANIFEST}?_method=DELETE"),
}
SMUGGLING = {
    # lengths
    "body": get(MANIFEST, LENGTH) + SMUGGLED,
    "body of a HEAD": get(MANIFEST, "Content-Length: 1", method="HEAD") + b"x",
    "one byte of a body": get(MANIFEST, "Content-Length: 1") + b"x",
    "length and nothing": get(MANIFEST, "Content-Length: 5"),
    "CL.CL": get(MANIFEST, "Content-Length: 0", LENGTH) + SMUGGLED,
    "CL.CL, the same": get(MANIFEST, LENGTH, LENGTH) + SMUGGLED,
    "list of lengths": get(MANIFEST, f"Content-Length: 0, {len(SMUGGLED)}") + SMUGGLED,
    "signed length": get(MANIFEST, "Content-Length: +5") + b"12345",
    "negative length": get(MANIFEST, "Content-Length: -1") + SMUGGLED,
    "hexadecimal length": get(MANIFEST, "Content-Length: 0x5") + b"12345",
    "length with leading zeros": get(MANIFEST, f"Content-Length: 000{len(SMUGGLED)}") + SMUGGLED,
    "length beyond 64 bits": get(MANIFEST, "Content-Length: 18446744073709551617") + b"x",
    "empty length": get(MANIFEST, "Content-Length:") + SMUGGLED,
    "length with an underscore": get(MANIFEST, f"Content_Length: {len(SMUGGLED)}") + SMUGGLED,
    "length of zero and another request": get(MANIFEST, "Content-Length: 0") + SMUGGLED,
    "expectation of a body": get(MANIFEST, "Expect: 100-continue", "Content-Length: 5"),
    # chunks
    "chunked body": get(MANIFEST, CHUNKED) + b"0\r\n\r\n",
    "one chunk of a byte": get(MANIFEST, CHUNKED) + b"1\r\nx\r\n0\r\n\r\n",
    "chunks of a request": get(MANIFEST, CHUNKED) + CHUNKS,
    "chunks with trailers": get(MANIFEST, CHUNKED, "Trailer: X-HTTP-Method") + b"0\r\nX-HTTP-Method: DELETE\r\n\r\n" + SMUGGLED,
    "chunk with an extension": get(MANIFEST, CHUNKED) + b"0;x=\"\r\n\r\n\"\r\n" + SMUGGLED,
    "chunk of a negative size": get(MANIFEST, CHUNKED) + b"-1\r\n\r\n" + SMUGGLED,
    "chunk beyond 64 bits": get(MANIFEST, CHUNKED) + b"10000000000000000\r\n\r\n" + SMUGGLED,
    "chunks in HTTP/1.0": get(MANIFEST, CHUNKED, version="HTTP/1.0") + CHUNKS,
    # both
    "CL.TE": get(MANIFEST, "Content-Length: 6", CHUNKED) + b"0\r\n\r\nX",
    "CL.TE of a request": get(MANIFEST, f"Content-Length: {len(SMUGGLED) + 5}", CHUNKED) + b"0\r\n\r\n" + SMUGGLED,
    "TE.CL": get(MANIFEST, CHUNKED, LENGTH) + SMUGGLED,
    "TE.CL of a request": get(MANIFEST, CHUNKED, "Content-Length: 4") + CHUNKS,
    "TE.CL.CL": get(MANIFEST, CHUNKED, "Content-Length: 0", LENGTH) + SMUGGLED,
    # codings that some understand
    "TE.TE, identity": get(MANIFEST, CHUNKED, "Transfer-Encoding: identity") + b"0\r\n\r\n",
    "TE.TE, identity first": get(MANIFEST, "Transfer-Encoding: identity", CHUNKED) + CHUNKS,
    "TE.TE in a list": get(MANIFEST, "Transfer-Encoding: chunked, identity", LENGTH) + SMUGGLED,
    "TE twice": get(MANIFEST, CHUNKED, CHUNKED) + CHUNKS,
    "TE xchunked": get(MANIFEST, "Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "TE xchunked and a length": get(MANIFEST, "Transfer-Encoding: xchunked", LENGTH) + SMUGGLED,
    "TE gzip": get(MANIFEST, "Transfer-Encoding: gzip, chunked") + CHUNKS,
    "TE in mixed case": get(MANIFEST, "tRANSFER-eNCODING: cHuNkEd", LENGTH) + SMUGGLED,
    "TE with a parameter": get(MANIFEST, "Transfer-Encoding: chunked;q=1", LENGTH) + SMUGGLED,
    "TE with a tab": get(MANIFEST, "Transfer-Encoding:\tchunked", LENGTH) + SMUGGLED,
    "TE with a vertical tab": get(MANIFEST, "Transfer-Encoding:\x0bchunked", LENGTH) + SMUGGLED,
    "TE in quotes": get(MANIFEST, 'Transfer-Encoding: "chunked"', LENGTH) + SMUGGLED,
    "TE without a value": get(MANIFEST, "Transfer-Encoding:", LENGTH) + SMUGGLED,
    "TE folded": get(MANIFEST, "Transfer-Encoding:\r\n chunked", LENGTH) + SMUGGLED,
    "TE with an underscore": get(MANIFEST, "Transfer_Encoding: chunked", LENGTH) + SMUGGLED,
    "TE and a space before the colon": get(MANIFEST, "Transfer-Encoding : chunked", LENGTH) + SMUGGLED,
    "TE and a NUL": get(MANIFEST, "Transfer-Encoding\0: chunked", LENGTH) + SMUGGLED,
    "TE behind a bare line feed": get(MANIFEST, "X-A: b\nTransfer-Encoding: chunked", LENGTH) + SMUGGLED,
    "TE behind a bare carriage return": get(MANIFEST, "X-A: b\rTransfer-Encoding: chunked", LENGTH) + SMUGGLED,
    # lines
    "space before the colon": get(MANIFEST, "Content-Length : 5") + b"12345",
    "space before a header": get(MANIFEST, " Content-Length: 5") + b"12345",
    "folded header": get(MANIFEST, "X-A: b\r\n c", "Content-Length: 5") + b"12345",
    "folded header without a body": get(MANIFEST, "X-A: b\r\n X-HTTP-Method: DELETE"),
    "header folded before it begins": get(MANIFEST).replace(b"\r\nHost", b"\r\n X-A: b\r\nHost"),
    "hidden header": get(MANIFEST, "X-A: b\rContent-Length: 5") + b"12345",
    "header without a colon": get(MANIFEST, "Content-Length 5"),
    "header without a name": get(MANIFEST, ": b"),
    "NUL in a header": get(MANIFEST, "X-A: b\0c"),
    "NUL in a header that passes": get(MANIFEST, "Accept: b\0c"),
    "header without end": get(MANIFEST, f"X-A: {'a' * 40000}"),
    "headers without end": get(MANIFEST, *(f"X-{number}: {'a' * 90}" for number in range(500))),
    "bare line feeds": lines(f"GET {LATEST} HTTP/1.1", "Host: a", end="\n"),
    "bare line feeds and a body": lines(f"GET {LATEST} HTTP/1.1", "Host: a", "Content-Length: 5", end="\n") + b"12345",
    "bare carriage returns": lines(f"GET {LATEST} HTTP/1.1", "Host: a", end="\r"),
    "empty lines first": b"\r\n\r\n" + get(MANIFEST),
    "space first": b" " + get(MANIFEST),
    # more than one
    "refused request after a pull": get(MANIFEST) + get("/v2/_catalog"),
    "refused requests in a row": get("/v2/_catalog") + get("/v2/../x") + get("/v2/_catalog"),
    "pull after refused requests": get("/v2/_catalog") + get("/v2/a/../x") + get(MANIFEST),
    "upload and what it holds": get("/v2/a/blobs/uploads/", LENGTH, method="POST") + SMUGGLED,
    "DELETE after a HEAD": get(MANIFEST, method="HEAD") + get(MANIFEST, method="DELETE"),
}
HEADERS = {
    "GET that is a DELETE": get(MANIFEST, "X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE"),
    "GET of another path": get(MANIFEST, "X-Original-URL: /v2/_catalog", "X-Rewrite-URL: /v2/_catalog"),
    "for another host": get(MANIFEST, "X-Forwarded-Host: evil.example", "Forwarded: host=evil.example"),
    "login and session of another": get(MANIFEST, "Authorization: Basic c3RvbGVuOnBhc3M=", "Cookie: session=1"),
    "what only the edge may say": get(MANIFEST, "X-Mirror-Why: true"),
    "headers that go with the connection": get(MANIFEST, "Connection: close, Host, X-Forwarded-For, Authorization"),
    "upgrade to HTTP/2": get(MANIFEST, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    "upgrade to a tunnel": get(MANIFEST, "Connection: Upgrade", "Upgrade: websocket") + SMUGGLED,
    "many ranges": get(MANIFEST, "Range: bytes=" + ",".join(f"{number}-" for number in range(1000))),
    "many ranges of a blob": get(DIGESTED, "Range: bytes=0-0" + ",0-" * 1000),
}
VERSIONS = {
    "HTTP/0.9": f"GET {LATEST}\r\n\r\n".encode(),
    "HTTP/0.9 by its name": get(MANIFEST, version="HTTP/0.9"),
    "HTTP/1.2": get(MANIFEST, version="HTTP/1.2"),
    "HTTP/3.0": get(MANIFEST, version="HTTP/3.0"),
    "HTTP in lower case": get(MANIFEST, version="http/1.1"),
    "no version but more": get(MANIFEST, version="HTTP/1.1 x"),
    "HTTP/2 in disguise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x00\x05hello" + get(MANIFEST),
    "PROXY protocol": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + get(MANIFEST),
}
ATTACKS = {**PATHS, **TARGETS_AND_HOSTS, **METHODS, **SMUGGLING, **HEADERS, **VERSIONS}

# What is a pull in an odd dress, or stands beside what is none: this of it a layer lets through, without the dress.
PULL, PLAIN, ODD = f"GET {MANIFEST}", f"GET {LATEST}", "GET /v2/smuggled/manifests/latest"
BOTH: dict[str, list[str]] = {
    "another host": [PLAIN],
    "bare line feeds": [PLAIN],
    "empty lines first": [PULL],
    "length with an underscore": [PULL, ODD],  # a header like any other
    "refused request after a pull": [PULL],
    "pull after refused requests": [PULL],
    "DELETE after a HEAD": [f"HEAD {MANIFEST}"],
    **{attack: [f"GET {DIGESTED}" if "blob" in attack else PULL] for attack in HEADERS},
}
PASSED: dict[str, dict[str, list[str]]] = {
    "edge": {
        **BOTH,
        "method in the query": [f"{PULL}?_method=DELETE"],
        "length of zero and another request": [PULL, ODD],
        "upgrade to a tunnel": [PULL, ODD],
    },
    "front": {
        **BOTH,
        # The query is dropped, Host is written anew, and so is every header that passes.
        **{attack: [PLAIN] for attack in ("path in the query", "second question mark", "line feed in the query", "NUL in the query", "host of a namespace")},
        **{attack: [PULL] for attack in ("long query", "method in the query", "space before a header", "folded header without a body")},
        **{attack: [PULL] for attack in ("no host", "host with a path", "host with a user", "host with a space", "host with a query")},
        "sha512 blob": [f"GET /v2/a/blobs/sha512:{'a' * 128}"],
        "sha512 manifest": [f"GET /v2/a/manifests/sha512:{'a' * 128}"],
        # The bytes after what was refused are a request of their own, to everybody.
        "length of zero and another request": [ODD],
        "chunks with trailers": [ODD],
        "upgrade to a tunnel": [],
    },
}
# What a layer answers itself without refusing it.
PING = "ping and a path in its query"
REFUSALS = {b"400", b"404", b"405", b"408", b"413", b"414", b"422", b"501", b"502", b"505"}
# The headers that the layers let through, or write.
EDGE_HEADERS = {"host", "connection", "accept", "user-agent", "x-forwarded-for", "x-forwarded-proto"}
FRONT_HEADERS = {"host", "connection", "accept", "authorization", "accept-encoding", "range", "user-agent", "x-forwarded-for"}


class Behind(socketserver.ThreadingTCPServer):
    """Stands where a layer sends what it lets through: keeps every byte, and answers whatever looks like a request."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Noting)
        self.connections: list[bytearray] = []
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def requests(self) -> list[bytes]:
        """What came, without health checks."""
        every = [request for came in self.connections for request in bytes(came).split(b"\r\n\r\n") if request]
        return [request for request in every if b"\r\nuser-agent: mirrorfleet" not in request.lower()]

    def forget(self) -> None:
        for came in self.connections:
            came.clear()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A layer that goes away is part of the tests."""


class _Noting(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        came = bytearray()
        self.server.connections.append(came)  # type: ignore[attr-defined]
        rest = b""
        while data := self.request.recv(65536):
            came += data
            rest += data
            while b"\r\n\r\n" in rest:
                head, _blank, rest = rest.partition(b"\r\n\r\n")
                self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + (b"" if head.startswith(b"HEAD ") else b"{}"))


@dataclass
class Layer:
    """A program that refuses, and what is behind it."""

    address: str
    program: mirror_edge.Edge | haproxy_front.Front
    behind: list[Behind]

    def send(self, name: str, request: bytes, pulls: int) -> bytes:
        """What comes back until there is silence, and so many pulls are answered. Who waits for more gets none."""
        answer = b""
        try:
            with socket.create_connection((self.address, self.program.ports[name]), 5) as connection:
                connection.sendall(request)
                connection.settimeout(2)
                try:
                    while part := connection.recv(65536):
                        answer += part
                        connection.settimeout(0.05 if answer.count(b"HTTP/1.1 200 ") >= pulls else 2)
                except TimeoutError:
                    if not answer:
                        connection.shutdown(socket.SHUT_WR)
                        connection.settimeout(5)
                        while part := connection.recv(65536):
                            answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer

    def arrived(self) -> list[bytes]:
        return [request for each in self.behind for request in each.requests()]


@pytest.fixture(scope="module")
def edge(render: Render, base: Path) -> Iterator[Layer]:
    """No TLS and no limits, so that nothing else refuses. Behind it what stands for the cache, and for the coalescer."""
    port = upstream_port()
    behind = [Behind(port + PORT_OFFSETS[name]) for name in ("cache", "coalescer")]
    directory = base / "edge"
    directory.mkdir()
    files, = render("mirror_edge", {
        "mirror_upstreams": [{"name": "central", "url": "http://a.example", "port": port, "canary": "a:1"}],
        **mirror_edge.directories(directory), "mirror_edge_tls": "none", "mirror_edge_bind": "127.0.0.1",
    })
    running = mirror_edge.start_nginx(directory, files, "127.0.0.1", {"central": port})
    try:
        mirror_edge.listen(running)
        yield Layer(running.address, running, behind)
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(10)
        for each in behind:
            each.stop()


@pytest.fixture(scope="module")
def front(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    """An upstream with a password and a path prefix, and one with tokens."""
    behind = [Behind(), Behind()]
    ports = {name: upstream_port() for name in ("central", "hub")}
    common = {"canary": "a:1", "redirect_hosts": ["storage.example"]}
    urls = [f"http://127.0.0.1:{each.port}" for each in behind]
    directory = tmp_path_factory.mktemp("front")
    stats_port = upstream_port()
    files, = render("haproxy_front", {
        "mirror_upstreams": [
            {**common, "name": "central", "url": urls[0], "port": ports["central"], "path_prefix": PREFIX, "username": "dc-reader", "password": PASSWORD},
            {**common, "name": "hub", "url": urls[1], "port": ports["hub"], "auth": "bearer", "token_realm": f"{urls[1]}/auth", "token_service": "hub.test"},
        ],
        "haproxy_front_stats_bind": f"127.0.0.1:{stats_port}", "haproxy_front_resolve": "starting", "__haproxy_front_run": str(directory),
    })
    try:
        with haproxy_front.haproxy(files, directory, {name: port + PORT_OFFSETS["front"] for name, port in ports.items()}, stats_port) as running:
            yield Layer("127.0.0.1", running, behind)
    finally:
        for each in behind:
            each.stop()


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, str]]]:
    """What the layers answered, by attack; printed when all have."""
    cells: dict[str, dict[str, str]] = {attack: {} for attack in ATTACKS}
    yield cells
    rows = [f"| {attack} | {said.get('edge', '')} | {said.get('front', '')} |" for attack, said in cells.items()]
    print("\n\n" + HEAD, *rows, sep="\n")


def attack_on(layer: Layer, name: str, upstream: str, attack: str) -> str:
    """Send it, make sure that nothing but what may pass has passed, and say what was answered."""
    for each in layer.behind:
        each.forget()
    prefix = PREFIX if (name, upstream) == ("front", "central") else ""
    passed = [each.replace(" ", f" {prefix}", 1) for each in PASSED[name].get(attack, [])]
    answer = layer.send(upstream, ATTACKS[attack], len(passed))
    arrived = layer.arrived()
    assert sorted(request.split(b"\r\n")[0].decode() for request in arrived) == sorted(f"{each} HTTP/1.1" for each in passed)
    for request in arrived:
        headers = {line.split(b":")[0].decode().lower(): line.partition(b":")[2].strip() for line in request.split(b"\r\n")[1:]}
        assert not re.search(rb"[^\x20-\x7e\r\n]", request)
        assert re.fullmatch(rb"(bytes=\d*-\d*)?", headers.get("range", b""))
        assert not set(headers) - (EDGE_HEADERS if name == "edge" else FRONT_HEADERS)
        if name == "front":
            assert headers.get("authorization") == (f"Basic {CREDENTIAL}".encode() if prefix else None)
            assert headers["host"] == f"127.0.0.1:{layer.behind[upstream == 'hub'].port}".encode()
    assert not re.search(rb"root:|%b|%b" % (CREDENTIAL.encode(), PASSWORD.encode()), answer)

    answered = [status for status in re.findall(rb"HTTP/1\.[01] (\d{3})", answer) if status != b"100"]
    refused = [status for status in answered if status != b"200"]
    assert set(refused) <= REFUSALS | ({b"401"} if attack == PING else set()), answer[:300]
    assert answered.count(b"200") == (1 if attack == PING and not refused else len(passed)), answer[:300]
    # Where there is no head, HTTP/0.9 was spoken.
    if answer and not answered:
        assert json.loads(answer)["errors"][0]["code"]
        return "its words without a head"
    if refused and not ATTACKS[attack].startswith(b"HEAD"):
        body = re.split(rb"HTTP/1\.1 (?!200|100)", answer, maxsplit=1)[1].partition(b"\r\n\r\n")[2].split(b"HTTP/1.1 ")[0]
        # The program's own words for what is no HTTP.
        assert body.startswith(b"<html>") or json.loads(body)["errors"][0]["code"]
        assert not body.startswith(b"<html>") or refused[-1] not in (b"404", b"405")
    said = ", ".join(status.decode() for status in answered) or "closed"
    return f"{said}: the plain pull" if len(passed) == 1 else f"{said}: the plain pulls" if passed else said


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_at_the_edge(edge: Layer, table: dict[str, dict[str, str]], attack: str) -> None:
    table[attack]["edge"] = attack_on(edge, "edge", "central", attack)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_once_more_at_the_rewrite_front(front: Layer, table: dict[str, dict[str, str]], attack: str) -> None:
    """Of an upstream with a password, and of one with tokens."""
    table[attack]["front"] = attack_on(front, "front", "central", attack)
    if not attack.startswith("token endpoint"):
        attack_on(front, "front", "hub", attack)


def test_whatever_came_is_logged_as_json(edge: Layer, front: Layer) -> None:
    """Without the credential, and no line is long."""
    assert isinstance(edge.program, mirror_edge.Edge) and isinstance(front.program, haproxy_front.Front)
    edge.program.request("central", f"/v2/{'a' * 5000}", User_Agent="b" * 5000)
    until(lambda: b'"agent":"bbb' in edge.program.log())
    lines_of = {"edge": edge.program.lines(), "front": front.program.log_lines()}
    assert all(isinstance(line["status"], int) and len(line["path"]) <= 512 for each in lines_of.values() for line in each)
    assert max(map(len, edge.program.log().splitlines())) < 1200
    assert CREDENTIAL not in edge.program.log().decode() + front.program.log()


def test_the_table_in_the_document_has_every_attack() -> None:
    rows = DOCUMENT.read_text().partition(HEAD)[2]
    assert re.findall(r"^\| (.+?) \| [^|]+ \| [^|]+ \|$", rows, re.MULTILINE) == list(ATTACKS)
