# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Counting the edge's log: every line once, whatever logrotate does. A real nginx writes it in tests/unit/roles/test_mirror_edge.py."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils import edge_figures
from ansible_collections.mirrorfleet.registry.plugins.module_utils.edge_figures import Figures, add_lines, log_files, look, report
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

BEGAN = 1_790_000_000


def line(number: int = 0, **values: Any) -> bytes:
    """A line as nginx writes it, of a second of its own."""
    time = datetime.fromtimestamp(BEGAN + number, timezone.utc).isoformat()
    return json.dumps({
        "time": time, "client": "10.0.0.1", "user": "", "upstream": "central", "method": "GET", "path": "/v2/a/blobs/sha256:0", "status": 200,
        "bytes": 1000 + number, "seconds": 0.001, "source": "store", "agent": "docker/28", **values,
    }, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class Log:
    """A log, and what reads it."""

    def __init__(self, directory: Path) -> None:
        self.path, self.memory = directory / "access.log", directory / "memory"
        self.written = 0

    def write(self, count: int = 1) -> None:
        with self.path.open("ab") as stream:
            for _each in range(count):
                stream.write(line(self.written))
                self.written += 1

    @property
    def expected(self) -> dict[str, int]:
        return {"requests": self.written, "lan_bytes": sum(1000 + number for number in range(self.written))} if self.written else {}

    def look(self, counting: int = 10**9, remember: bool = True) -> Figures:
        return look(str(self.path), str(self.memory), BEGAN + 10**6 - counting, remember)

    def counted(self, **options: Any) -> dict[str, int]:
        counts = self.look(**options).total.get("central", {})
        return {key: counts[key] for key in ("requests", "lan_bytes") if counts}

    def rotate(self) -> None:
        """As the role's logrotate does it, which leaves an empty log alone."""
        if not self.path.stat().st_size:
            return
        numbered = [self.path.with_name(f"access.log.{number}{'' if number == 1 else '.gz'}") for number in range(1, 8)]
        for old, new in list(zip(numbered, numbered[1:]))[::-1]:
            if old.exists():
                if old.suffix == new.suffix:
                    old.rename(new)
                else:
                    new.write_bytes(gzip.compress(old.read_bytes()))
                    old.unlink()
        self.path.rename(numbered[0])
        self.path.touch()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


# ---- lines

text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"))


@given(st.lists(st.fixed_dictionaries({
    "user": text, "path": text, "agent": text, "upstream": st.sampled_from(["central", "hub-2"]), "method": st.sampled_from(["GET", "HEAD", "POST"]),
    "status": st.integers(100, 599), "bytes": st.integers(0, 2**50), "source": st.sampled_from(["store", "cache", "edge"]), "only_if_cached": text,
})))
def test_every_line_is_read_as_json_reads_it(requests: list[dict[str, Any]]) -> None:
    figures = Figures()
    add_lines(b"".join(line(number, **request) for number, request in enumerate(requests)), figures)
    assert figures.unreadable == 0 and sum(each["requests"] for each in figures.total.values()) == len(requests)
    for name, counts in figures.total.items():
        own = [each for each in requests if each["upstream"] == name]
        blobs = [each["source"] for each in own if each["method"] == "GET" and each["status"] in (200, 206) and "/blobs/" in each["path"]]
        assert counts["lan_bytes"] == sum(each["bytes"] for each in own)
        assert counts["responses"] == {**dict.fromkeys(counts["responses"], 0), **{
            f"{first}xx": sum(each["status"] // 100 == first for each in own) for first in range(1, 6)
        }}
        assert (counts["hits"], counts["misses"]) == (blobs.count("store"), blobs.count("cache"))


@given(st.binary())
def test_anything_else_is_counted_as_unreadable(noise: bytes) -> None:
    figures = Figures()
    add_lines(line(1) + noise.replace(b"\n", b"") + b"\n" + line(2), figures)
    assert (figures.unreadable, figures.total["central"]["requests"]) == (1, 2)


def test_what_other_mirror_hosts_fetch_is_not_for_docker_hosts() -> None:
    figures = Figures()
    add_lines(line(0) + line(1, agent="mirrorfleet-front") + line(2, agent="mirrorfleet-front/2"), figures)
    assert (figures.total["central"]["lan_bytes"], figures.total["central"]["sibling_bytes"]) == (1000 + 1002, 1001)


# ---- files

@settings(max_examples=300)
@given(st.lists(st.sampled_from(["write", "write", "rotate", "rotate", "look", "forget"]), min_size=10, max_size=30))
def test_every_line_counts_once(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """As long as somebody looks before a file is thrown away."""
    log = Log(tmp_path_factory.mktemp("log"))

    def full() -> bool:
        return log.path.with_name("access.log.7.gz").exists()

    log.path.touch()
    for step in steps:
        if step == "write":
            log.write(2)
        elif step == "rotate":
            if full():
                assert log.counted() == log.expected
            log.rotate()
        elif step == "look":
            assert log.counted() == log.counted(remember=False) == log.expected
        elif not full():
            log.memory.unlink(missing_ok=True)
    assert log.counted() == log.expected


@pytest.mark.skipif(not shutil.which("logrotate"), reason="no logrotate here")
def test_with_logrotate_itself(log: Log, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    user = "su root root" if os.geteuid() == 0 else ""
    rules.write_text(f"{log.path} {{\n rotate 7\n compress\n delaycompress\n missingok\n notifempty\n {user}\n}}\n")
    rules.chmod(0o644)
    for turn in range(10):
        log.write(3)
        if turn % 3:
            assert log.counted() == log.expected
        log.write(2)
        subprocess.run(["logrotate", "--force", "--state", str(tmp_path / "state"), str(rules)], check=True)
    assert log.path.with_name("access.log.7.gz").exists() and not log.path.with_name("access.log.8.gz").exists()
    assert log.counted() == log.expected


def test_nginx_goes_on_with_the_renamed_file_for_a_moment(log: Log) -> None:
    """Its name was taken away, and the new one is there already; half a line waits for its other half."""
    log.write(3)
    assert log.counted() == log.expected
    log.rotate()
    log.write()
    assert log.counted() == log.expected
    late, log.path = log.path, log.path.with_name("access.log.1")
    log.write(2)
    log.path = late
    assert log.counted() == log.expected
    whole = line(log.written)
    with log.path.open("ab") as stream:
        stream.write(whole[:50])
        stream.flush()
        assert log.counted() == log.expected
        stream.write(whole[50:])
    log.written += 1
    assert log.counted() == log.expected


def test_a_log_that_was_emptied_begins_anew(log: Log) -> None:
    log.write(5)
    log.rotate()
    log.write(5)
    assert log.counted() == log.expected
    os.truncate(log.path, 0)
    log.written = 20
    log.write(3)
    figures = log.look()
    assert figures.total["central"]["requests"] == 3 and figures.lost and json.loads(line(20))["time"] == figures.since
    # The rewrite front began before that, so nobody knows what was saved.
    edge, saved = report(figures, {"central": 500}, BEGAN + 100)
    assert (edge["lan_bytes"], saved["wan_bytes"], saved["bytes"], saved["upstreams"][0]["ratio"]) == (1020 + 1021 + 1022, 500, None, None)
    log.write(2)
    # It began anew: what it counts is known whole.
    saved = report(log.look(counting=10**6 - 23), {"central": 500}, BEGAN + 100)[1]
    assert (saved["lan_bytes"], saved["bytes"], saved["ratio"]) == (1023 + 1024, 1547, 4.094)


def test_the_rewrite_front_begins_anew(log: Log) -> None:
    """Its own time begins anew, the log's goes on."""
    log.write(10)
    assert log.look(counting=10**6 - 4).front["central"]["requests"] == 6
    log.write(5)
    # One second more or less is the same process.
    assert log.look(counting=10**6 - 3).front["central"]["requests"] == 11
    log.write(5)
    figures = log.look(counting=10**6 - 17)
    assert (figures.front["central"]["requests"], figures.total["central"]["requests"]) == (3, 20)


def test_without_a_memory_old_files_are_left_out(log: Log) -> None:
    log.write(5)
    log.rotate()
    os.utime(log.path.with_name("access.log.1"), (BEGAN + 4, BEGAN + 4))
    log.write(5)
    for _again in range(2):
        figures = log.look(counting=10**6 - 5)
        assert (figures.total["central"]["requests"], figures.lost) == (5, False)
    log.rotate()
    log.write()
    assert log.look(counting=10**6 - 5).total["central"]["requests"] == 6


@pytest.mark.parametrize("memory", [
    b"", b"{", b"[]", b"\xff", b"{}", b'{"version": 1, "known": [[1]]}', b'{"version": 1, "known": [], "total": {"central": {}}}',
    b'{"version": 0, "known": []}', b'{"version": 1, "known": [], "more": 1}',
])
def test_a_memory_that_is_none_is_none(log: Log, memory: bytes) -> None:
    log.write(3)
    log.memory.write_bytes(memory)
    assert log.counted() == log.expected == log.counted()


def test_no_log(log: Log) -> None:
    with pytest.raises(RegistryFleetError, match=r"access\.log is not there: .*mirrorfleet-edge\.service"):
        log.look()
    log.path.touch()
    edge, saved = report(log.look(), {"central": 0}, BEGAN)
    assert (edge["since"], edge["counting_seconds"], edge["upstreams"][0]["hit_ratio"], saved["bytes"], saved["ratio"]) == (None, 0, None, 0, None)


def test_a_log_that_cannot_be_read(log: Log) -> None:
    log.write()
    log.path.with_name("access.log.2.gz").write_bytes(b"no gzip")
    with pytest.raises(RegistryFleetError, match=r"access\.log.* can't be used: "):
        log.look()
    assert not log.memory.exists()


def test_only_files_are_read(log: Log) -> None:
    """What the user of the edge puts there can't make root wait, or read something else."""
    log.write(2)
    os.mkfifo(log.path.with_name("access.log.1"))
    log.path.with_name("access.log.2").mkdir()
    log.path.with_name("access.log.3").symlink_to(log.path)
    assert log.counted() == log.expected


def test_which_files_are_the_logs(log: Log) -> None:
    names = ("", ".1", ".2", ".2.gz", ".10.gz", ".3.bz2", ".old", ".0", ".01.gz", "x.1")
    for name in names:
        content = name.encode() + b"\n"
        log.path.with_name("access.log" + name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with contextlib.ExitStack() as stack:
        assert [each.head for each in log_files(str(log.path), stack)] == [b".10.gz\n", b".2\n", b".1\n", b"\n"]
        assert log_files("/nonexistent/access.log", stack) == []
    assert edge_figures.LOG.startswith("/var/log/mirrorfleet/edge/")


def test_logrotate_at_work(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the files' names away between any two of them: one is then seen twice, and none is missed."""
    log.write(2)
    for _turn in range(3):
        log.rotate()
        log.write(2)
    opened: list[str] = []
    turn, real = [0], os.open

    def open_and_rotate(name: str, flags: int, *more: int) -> int:
        descriptor = real(name, flags, *more)
        if str(name).startswith(str(log.path)) and flags & os.O_NOFOLLOW:
            opened.append(name)
            if len(opened) == turn[0]:
                log.rotate()
        return descriptor

    for turn[0] in range(1, 6):
        log.write(2)
        opened.clear()
        monkeypatch.setattr(os, "open", open_and_rotate)
        counted = log.counted()
        monkeypatch.setattr(os, "open", real)
        assert counted == log.counted() == log.expected
