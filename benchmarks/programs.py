# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Programs that the benchmark starts: each in a network namespace, with its log, and stopped by its process id.

Imported by the benchmark; it is no command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Sequence

_TICKS = os.sysconf("SC_CLK_TCK")


class BenchmarkError(Exception):
    """What the operator has to know; printed without a traceback."""


def run(*argv: str, check: bool = True) -> str:
    """Standard output of a short command. Raises BenchmarkError with what it said."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise BenchmarkError(f"{' '.join(argv)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{what}: not so after {seconds:.0f} seconds")
        time.sleep(0.05)


# What a server runs as: nothing here needs more.
UNPRIVILEGED = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs", "--")


class Program:
    """A server that runs until it is stopped, with the processes that it started itself."""

    def __init__(self, name: str, argv: Sequence[str], namespace: str, log: Path) -> None:
        self.name, self.log = name, log
        with open(log, "ab") as output:
            # A session of its own: Ctrl-C is for the benchmark, which then stops its programs in order.
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )

    def processes(self) -> list[int]:
        return [self._process.pid, *_descendants(self._process.pid)] if self._process.poll() is None else []

    def listens(self, port: int) -> bool:
        """Whether somebody listens on the port, in the program's namespace (proc(5), /proc/net/tcp: 0A is LISTEN)."""
        self.check()
        lines: list[str] = []
        # It may end while this is read; the next check says so.
        with contextlib.suppress(OSError):
            lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/{self._process.pid}/net/{name}").read_text().splitlines()[1:]]
        fields = [line.split() for line in lines]
        return any(each[3] == "0A" and int(each[1].rpartition(":")[2], 16) == port for each in fields)

    def check(self) -> None:
        if self._process.poll() is not None:
            raise BenchmarkError(f"{self.name} ended with {self._process.returncode}:\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        processes = self.processes()
        if not processes:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in processes[1:]:
            end(pid)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)); empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its own and that of its threads."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def anonymous_bytes(pid: int) -> int:
    """Resident bytes that no file backs: what is mapped from a file, as Varnish's store is, belongs to the page cache."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdecimal() else []
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        more = children.get(waiting.pop(), [])
        found += more
        waiting += more
    return found
