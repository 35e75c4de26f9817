# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark tells: the tables, the goals, the machine, and the plot.

usage: report.py [DIR]        draws DIR/cold.svg from DIR/latest.json; without DIR those of results, and the tables in README.md too
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterable, Sequence

from scenarios import Cold, Warm

_VERSIONS = {
    "nginx": ["nginx", "-v"],
    "distribution": ["docker-registry", "--version"],
    "varnish": ["varnishd", "-V"],
    "haproxy": ["haproxy", "-v"],
    "openssl": ["openssl", "version"],
    "drayage": [str(Path(sys.executable).parent / "drayage"), "--version"],
}

BIG = 100_000_000

RESULTS = Path(__file__).resolve().parent / "results"
README = RESULTS.parent / "README.md"
# What stands between these lines of the README is written by this module.
BEGIN, END = "<!-- results/latest.json -->\n", "<!-- end of results/latest.json -->\n"


def machine() -> dict[str, Any]:
    cpu = re.search(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"(?m)^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        # Well above 0 says that something else ran.
        "load_before": os.getloadavg()[0],
        # Of the machine; the benchmark's own is in `wan`.
        "congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "python": platform.python_version(),
        "programs": {name: _version(argv) for name, argv in _VERSIONS.items()},
    }


def _version(argv: list[str]) -> str | None:
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError:
        return None
    found = re.search(r"\d+(?:\.\d+)+\S*", done.stdout)
    return found[0] if found else done.stdout.strip()


def table(head: Sequence[str], rows: Iterable[Sequence[str]], markdown: bool = False) -> str:
    lines = [list(head), *map(list, rows)]
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(head), *lines[1:]))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    # Words to the left, figures to the right.
    left = [all(not re.match(r"[\d.-]", line[column]) for line in lines[1:]) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) if words else cell.rjust(width) for cell, width, words in zip(line, widths, left)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def cold_table(rows: Sequence[Cold], markdown: bool = False) -> str:
    head = ["scenario", "set-up", "image MB", "clients", "round trip ms", "WAN ampl.", "last done s", "x bare link", "x one direct", "longest wait s",
            "CPU s/GB", "memory MB", "retries", "failed"]

    def line(row: Cold) -> list[str]:
        start = [row.scenario, row.setup, f"{row.distinct_bytes / 1e6:.0f}", f"{row.clients}", f"{row.round_trip * 1000:.0f}"]
        if row.skipped:
            return [*start, "skipped", *[""] * 8]
        return [
            *start, f"{row.amplification:.3f}", f"{row.seconds:.1f}", f"{row.times_link:.2f}", "" if row.times_direct is None else f"{row.times_direct:.3f}",
            f"{row.longest_wait:.2f}", "" if row.cpu_seconds_per_gb is None else f"{row.cpu_seconds_per_gb:.2f}",
            f"{row.memory_bytes / 1e6:.0f}" if row.memory_bytes else "", f"{row.retries}", f"{row.failures}",
        ]

    return table(head, map(line, rows), markdown)


def warm_table(rows: Sequence[Warm], markdown: bool = False) -> str:
    head = ["warm", "set-up", "TLS", "clients", "GB/s", "CPU s/GB", "requests/s", "CPU s/1000"]

    def line(row: Warm) -> list[str]:
        start = [row.what, row.setup, "yes" if row.tls else "no", f"{row.clients}"]
        if row.what == "blob":
            return [*start, f"{row.gigabytes_per_second:.2f}", f"{row.cpu_seconds_per_gb:.2f}", "", ""]
        return [*start, "", "", f"{row.requests_per_second:.0f}", f"{row.cpu_seconds_per_1000:.2f}"]

    return table(head, map(line, rows), markdown)


Goal = tuple[str, str, str, bool]


def times(one: Warm, other: Warm) -> float:
    """How many times as fast: the median of what each round says. Both asked for the same, so requests are as good as bytes."""
    return statistics.median(mine / theirs for mine, theirs in zip(one.requests_per_second_each, other.requests_per_second_each))


def goals(cold: Sequence[Cold], warm: Sequence[Warm]) -> list[Goal]:
    """What the mirror must reach, where it was measured: measure, goal, seen, whether it is met."""
    found: list[Goal] = []

    def most(measure: str, limit: float, seen: float, unit: str = "") -> None:
        found.append((measure, f"<= {limit:g}{unit}", f"{seen:.3f}{unit}", seen <= limit))

    def least(measure: str, limit: float, seen: float) -> None:
        found.append((measure, f">= {limit:g}", f"{seen:.2f}", seen >= limit))

    for row in (each for each in cold if each.setup.startswith("ours") and not each.skipped):
        most(f"{row.scenario}: WAN amplification", 1.01 if row.setup == "ours" else 1.02, row.amplification)
        most(f"{row.scenario}: failed pulls", 0, row.failures)
        # They are set for the big image: with a small one the clients' own start counts.
        if row.setup == "ours" and row.clients == 50 and not row.over and row.distinct_bytes > BIG:
            if row.times_direct is not None:
                most(f"{row.scenario}: last client against one direct client", 1.03, row.times_direct)
            most(f"{row.scenario}: longest wait for a byte", 1, row.longest_wait, " s")
            most(f"{row.scenario}: memory of the four programs", 400, row.memory_bytes / 1e6, " MB")
    seen = {(row.what, row.setup, row.tls, row.clients): row for row in warm}
    for clients in (1, 8):
        ours, alone, file = (seen.get(("blob", name, False, clients)) for name in ("ours", "classic", "file"))
        if ours and alone and file:
            least(f"warm blob, {clients} clients: rate against a plain file", 0.9, times(ours, file))
            least(f"warm blob, {clients} clients: rate against distribution alone", 2.5, times(ours, alone))
            most(f"warm blob, {clients} clients: CPU per GB against distribution alone", 0.3, ours.cpu_seconds_per_gb / alone.cpu_seconds_per_gb)
        ours, alone = (seen.get(("blob", name, True, clients)) for name in ("ours", "classic"))
        if ours and alone:
            least(f"warm blob, {clients} clients, TLS: rate against distribution alone", 1, times(ours, alone))
    for what in ("manifest by digest", "manifest by tag"):
        ours, alone = (seen.get((what, name, False, 8)) for name in ("ours", "classic"))
        if ours and alone:
            least(f"warm {what}: requests a second against distribution alone", 1, times(ours, alone))
    return found


def goal_table(found: Sequence[Goal]) -> str:
    return table(["what it must reach", "goal", "seen", "met"], [(measure, goal, seen, "yes" if met else "NO") for measure, goal, seen, met in found])


def plot(rows: Sequence[Cold], target: Path) -> str:
    """Draw the cold pulls; the reason why not, or nothing."""
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed: pip install --requirement benchmarks/requirements.txt"
    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same drawing for the same figures.
    matplotlib.rcParams["svg.hashsalt"] = "mirrorfleet"
    matplotlib.rcParams["svg.fonttype"] = "none"
    styles = {"direct": ("#888888", "s"), "classic": ("#c0392b", "^"), "drayage": ("#2471a3", "D"), "ours": ("#1e8449", "o")}
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.8))
    measures = (
        ("amplification", "WAN amplification"), ("times_link", "last client done, times the bare link"), ("longest_wait", "longest wait for a byte, seconds"),
    )
    near = [row for row in rows if not (row.skipped or row.round_trip or row.over or row.failures) and row.scenario.startswith(("cold-", "one direct"))]
    for axis, (measure, title) in zip(axes, measures):
        for name, (colour, marker) in styles.items():
            points = {row.clients: getattr(row, measure) for row in near if row.setup == name}
            if points:
                axis.plot(sorted(points), [points[clients] for clients in sorted(points)], color=colour, marker=marker, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("clients at once")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks([1, 10, 50], ["1", "10", "50"])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)
    return ""


def tables(document: dict[str, Any]) -> str:
    """The README's part that is made of the figures."""
    machine = document["machine"]
    programs = ", ".join(f"{name} {version}" for name, version in machine["programs"].items() if version)
    goals_missed = [f"{each['measure']}: {each['seen']}, and the goal is {each['goal']}" for each in document["goals"] if not each["met"]]
    return "\n\n".join((
        f"{machine['date'][:10]}, {machine['cores']} cores ({machine['cpu']}), {machine['memory_bytes'] / 1e9:.0f} GB, {machine['system']}, "
        f"Linux {machine['kernel']}; {programs}.",
        cold_table([Cold(**row) for row in document["cold"]], markdown=True),
        warm_table([Warm(**row) for row in document["warm"]], markdown=True),
        f"Goals met: {sum(each['met'] for each in document['goals'])} of {len(document['goals'])}." + "".join(f"\nNot met: {each}." for each in goals_missed),
    )) + "\n"


def with_tables(readme: str, document: dict[str, Any]) -> str:
    """The README with the figures of this run."""
    before, _begin, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}{tables(document)}{END}{after}"


def draw(directory: Path) -> list[str]:
    """Make of latest.json what follows from it; what was made."""
    document = json.loads((directory / "latest.json").read_text())
    why = plot([Cold(**row) for row in document["cold"]], directory / "cold.svg")
    made = [f"no plot: {why}" if why else str(directory / "cold.svg"), str(directory / "latest.json")]
    if directory == RESULTS:
        README.write_text(with_tables(README.read_text(), document))
        made.append(str(README))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=RESULTS, metavar="DIR")
    for line in draw(parser.parse_args().directory.resolve()):
        print(line)


if __name__ == "__main__":
    main()
