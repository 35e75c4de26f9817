# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What is measured: clients that pull what no mirror has yet, and what a mirror does with an image that it has.

Imported by the benchmark; it is no command.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Iterator

from images import MANIFEST, MEGA, TAG, Family
from programs import BenchmarkError, anonymous_bytes, cpu_seconds, run, until
from setups import SETUPS, WARM, Central, Direct, Place, PlainFile, Setup, blob_of

# The set-ups take turns so often: what else runs on the machine takes from all of them, and a set-up's share of it is the median.
ROUNDS = 5
HERE = Path(__file__).resolve().parent


@dataclass
class Cold:
    """Clients that pull at once what the mirror does not have."""

    scenario: str
    setup: str
    image: str
    clients: int
    round_trip: float
    over: float
    skipped: str = ""
    seconds: float = 0.0
    times_link: float = 0.0  # against the distinct bytes on the bare link
    times_direct: float | None = None  # against one client that pulls directly
    longest_wait: float = 0.0
    distinct_bytes: int = 0
    wan_bytes: int = 0
    amplification: float = 0.0
    cpu_seconds_per_gb: float | None = None
    memory_bytes: int = 0
    memory_bytes_by_program: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    failures: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass
class Warm:
    """Clients that ask again and again for what the mirror has."""

    what: str  # blob, manifest by digest, manifest by tag
    setup: str
    tls: bool
    clients: int
    requests_per_second: float
    gigabytes_per_second: float
    cpu_seconds_per_gb: float
    cpu_seconds_per_1000: float
    # Round by round, for comparisons within one.
    requests_per_second_each: list[float] = field(default_factory=list)


class Watch:
    """What the programs of a set-up take while it lasts."""

    def __init__(self, setup: Setup) -> None:
        self._processes = {program.name: program.processes() for program in setup.programs}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.memory = 0
        self.memory_by_program: dict[str, int] = {}
        self.cpu = 0.0

    def __enter__(self) -> Watch:
        self.cpu = -self._cpu()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self.cpu += self._cpu()

    def _cpu(self) -> float:
        return sum(cpu_seconds(pid) for pids in self._processes.values() for pid in pids)

    def _sample(self) -> None:
        while True:
            now = {name: sum(map(anonymous_bytes, pids)) for name, pids in self._processes.items()}
            if sum(now.values()) > self.memory:
                self.memory, self.memory_by_program = sum(now.values()), now
            if self._done.wait(0.25):
                return


@dataclass
class Bench:
    place: Place
    central: Central
    families: dict[str, Family]
    told: Callable[[str], None]
    cold_results: list[Cold] = field(default_factory=list)
    warm_results: list[Warm] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """One measurement: what the last one left to be written is written before; when it fails, the next ones are made all the same."""
        run("sync")
        try:
            yield
        except BenchmarkError as error:
            self.failures.append(f"{what}: {error}")
            self.told(f"{what} FAILED: {error}")

    def pull(self, setup: Setup, references: list[str], clients: int, over: float = 0.0) -> dict[str, Any]:
        """What puller.py reports."""
        images = [setup.repository(each) for each in references]
        options = ["--clients", str(clients), "--over", str(over), "--user", setup.user]
        return dict(json.loads(self._inside("puller.py", ",".join(setup.urls), *images, *options)))

    def repeat(self, url: str, clients: int, seconds: float) -> dict[str, float]:
        """What repeater.py reports."""
        return dict(json.loads(self._inside("repeater.py", url, "--clients", str(clients), "--seconds", str(seconds), "--accept", MANIFEST)))

    def _inside(self, script: str, *arguments: str) -> str:
        offer = f"OPENSSL_CONF={HERE / 'docker-hosts.cnf'}"
        return run("ip", "netns", "exec", self.place.wan.datacenter, "env", offer, sys.executable, str(HERE / script), *arguments)

    def direct_seconds(self, image: str, far: bool) -> float:
        """How long one client takes that pulls directly; measured when it is first asked for."""
        round_trip = self.place.far if far else 0.0
        for row in self.cold_results:
            if (row.setup, row.image, row.clients, row.round_trip) == (Direct.name, image, 1, round_trip):
                return row.seconds
        return self.cold("one direct", Direct.name, image, 1, far).seconds

    def cold(self, scenario: str, name: str, image: str, clients: int, far: bool = False, over: float = 0.0, serial: bool = False) -> Cold:
        family = self.families[image]
        row = Cold(scenario, name, image, clients, self.place.far if far else 0.0, over)
        row.skipped = SETUPS[name].missing()
        if row.skipped:
            self.cold_results.append(row)
            self.told(f"{scenario}: {name} skipped: {row.skipped}")
            return row
        one_image = len(family.references) == 1
        direct = None if name == Direct.name or not one_image else self.direct_seconds(image, far)
        wan = self.place.wan
        with SETUPS[name](self.place, far) as setup:
            # What the programs ask at their start does not count.
            before = wan.settled_bytes()
            with Watch(setup) as watch:
                if serial:
                    seen = _together([self.pull(setup, [each], 1) for each in family.references])
                else:
                    seen = self.pull(setup, family.references, clients, over)
                row.wan_bytes = wan.settled_bytes() - before
        row.seconds, row.longest_wait = seen["seconds"], seen["longest_wait"]
        row.retries, row.failures, row.errors = seen["retries"], seen["failures"], seen["errors"]
        row.distinct_bytes = family.bytes
        row.amplification = row.wan_bytes / family.bytes
        row.times_link = row.seconds / (family.bytes * 8 / (wan.megabits * MEGA))
        row.times_direct = row.seconds / direct if direct else None
        row.cpu_seconds_per_gb = watch.cpu / (seen["bytes"] / 1e9) if setup.programs and seen["bytes"] else None
        row.memory_bytes, row.memory_bytes_by_program = watch.memory, watch.memory_by_program
        self.cold_results.append(row)
        self.told(f"{scenario}: {name}, {clients} clients, {image}: {row.seconds:.1f} s, WAN {row.amplification:.2f}, {row.failures} failed")
        return row

    def warm(self, image: str, seconds: float, what: str) -> None:
        """``what``: blobs, at one and at eight clients, without and with TLS; or manifests, by digest and by tag."""
        for tls in (False, True) if what == "warm-blobs" else (False,):
            with ExitStack() as stack:
                setups: list[Setup] = []
                for kind in WARM:
                    # Drayage leaves TLS to others; nobody but a registry has manifests.
                    if kind.missing() or (tls and kind.name == "drayage") or (what == "warm-manifests" and kind is PlainFile):
                        continue
                    with self.going_on(f"{what}, {kind.name}{', TLS' if tls else ''}"):
                        setup = stack.enter_context(kind(self.place, tls=tls))
                        self._fill(setup, image)
                        setups.append(setup)
                with self.going_on(f"{what}{', TLS' if tls else ''}"):
                    self._blobs(setups, image, seconds) if what == "warm-blobs" else self._manifests(setups, image, seconds)

    def _fill(self, setup: Setup, image: str) -> None:
        family = self.families[image]
        if isinstance(setup, PlainFile):
            for digest in family.blobs:
                setup.add(family.repositories[0], digest, blob_of(self.central.store, digest))
            return
        self.place.wan.shape(0)
        try:
            for _time in ("cold", "warm"):
                seen = self.pull(setup, family.references, 1)
                if seen["failures"]:
                    raise BenchmarkError(f"{setup.name} could not be filled: {seen['errors']}")
                until(lambda: setup.keeps(family.blobs), f"{setup.name} keeps what was pulled")
        finally:
            self.place.wan.shape(self.place.wan.megabits)

    def _blobs(self, setups: list[Setup], image: str, seconds: float) -> None:
        family = self.families[image]
        digest = max(family.blobs, key=lambda each: family.blobs[each])
        for clients in (1, 8):
            self._in_turn("blob", setups, family.repositories[0], f"blobs/{digest}", clients, seconds)

    def _manifests(self, setups: list[Setup], image: str, seconds: float) -> None:
        repository, = self.families[image].repositories
        for what, target in (("manifest by digest", self.families[image].manifests[repository]), ("manifest by tag", TAG)):
            self._in_turn(what, setups, repository, f"manifests/{target}", 8, seconds)

    def _in_turn(self, what: str, setups: list[Setup], repository: str, target: str, clients: int, seconds: float) -> None:
        seen: dict[str, list[tuple[dict[str, float], float]]] = {setup.name: [] for setup in setups}
        for _round in range(ROUNDS):
            for setup in setups:
                with Watch(setup) as watch:
                    counted = self.repeat(f"{setup.url}/v2/{setup.repository(repository)}/{target}", clients, seconds)
                seen[setup.name].append((counted, watch.cpu))
        for setup in setups:
            counts = [counted for counted, _cpu in seen[setup.name]]
            cpu = sum(cpu for _counted, cpu in seen[setup.name])
            each = [counted["requests"] / counted["seconds"] for counted in counts]
            row = Warm(
                what, setup.name, setup.tls, clients, statistics.median(each),
                statistics.median(counted["bytes"] / counted["seconds"] for counted in counts) / 1e9,
                cpu / (sum(counted["bytes"] for counted in counts) / 1e9), cpu / sum(counted["requests"] for counted in counts) * 1000, each,
            )
            self.warm_results.append(row)
            self.told(f"warm: {what}, {setup.name}{', TLS' if setup.tls else ''}, {clients} clients: "
                      f"{row.requests_per_second:.0f} requests/s, {row.gigabytes_per_second:.2f} GB/s")


def _together(pulls: list[dict[str, Any]]) -> dict[str, Any]:
    """Pulls one after the other, as one."""
    return {
        **{name: sum(each[name] for each in pulls) for name in ("seconds", "bytes", "retries", "failures")},
        "longest_wait": max(each["longest_wait"] for each in pulls),
        "errors": [error for each in pulls for error in each["errors"]][:5],
    }


# Scenario, set-up, image, clients, far, over, serial.
Step = tuple[str, str, str, int, bool, float, bool]


def plan(quick: bool) -> dict[str, list[Step]]:
    """The cold scenarios. Where fifty clients would take a quarter of an hour, the image is the small one, which the table says."""
    big, shared = ("mini", "shared-mini") if quick else ("big", "shared")
    four = (("direct", "mini"), ("classic", "mini"), ("drayage", big), ("ours", big))
    steps: dict[str, list[Step]] = {
        "cold-1": [("cold-1", name, big, 1, False, 0, False) for name, _image in four],
        "cold-10": [("cold-10", name, image, 10, False, 0, False) for name, image in four],
        "cold-50": [("cold-50", name, image, 50, False, 0, False) for name, image in four[1:]],
        "far-50": [("far-50", name, image, 50, True, 0, False) for name, image in four[2:]],
        "arriving-50": [("arriving-50", name, image, 50, False, 20, False) for name, image in four[2:]],
        "shared-20": [
            *(("shared-20", name, image, 20, False, 0, False) for name, image in (("classic", "shared-mini"), ("drayage", shared), ("ours", shared))),
            ("shared-serial", "ours", shared, 1, False, 0, True),
        ],
        "mirrors-2": [("mirrors-2", "ours-2", big, 50, False, 0, False)],
        "mirrors-3": [("mirrors-3", "ours-3", big, 50, False, 0, False)],
        "redirect-50": [("redirect-50", "ours-redirect", big, 50, False, 0, False)],
    }
    if quick:
        slow = {("direct", 10), ("classic", 20), ("classic", 50)}
        del steps["arriving-50"]
        steps = {scenario: [each for each in wanted if (each[1], each[3]) not in slow] for scenario, wanted in steps.items()}
    return steps


WARM_SCENARIOS = ("warm-blobs", "warm-manifests")
