# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""A client that asks a mirror for /v2/ all the time, a new connection each time, and what it has seen.

usage: ask.py ask LOG ADDRESS PORT CA          ask until killed; a line for each request: when it ended, which mirror host's certificate, or -
       ask.py tell LOG SINCE                   as JSON, what came of the requests that ended after SINCE (seconds since the epoch)
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time

SECONDS = 0.5  # for a connection, and for each step of the answer
PAUSE = 0.02
SETTLED = 10  # so many good answers in a row, of one host


def ask(log: str, address: str, port: str, ca: str) -> None:
    context = ssl.create_default_context(cafile=ca)
    with open(log, "w", buffering=1) as lines:
        while True:
            host = "-"
            try:
                with socket.create_connection((address, int(port)), SECONDS) as plain, context.wrap_socket(plain, server_hostname=address) as connection:
                    connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n")
                    if connection.recv(1024).startswith(b"HTTP/1.1 200 "):
                        host = next(name for kind, name in connection.getpeercert()["subjectAltName"] if kind == "DNS")
            except OSError:
                pass
            lines.write(f"{time.time():.3f} {host}\n")
            time.sleep(PAUSE)


def tell(log: str, since: str) -> None:
    with open(log) as lines:
        seen = [(float(when), host) for when, host in (line.split() for line in lines if line.endswith("\n"))]
    before = [when for when, host in seen if host != "-" and when < float(since)]
    after = [(when, host) for when, host in seen if when >= float(since)]
    good = before[-1:] + [when for when, host in after if host != "-"]
    last = {host for _when, host in after[-SETTLED:]} if len(after) >= SETTLED else set()
    print(json.dumps({
        "asked": len(after),
        "failed": sum(host == "-" for _when, host in after),
        "seconds_without_answer": round(max((later - earlier for earlier, later in zip(good, good[1:])), default=0), 2),
        "settled": last.pop() if len(last) == 1 else "-",
    }))


if __name__ == "__main__":
    {"ask": ask, "tell": tell}[sys.argv[1]](*sys.argv[2:])
