# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The WAN of the benchmark: two network namespaces, a link between them that tc shapes, a relay for the distance, and mirror hosts on a LAN.

Imported by the benchmark; it is no command. Nothing of it is seen outside its namespaces, and it goes with them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType

from programs import Program, end, run

CENTRAL_ADDRESS = "192.0.2.1"
CENTRAL_PORT = 8443
DATACENTER_ADDRESS = "192.0.2.2"
WAN_NETWORK = "192.0.2.0/30"
# Where the data center finds the central registry at a distance.
RELAY_ADDRESS = "127.0.0.1"
RELAY_PORT = 8444
# A private network, as the edge's defaults allow it.
LAN = "10.91.0"
LAN_NETWORK = f"{LAN}.0/24"
ROUTER_ADDRESS = f"{LAN}.1"

# All namespaces of the benchmark begin with this, and nobody else's.
PREFIX = "mirrorfleet-bench-"

# Linux's own choice, whatever the machine has as its default: with BBR nginx sends over loopback at a quarter of the rate and no faster
# than distribution, which hides what is to be compared (README.md, "Warm").
CONGESTION = "cubic"

# Ethernet, IPv4 and TCP with timestamps: what a packet on the link has beside its payload.
_HEADERS = 14 + 20 + 32


def clear() -> None:
    """End what runs in the benchmark's namespaces, and remove them: this one's at its end, or what one left that was killed."""
    for namespace in (line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.startswith(PREFIX)):
        for pid in run("ip", "netns", "pids", namespace, check=False).split():
            end(int(pid))
        run("ip", "netns", "delete", namespace, check=False)


class Wan:
    """A namespace `central`, a namespace `dc`, where the clients are, and the link. Used in a `with` statement."""

    def __init__(self, directory: Path, megabits: int) -> None:
        self.directory, self.megabits = directory, megabits
        self.central, self.datacenter = f"{PREFIX}central", f"{PREFIX}dc"
        self._hosts: dict[int, str] = {}

    def __enter__(self) -> Wan:
        try:
            for namespace in (self.central, self.datacenter):
                self._add(namespace)
            run("ip", "link", "add", "wan", "netns", self.central, "type", "veth", "peer", "name", "wan", "netns", self.datacenter)
            for namespace, address in ((self.central, CENTRAL_ADDRESS), (self.datacenter, DATACENTER_ADDRESS)):
                self._join(namespace, "wan", address, WAN_NETWORK)
            self.shape(self.megabits)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        clear()

    def host(self, number: int) -> tuple[str, str]:
        """The namespace and the address of a mirror host of its own on the data center's LAN. Its way to the WAN is the data center's."""
        if not self._hosts:
            # The clients' namespace is the LAN's switch and its router.
            run("ip", "-n", self.datacenter, "link", "add", "lan", "type", "bridge")
            self._join(self.datacenter, "lan", ROUTER_ADDRESS, LAN_NETWORK)
            run("ip", "netns", "exec", self.datacenter, "sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1")
            self._route(self.central, LAN_NETWORK, "via", DATACENTER_ADDRESS)
        address = f"{LAN}.{10 + number}"
        if number not in self._hosts:
            namespace = self._hosts[number] = f"{PREFIX}mirror-{number}"
            self._add(namespace)
            run("ip", "link", "add", "lan", "netns", namespace, "type", "veth", "peer", "name", f"host{number}", "netns", self.datacenter)
            run("ip", "-n", self.datacenter, "link", "set", f"host{number}", "master", "lan", "up")
            self._join(namespace, "lan", address, LAN_NETWORK)
            self._route(namespace, "default", "via", ROUTER_ADDRESS)
        return self._hosts[number], address

    def _add(self, namespace: str) -> None:
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        self._route(namespace, "local", "127.0.0.1", "dev", "lo", "proto", "kernel", "scope", "host", "src", "127.0.0.1", "table", "local")

    def _join(self, namespace: str, device: str, address: str, network: str) -> None:
        run("ip", "-n", namespace, "address", "add", f"{address}/{network.partition('/')[2]}", "dev", device)
        run("ip", "-n", namespace, "link", "set", device, "up")
        self._route(namespace, network, "dev", device, "proto", "kernel", "scope", "link", "src", address)

    @staticmethod
    def _route(namespace: str, *route: str) -> None:
        # By route: a namespace may not make every algorithm its default.
        run("ip", "-n", namespace, "route", "replace", *route, "congctl", CONGESTION)

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
