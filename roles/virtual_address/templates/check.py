# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Whether this mirror host may have the virtual address: 0 when it is not taken out of service and its edge answers /v2/.

usage: check.py FILE ADDRESS PORT SCHEME     FILE takes the host out of service; SCHEME is http or https
keepalived runs it every second, so it imports little.
"""

import os
import socket
import sys
import time

SECONDS = 1.0  # for the connection, and for each step of the answer
TRIES = 2  # an edge that is restarted is away for a moment


def answers(address: str, port: int, scheme: str) -> bool:
    """Whether an HTTP server answers /v2/ with anything but a failure of its own; who may pull is not asked here."""
    try:
        with socket.create_connection((address, port), SECONDS) as connection:
            if scheme == "https":
                import ssl

                # Whether the certificate is right is for docker hosts to judge: it names the mirror, not this address.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                connection = context.wrap_socket(connection)
            connection.sendall(b"HEAD /v2/ HTTP/1.1\r\nHost: mirror\r\nUser-Agent: mirrorfleet-address\r\nConnection: close\r\n\r\n")
            version, _space, status = connection.recv(64).partition(b" ")
    except OSError:
        return False
    return version.startswith(b"HTTP/") and status[:1] in (b"2", b"4")


def main(drained: str, address: str, port: str, scheme: str) -> int:
    for attempt in range(TRIES):
        if os.path.lexists(drained):
            return 1
        if answers(address, int(port), scheme):
            return 0
        if attempt + 1 < TRIES:
            time.sleep(0.3)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
