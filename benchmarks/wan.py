# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The WAN of the benchmark: two network namespaces, a link between them that tc shapes, and a relay for the distance.

Imported by the benchmark; it is no command. Nothing of it is seen outside the two namespaces, and it goes with them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from programs import Program, end, run

CENTRAL_ADDRESS = "192.0.2.1"
CENTRAL_PORT = 8443
# Where the data center finds the central registry at a distance.
RELAY_ADDRESS = "127.0.0.1"
RELAY_PORT = 8444

# Ethernet, IPv4 and TCP with timestamps: what a packet on the link has beside its payload.
_HEADERS = 14 + 20 + 32


class Wan:
    """A namespace `central`, a namespace `datacenter`, and the link. Used in a `with` statement."""

    def __init__(self, directory: Path, megabits: int) -> None:
        self.directory, self.megabits = directory, megabits
        self.central, self.datacenter = (f"mirrorfleet-bench-{os.getpid()}-{end}" for end in ("central", "dc"))

    def __enter__(self) -> Wan:
        try:
            for namespace in (self.central, self.datacenter):
                run("ip", "netns", "add", namespace)
                run("ip", "-n", namespace, "link", "set", "lo", "up")
            run("ip", "link", "add", "wan", "netns", self.central, "type", "veth", "peer", "name", "wan", "netns", self.datacenter)
            for namespace, address in ((self.central, CENTRAL_ADDRESS), (self.datacenter, "192.0.2.2")):
                run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", "wan")
                run("ip", "-n", namespace, "link", "set", "wan", "up")
            self.shape(self.megabits)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for namespace in (self.central, self.datacenter):
            for pid in run("ip", "netns", "pids", namespace, check=False).split():
                end(int(pid))
            run("ip", "netns", "delete", namespace, check=False)

    def shape(self, megabits: int) -> None:
        """The link's rate towards the data center; 0 for as fast as the machine can."""
        run("tc", "-n", self.central, "qdisc", "delete", "dev", "wan", "root", check=False)
        if megabits:
            run("tc", "-n", self.central, "qdisc", "add", "dev", "wan", "root", "tbf", "rate", f"{megabits}mbit", "burst", "128kb", "latency", "50ms")

    def bytes(self) -> int:
        """What came over the link into the data center since the start, without the packets' headers."""
        link, = json.loads(run("ip", "-n", self.central, "-json", "-statistics", "link", "show", "dev", "wan"))
        sent = link["stats64"]["tx"]
        return int(sent["bytes"]) - _HEADERS * int(sent["packets"])

    def settled_bytes(self) -> int:
        """The same, once nothing but health checks crosses the link: distribution 2.8 may still be storing."""
        before = self.bytes()
        while True:
            time.sleep(0.5)
            now = self.bytes()
            if now - before < 20_000:
                return now
            before = now

    def relay(self, round_trip: float) -> Program:
        """A relay in the data center that makes the central registry so many seconds far."""
        here, there = f"{RELAY_ADDRESS}:{RELAY_PORT}", f"{CENTRAL_ADDRESS}:{CENTRAL_PORT}"
        argv = [sys.executable, str(Path(__file__).with_name("relay.py")), here, there, str(round_trip)]
        return Program("relay", argv, self.datacenter, self.directory / "relay.log")
