# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""How long cache_warm takes for a release of fifty images, against the WAN link alone, and what memory it takes for one large blob.

usage: .venv/bin/python benchmarks/warm.py [--quick] [--output FILE]        (as root)

The machinery is that of benchmarks/pull.py: a central registry, a WAN of 100 Mbit/s, the four programs of a mirror host, each in a
network namespace. The module runs beside them as Ansible would run it, once with an empty store and once more with what it brought. It
writes benchmarks/results/warm.json, --quick only what --output says. All takes about five minutes, on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import report
from images import MEGA, Family, families
from programs import BenchmarkError, run
from pull import BUSY, MEGABITS, ROUND_TRIP, WORK, alone, stop
from scenarios import Watch
from setups import Central, Ours, Place, check_machine
from wan import PREFIX, Wan

COLLECTIONS = Path(__file__).resolve().parent.parent / ".collections"
# Says at its end how much memory it had at most.
MODULE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mirrorfleet.registry.plugins.modules import cache_warm
try:
    with patch_module_args(json.load(sys.stdin)):
        cache_warm.main()
finally:
    with open("/proc/self/status") as status:
        print(*(line.split()[1] for line in status if line.startswith("VmHWM:")), file=sys.stderr)
"""
# The most of what the link alone needs, and the most memory.
TIMES_LINK, MEMORY = 1.10, 100 * MEGA


def warm(setup: Ours, family: Family) -> dict[str, Any]:
    """One run of the module: what it reported, how long its process took (s), its memory at its highest (bytes)."""
    arguments = {"images": family.references, "url": setup.url, "path": str(setup.store), "free_bytes": 0, "timeout": 120}
    began = time.monotonic()
    done = subprocess.run(
        ["ip", "netns", "exec", setup.place.wan.datacenter, "env", f"PYTHONPATH={COLLECTIONS}", sys.executable, "-c", MODULE],
        input=json.dumps(arguments), capture_output=True, text=True, check=False,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise BenchmarkError(f"cache_warm ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return {"report": json.loads(done.stdout), "seconds": seconds, "memory": int(done.stderr.split()[-1]) * 1024}


def measure(place: Place, name: str, family: Family, far: bool) -> dict[str, Any]:
    """A cold run and a warm one."""
    wan = place.wan
    link = family.bytes * 8 / (wan.megabits * MEGA)
    run("sync")
    with Ours(place, far) as setup:
        before = wan.settled_bytes()
        with Watch(setup) as watch:
            cold = warm(setup, family)
        crossed = wan.settled_bytes() - before
        again = warm(setup, family)
        crossed_again = wan.settled_bytes() - before - crossed
    return {
        "family": name,
        "images": len(family.references),
        "distinct_bytes": family.bytes,
        "largest_blob_bytes": max(family.blobs.values()),
        "round_trip_seconds": place.far if far else 0.0,
        "seconds": round(cold["seconds"], 2),
        "module_seconds": cold["report"]["seconds"],
        "link_seconds": round(link, 2),
        "times_link": round(cold["seconds"] / link, 3),
        "amplification": round(crossed / family.bytes, 4),
        "bytes_fetched": cold["report"]["bytes_fetched"],
        "complete": cold["report"]["counts"]["complete"],
        "memory_bytes": max(cold["memory"], again["memory"]),
        "programs_memory_bytes": watch.memory,
        "again_seconds": round(again["seconds"], 2),
        "again_bytes_fetched": again["report"]["bytes_fetched"],
        "again_wan_bytes": crossed_again,
    }


def goals(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for each in runs:
        what = f"{each['family']}, round trip {each['round_trip_seconds'] * 1000:.0f} ms"
        if each["images"] > 1:
            found.append({"measure": f"{what}: times the bare link", "goal": TIMES_LINK, "seen": each["times_link"]})
        found.append({"measure": f"{what}: memory, bytes", "goal": MEMORY, "seen": each["memory_bytes"]})
    return [{**each, "met": each["seen"] <= each["goal"]} for each in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images; half a minute")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    release, huge = ("release-mini", "huge-mini") if options.quick else ("release", "huge")
    runs = []
    try:
        check_machine()
        alone()
        machine = report.machine()
        if machine["load_before"] > BUSY:
            print(f"benchmark: the load is {machine['load_before']:.1f}: something else takes of what is measured", file=sys.stderr)
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
            published = dict(families(central.publish([release, huge])))
            for name, far in ((release, False), (release, True), (huge, False)):
                runs.append(measure(place, name, published[name], far))
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmark: interrupted; everything that it started is stopped", file=sys.stderr)
        return 130
    found = goals(runs)
    document = {"machine": machine, "megabits_per_second": MEGABITS, "runs": runs, "goals": found}
    output = options.output or (None if options.quick else report.RESULTS / "warm.json")
    if output:
        output.write_text(json.dumps(document, indent=2) + "\n")
    for each in found:
        print(f"{'met    ' if each['met'] else 'NOT MET'} {each['measure']}: {each['seen']:g}, and the goal is <= {each['goal']:g}")
    return 0 if all(each["met"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
