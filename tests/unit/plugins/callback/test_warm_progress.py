# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What an operator sees while two hosts warm their caches side by side: real caches, real playbook, with a terminal and without."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.callback.warm_progress import Warm, duration, one_line
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import COLLECTIONS, Registry, StartRegistry, ansible, image_of, layer_of


@pytest.fixture
def directory(start_registry: StartRegistry, registry: Registry, tmp_path: Path) -> Path:
    """A playbook that warms the caches of the hosts `near` and `far`, at a rate that makes it last some seconds."""
    image = image_of(*(layer_of({"content": os.urandom(200_000)}) for _number in range(6)))
    registry.push("svc/app", "1", image)
    hosts = {}
    for name in ("near", "far"):
        cache = start_registry(upstream=registry.url)
        hosts[name] = {"cache_url": cache.url, "cache_path": str(cache.root), "ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    warm = {
        "images": ["svc/app:1"], "url": "{{ cache_url }}", "path": "{{ cache_path }}", "upstream_url": registry.url, "bytes_per_second": "200K",
        "free_bytes": 0,
    }
    tasks = [{"name": "The image comes", "mirrorfleet.registry.cache_warm": warm, "register": "warmed"},
             {"name": "It is complete", "ansible.builtin.assert": {"that": "warmed.counts.complete == 1"}}]
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    return tmp_path


ENABLED = {"ANSIBLE_CALLBACKS_ENABLED": "mirrorfleet.registry.warm_progress", "MIRRORFLEET_WARM_INTERVAL": "1", "MIRRORFLEET_WARM_REFRESH": "1"}
LINE = r"(near|far): [01] of 1 images, (\d\.\d) of 1\.2 MB(, \d\.\d MB/s)?(, \d+ s left)?"


def left_behind() -> set[Path]:
    return {path for kind in ("warm", "progress") for path in Path("/tmp").glob(f"mirrorfleet-{kind}-*")}


def test_without_a_terminal_each_host_has_lines(directory: Path) -> None:
    before = left_behind()
    done = ansible("ansible-playbook", "-i", "inventory.json", "play.yml", directory=directory, **ENABLED)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [match for match in (re.fullmatch(LINE, line) for line in done.stdout.splitlines()) if match]
    assert {match[1] for match in lines} == {"near", "far"}, done.stdout
    for host in ("near", "far"):
        came = [float(match[2]) for match in lines if match[1] == host]
        assert len(came) >= 2 and came == sorted(came) and came[0] < came[-1], done.stdout
    # They are told of while they run, not afterwards, and nothing else of Ansible's output is changed.
    assert max(done.stdout.index(line[0]) for line in lines) < done.stdout.index("changed: [")
    assert "\x1b[K" not in done.stdout and left_behind() == before


def test_on_a_terminal_it_is_one_line(directory: Path) -> None:
    before = left_behind()
    command = f"stty cols 160 && {shlex.quote(sys.executable)} -m ansible playbook -i inventory.json play.yml"
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", command, "/dev/null"], cwd=directory, capture_output=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "1", "TERM": "xterm", **ENABLED},
    )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    drawn = re.findall(r"\r\x1b\[K([^\r\n\x1b]+)\r", said)
    assert any(re.fullmatch(f"{LINE.replace('near|far', 'far')} \\| {LINE.replace('near|far', 'near')}", line) for line in drawn), said
    seen = screen(said)
    assert sorted(line for line in seen if line.startswith("changed: ")) == ["changed: [far]", "changed: [near]"], seen
    assert not any("MB/s" in line for line in seen), seen
    assert left_behind() == before


def screen(said: str) -> list[str]:
    """The lines as they stand at the end: a return goes back, what follows is written over what was there, `ESC [ K` erases the rest."""
    lines = []
    for line in re.sub(r"\r+\n", "\n", said).split("\n"):
        cells: list[str] = []
        column = 0
        for part in re.findall(r"\r|\x1b\[K|\x1b\[[0-9;]*m|[^\r\x1b]+", line):
            if part == "\r":
                column = 0
            elif part == "\x1b[K":
                del cells[column:]
            elif not part.startswith("\x1b"):
                cells[column:column + len(part)] = part
                column += len(part)
        lines.append("".join(cells).rstrip())
    return lines


def test_nobody_looks_unless_told_to(directory: Path) -> None:
    done = ansible("ansible-playbook", "-vvv", "-i", "inventory.json", "play.yml", directory=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MB/s" not in done.stdout and "progress.json" not in done.stdout


def test_in_the_background_it_works_too(directory: Path) -> None:
    play = json.loads((directory / "play.yml").read_text())
    play[0]["tasks"][0].update({"async": 60, "poll": 1})
    (directory / "play.yml").write_text(json.dumps(play))
    done = ansible("ansible-playbook", "-i", "inventory.json", "play.yml", directory=directory, ANSIBLE_ASYNC_DIR=str(directory / "async"), **ENABLED)
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_mode_is_passed_on(directory: Path) -> None:
    done = ansible("ansible-playbook", "--check", "-i", "inventory.json", "play.yml", directory=directory, **ENABLED)
    # It would come, and is not there.
    assert "changed: [near]" in done.stdout and "Assertion failed" in done.stdout


STATE = {"images": 3, "images_done": 1, "images_failed": 0, "bytes": 100_000_000, "bytes_done": 0, "seconds": 0}


def test_the_rate_is_that_of_the_last_seconds() -> None:
    warm = Warm("mirror1")
    for second, done in [(0, 0), (5, 50_000_000), (10, 50_000_000), (15, 55_000_000), (20, 60_000_000)]:
        warm.hear({**STATE, "bytes_done": done}, second)
    assert str(warm) == "mirror1: 1 of 3 images, 60.0 of 100.0 MB, 1.0 MB/s, 40 s left"
    warm.hear({**STATE, "bytes_done": 60_000_000, "images_failed": 2}, 40)
    warm.hear({**STATE, "bytes_done": 60_000_000, "images_failed": 2}, 60)
    assert str(warm) == "mirror1: 1 of 3 images, 2 failed, 60.0 of 100.0 MB, 0.0 MB/s"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (101, "2 min"), (5900, "98 min"), (6300, "1 h 45 min")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@given(st.lists(st.text("abc: ,0123", max_size=40), max_size=8), st.integers(1, 200))
def test_a_line_never_wraps(warms: list[str], width: int) -> None:
    assert len(one_line(warms, width)) < width
