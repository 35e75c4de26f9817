# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The benchmark: what an image costs the WAN and how long docker hosts wait for it, with this mirror and with what else there is.

usage: .venv/bench/bin/python benchmarks/pull.py [--quick] [--only SCENARIO …] [--output DIR]        (as root; `make bench` for all)

It runs a central registry, a WAN of 100 Mbit/s and each set-up with the real programs, in network namespaces of its own, and
stops and removes all of it at its end, also on Ctrl-C. What a benchmark left that was killed, the next one removes. --only takes the
beginnings of names: `--only warm cold-50`. All takes about a quarter of an hour, --quick a few minutes. A run of everything writes
benchmarks/results; another one only where --output says. benchmarks/README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import report
from images import families
from programs import BenchmarkError
from scenarios import WARM_SCENARIOS, Bench, plan
from setups import SETUPS, Central, Place, check_machine
from wan import CONGESTION, PREFIX, Wan, clear

MEGABITS = 100
ROUND_TRIP = 0.08
# Not /tmp, which can be memory.
WORK = Path("/var/tmp")
LOCK = Path("/run/mirrorfleet-bench.lock")
# A load that is not the benchmark's own.
BUSY = 0.5


def alone() -> None:
    """Make this the only benchmark until it ends. What carries its name and is there already was left by one that was killed: it goes."""
    lock = os.open(LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BenchmarkError("another benchmark runs on this machine: wait for its end") from None
    clear()
    for left in WORK.glob(f"{PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def chosen(only: list[str], names: list[str]) -> list[str]:
    """The scenarios that are asked for by their names, or by the beginnings of several; all when nothing is."""
    for each in only:
        if not any(name.startswith(each) for name in names):
            raise BenchmarkError(f"--only {each}: there is no such scenario; choose of {', '.join(names)}, or a beginning of them")
    # cold-1 is not cold-10.
    return [name for name in names if not only or name in only or any(name.startswith(each) for each in only if each not in names)]


def measure(quick: bool, names: list[str]) -> Bench:
    steps = [step for name, wanted in plan(quick).items() if name in names for step in wanted]
    warm = [name for name in WARM_SCENARIOS if name in names]
    image = "mini" if quick else "big"
    began = time.monotonic()

    def told(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=WORK))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)
        wan = stack.enter_context(Wan(directory, MEGABITS))
        place = Place(directory, wan, ROUND_TRIP)
        place.prepare()
        central = Central(place)
        stack.enter_context(central)
        relay = wan.relay(ROUND_TRIP)
        stack.callback(relay.stop)
        wanted = sorted({image, *(step[2] for step in steps)})
        bench = Bench(place, central, dict(families(central.publish(wanted))), told)
        told("the central registry has the images")
        for step in steps:
            with bench.going_on(f"{step[0]}, {step[1]}"):
                bench.cold(*step)
        for what in warm:
            bench.warm(image, 0.3 if quick else 1.0, what)
        return bench


def show(bench: Bench) -> list[report.Goal]:
    if bench.cold_results:
        print("\nCold pulls; the WAN has 100 Mbit/s\n")
        print(report.cold_table(bench.cold_results))
    if bench.warm_results:
        print("\nWarm\n")
        print(report.warm_table(bench.warm_results))
    print()
    for kind in SETUPS.values():
        print(f"{kind.name:13} {kind.about}{'; SKIPPED: ' + kind.missing() if kind.missing() else ''}")
    print("CPU and memory are the mirror's programs'. A smaller image stands where a set-up would take a quarter of an hour with the big one.")
    for row in bench.cold_results:
        for error in row.errors:
            print(f"{row.scenario}, {row.setup}: {error[:300]}")
    for failure in bench.failures:
        print(f"NOT MEASURED: {failure}")
    found = report.goals(bench.cold_results, bench.warm_results)
    if found:
        print()
        print(report.goal_table(found))
    return found


def write(bench: Bench, machine: dict[str, Any], found: list[report.Goal], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine,
        "wan": {"megabits_per_second": MEGABITS, "far_round_trip_seconds": ROUND_TRIP, "congestion_control": CONGESTION},
        "cold": [dataclasses.asdict(row) for row in bench.cold_results],
        "warm": [dataclasses.asdict(row) for row in bench.warm_results],
        "not_measured": bench.failures,
        "goals": [dict(zip(("measure", "goal", "seen", "met"), each)) for each in found],
    }
    (directory / "latest.json").write_text(json.dumps(document, indent=2) + "\n")
    print()
    for line in report.draw(directory):
        print(line)


def stop(_number: int, _frame: object) -> None:
    """End in order, once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images, fewer set-ups")
    scenarios = ", ".join((*plan(False), *WARM_SCENARIOS))
    parser.add_argument("--only", nargs="+", default=[], metavar="SCENARIO", help=f"of {scenarios}; a beginning stands for all that have it")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write latest.json and cold.svg there")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        check_machine()
        names = chosen(options.only, [*plan(options.quick), *WARM_SCENARIOS])
        alone()
        machine = report.machine()
        if machine["load_before"] > BUSY:
            print(f"benchmark: the load is {machine['load_before']:.1f}: something else takes of what is measured", file=sys.stderr)
        print(f"benchmark: {', '.join(names)}", file=sys.stderr)
        bench = measure(options.quick, names)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmark: interrupted; everything that it started is stopped", file=sys.stderr)
        return 130
    found = show(bench)
    output = options.output or (None if options.quick or options.only else report.RESULTS)
    if output:
        write(bench, machine, found, output)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
