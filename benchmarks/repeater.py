# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Asks for one thing again and again, as fast as the server gives it.

usage: repeater.py URL [--clients N] [--seconds S] [--accept TYPE]

A client is a process with one connection. Bodies are counted and thrown away, without TLS by the kernel (MSG_TRUNC, tcp(7)), so that
the clients take as little of the machine as can be; nothing is verified. Prints JSON: requests, bytes, seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import ssl
import sys
import time
from urllib.parse import urlsplit

ROOM = 4 * 1024 * 1024
MAX_HEAD = 64 * 1024


class Connection:
    def __init__(self, url: str, accept: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._flags = int(socket.MSG_TRUNC)
        if parts.scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._socket = context.wrap_socket(self._socket)
            self._flags = 0
        self._request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: {accept}\r\n\r\n".encode()
        self._room = bytearray(ROOM)

    def get(self) -> int:
        """The bytes of one body."""
        self._socket.sendall(self._request)
        head = b""
        while b"\r\n\r\n" not in head:
            part = self._socket.recv(1024)
            if not part or len(head) > MAX_HEAD:
                sys.exit(f"no answer: {head!r}")
            head += part
        head, _blank, begun = head.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = [line for line in lines if line.startswith(b"content-length:")]
        if b" 200 " not in lines[0] + b" " or not lengths:
            sys.exit(f"neither 200 nor a length: {head!r}")
        length = int(lengths[0].partition(b":")[2])
        left = length - len(begun)
        while left:
            received = self._socket.recv_into(self._room, min(ROOM, left), self._flags)
            if not received:
                sys.exit(f"ended {left} bytes early")
            left -= received
        return length


def client(url: str, accept: str, begin: float, seconds: float, results: multiprocessing.Queue[tuple[int, int, float]]) -> None:
    requests = received = 0
    try:
        connection = Connection(url, accept)
        time.sleep(max(0.0, begin - time.monotonic()))
        while not requests or time.monotonic() - begin < seconds:
            received += connection.get()
            requests += 1
        results.put((requests, received, time.monotonic() - begin))
    except BaseException as error:
        results.put((0, 0, 0.0))
        print(error, file=sys.stderr)


def repeat(url: str, accept: str, clients: int, seconds: float) -> dict[str, float]:
    results: multiprocessing.Queue[tuple[int, int, float]] = multiprocessing.Queue()
    begin = time.monotonic() + 0.2
    processes = [multiprocessing.Process(target=client, args=(url, accept, begin, seconds, results), daemon=True) for _number in range(clients)]
    for process in processes:
        process.start()
    seen = [results.get() for _process in processes]
    for process in processes:
        process.join()
    if not all(requests for requests, _received, _took in seen):
        sys.exit(f"{url}: a client failed")
    return {"requests": sum(each[0] for each in seen), "bytes": sum(each[1] for each in seen), "seconds": max(each[2] for each in seen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--accept", default="*/*", metavar="TYPE")
    options = parser.parse_args()
    print(json.dumps(repeat(options.url, options.accept, options.clients, options.seconds)))


if __name__ == "__main__":
    main()
