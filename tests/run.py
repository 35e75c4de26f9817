# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Runs the tests, stage by stage: one line for each, the end of the log of what failed, the sum.

usage: run.py [STAGE | molecule/SCENARIO] ...
environment: MOLECULE_JOBS, how many scenarios run side by side (2)
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / ".lab" / "logs"
BIN = ROOT / ".venv" / "bin"
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
TAIL = 60  # lines of a failed check's log that are shown

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin",
    "LC_ALL": "C.UTF-8",
    # Playbooks that tests run find this checkout by its collection's name.
    "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
    "NO_COLOR": "1",
    "ANSIBLE_NOCOLOR": "1",
    "PY_COLORS": "0",
}
# A FORCE_COLOR that the caller has set would win over NO_COLOR.
ENVIRONMENT.pop("FORCE_COLOR", None)

RUNNING: set[int] = set()  # the process groups that end with this program


class Result(NamedTuple):
    """What one check, or one runner of many checks, found; its log is shown when something failed."""

    passed: int
    failed: int
    skipped: int = 0
    name: str = ""
    log: Path | None = None


def execute(name: str, argv: list[str], *, cwd: Path = ROOT, minutes: float = 10) -> tuple[int, Path]:
    """Run argv, its output in the log `name`; end it and its children after so many minutes.

    Returns the exit status, 124 when its time was over, and the log.
    """
    log = LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        RUNNING.add(process.pid)
        try:
            return process.wait(minutes * 60), log
        except subprocess.TimeoutExpired:
            output.write(f"\nended after {minutes} minutes\n".encode())
            return 124, log
        finally:
            # After a normal exit there is nothing to end, unless a child was left behind.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            RUNNING.discard(process.pid)


def check(name: str, argv: list[str], *, minutes: float = 10) -> Result:
    """One command that is one check: it passes with exit status 0."""
    status, log = execute(name, argv, minutes=minutes)
    return Result(int(status == 0), int(status != 0), name=name, log=log)


def pytest(folder: str, *options: str) -> Result:
    """The pytest tests in a folder, each of them a check."""
    name = folder.replace("/", "-")
    report = LOGS / f"{name}.xml"
    report.unlink(missing_ok=True)
    status, log = execute(name, [str(BIN / "pytest"), folder, f"--junit-xml={report}", *options], minutes=40)
    failed = skipped = total = 0
    if report.exists():
        for suite in ElementTree.parse(report).iter("testsuite"):
            total += int(suite.get("tests", 0))
            failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped += int(suite.get("skipped", 0))
    if status and not failed:  # it could not even start, or there is no test
        return Result(0, 1, name=name, log=log)
    return Result(total - failed - skipped, failed, skipped, name, log)


def tracked_files() -> list[Path]:
    """The files of the collection: what git knows or would add, without the link that makes a checkout a collection."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    return [Path(name) for name in names if not name.startswith(".collections/") and (ROOT / name).is_file()]


@contextmanager
def copied_collection() -> Iterator[Path]:
    """A copy at …/ansible_collections/mirrorfleet/registry: ansible-test refuses links and other folders."""
    with tempfile.TemporaryDirectory(prefix="mirrorfleet-") as temporary:
        copy = Path(temporary) / "ansible_collections" / "mirrorfleet" / "registry"
        for name in tracked_files():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
        yield copy


@contextmanager
def alone(stage: str) -> Iterator[None]:
    """One run of a stage at a time on this machine: logs and containers have fixed names."""
    with (Path(tempfile.gettempdir()) / f"mirrorfleet-{os.getuid()}-{stage}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("    waits for another run of this stage", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unit() -> Iterator[Result]:
    # The roles' tests run real programs and wait for them about as long as the others take.
    with ThreadPoolExecutor() as pool:
        roles = pool.submit(pytest, "tests/unit/roles")
        yield pytest("tests/unit", "--ignore=tests/unit/roles")
        yield roles.result()


def sanity() -> Iterator[Result]:
    # ansible-test would download pip's installer from a host of its own; this one is Python's.
    installer = Path.home() / ".ansible" / "test" / "cache" / "get_pip_24_2.py"
    if not installer.exists():
        installer.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / "get_pip.py", installer)
    with copied_collection() as collection:
        argv = [str(BIN / "ansible-test"), "sanity", "--color", "no", "--python", PYTHON_VERSION]
        status, log = execute("sanity", argv, cwd=collection)
    output = log.read_text(errors="replace")
    ran = set(re.findall(r'^Running sanity test "([^"]+)"', output, re.MULTILINE))
    listed = re.search(r"sanity test\(s\) listed below .* failed\..*\n((?:.+\n)*)", output)
    failed = {line.split()[0] for line in listed[1].splitlines()} if listed else set()
    if status and not failed:  # it broke off
        failed = {"ansible-test"}
    yield Result(len(ran - failed), len(failed), name="sanity", log=log)


def lint() -> Iterator[Result]:
    scripts = [str(name) for name in tracked_files() if (ROOT / name).read_bytes().startswith(b"#!/usr/bin/env bash")]
    yield check("ansible-lint", [str(BIN / "ansible-lint")])
    yield check("yamllint", [str(BIN / "yamllint"), "--strict", "."])
    yield check("ruff", [str(BIN / "ruff"), "check", "--output-format", "concise"])
    yield check("mypy", [str(BIN / "mypy")])
    yield check("shellcheck", ["shellcheck", "--severity=warning", *scripts])


def docs() -> Iterator[Result]:
    yield pytest("tests/docs")


def build() -> Iterator[Result]:
    yield pytest("tests/build")


def molecule(only: str = "") -> Iterator[Result]:
    """The scenarios, a few side by side: most of a scenario's time is waiting."""
    scenarios = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    if only:
        scenarios = [name for name in scenarios if name == only] or sys.exit(f"no such scenario: {only}")
    with ThreadPoolExecutor(int(os.environ.get("MOLECULE_JOBS", "2"))) as pool:
        runs = {
            pool.submit(check, f"molecule-{name}", [str(BIN / "molecule"), "test", "--scenario-name", name], minutes=25): name
            for name in scenarios
        }
        started = time.monotonic()
        for run in as_completed(runs):
            result = run.result()
            print(f"    {runs[run]} {'FAILED' if result.failed else 'ok'}, after {time.monotonic() - started:.0f} s", flush=True)
            yield result


STAGES: dict[str, Callable[..., Iterator[Result]]] = {
    "unit": unit,
    "sanity": sanity,
    "lint": lint,
    "docs": docs,
    "build": build,
    "molecule": molecule,
}


def stop(number: int, _frame: object) -> None:
    """Ctrl-C and SIGTERM end what runs, too."""
    for group in list(RUNNING):
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    os._exit(128 + number)


def show_failure(result: Result) -> None:
    """The end of the log of a check that failed."""
    assert result.log
    lines = result.log.read_text(errors="replace").splitlines()
    print(f"--- {result.name} failed; the end of {result.log.relative_to(ROOT)}:")
    print("\n".join(f"    {line}" for line in lines[-TAIL:]), flush=True)


def main(wanted: list[str]) -> int:
    for name in wanted:
        if name.partition("/")[0] not in STAGES:
            sys.exit(f"no such stage: {name}; there are {' '.join(STAGES)}")
    wanted = wanted or list(STAGES)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    passed = failed = skipped = 0
    for number, name in enumerate(wanted, 1):
        print(f"{number}/{len(wanted)} {name} …", flush=True)
        stage, _slash, item = name.partition("/")
        with alone(stage):
            started = time.monotonic()
            results = list(STAGES[stage](item) if item else STAGES[stage]())
            seconds = time.monotonic() - started
        sums = [sum(column) for column in zip(*((result.passed, result.failed, result.skipped) for result in results))] or [0, 0, 0]
        passed, failed, skipped = passed + sums[0], failed + sums[1], skipped + sums[2]
        verdict = "FAILED" if sums[1] else "ok"
        print(f"{number}/{len(wanted)} {name} {verdict}: {sums[0]} passed, {sums[1]} failed, {seconds:.0f} s", flush=True)
        for result in results:
            if result.failed:
                show_failure(result)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
