# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Shows how far running warms are. The action plugin cache_warm says it, from the processes that run the tasks."""

from __future__ import annotations

DOCUMENTATION = r"""
name: warm_progress
type: aggregate
short_description: Show how far running cache_warm tasks are
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - While tasks with M(mirrorfleet.registry.cache_warm) run, shows for each host how many images and bytes have come, how fast, and how
    long the rest takes. On a terminal it is one line that is rewritten, elsewhere a line for each host now and then.
  - Each look is one more remote command, C(cat) of a small file. Without this plugin there is none.
  - Tasks with C(async) are not shown.
requirements:
  - enable it in C(callbacks_enabled) of ansible.cfg
options:
  refresh:
    description: Seconds between two looks at each host, on a terminal.
    type: float
    default: 2
    ini:
      - section: callback_warm_progress
        key: refresh
    env:
      - name: MIRRORFLEET_WARM_REFRESH
  interval:
    description: Seconds between two lines for each host, where there is no terminal.
    type: float
    default: 30
    ini:
      - section: callback_warm_progress
        key: interval
    env:
      - name: MIRRORFLEET_WARM_INTERVAL
"""

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from typing import Any

from ansible.plugins.callback import CallbackBase

from ansible_collections.mirrorfleet.registry.plugins.action.cache_warm import LISTENER

_ACTIONS = ("cache_warm", "mirrorfleet.registry.cache_warm")
# The rate is that of the last so many seconds at least.
_RATE_SECONDS = 10
# A result is on its way: what is shown then would stand before it.
_RESULT_SECONDS = 1.0


class Warm:
    """One running warm: what it said last, and how fast it was."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._state: dict[str, Any] = {}
        self._seen: deque[tuple[float, int]] = deque()

    def hear(self, state: dict[str, Any], now: float) -> None:
        """Take in what cache_warm documents of progress.json; ``now`` is in seconds."""
        self._state = state
        self._seen.append((now, state["bytes_done"]))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _RATE_SECONDS:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Bytes a second, 0 while it is not ``known``."""
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return max(0.0, (last - first) / (now - began)) if now > began else 0.0

    @property
    def known(self) -> bool:
        """Whether there is a rate: it takes two looks."""
        return len(self._seen) > 1

    def __str__(self) -> str:
        state = self._state
        done, total = state["bytes_done"], state["bytes"]
        parts = [f"{state['images_done']} of {state['images']} images"]
        if state["images_failed"]:
            parts.append(f"{state['images_failed']} failed")
        if total:
            parts.append(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB")
            if self.known:
                parts.append(f"{self.rate / 1e6:.1f} MB/s")
            if self.rate and done < total:
                parts.append(f"{duration((total - done) / self.rate)} left")
        return f"{self.host}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """How a person says it: ``50 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def one_line(warms: list[str], width: int) -> str:
    """As many of them as the terminal's line holds, and how many more there are."""
    for shown in range(len(warms), 0, -1):
        more = f" | {len(warms) - shown} more" if shown < len(warms) else ""
        line = " | ".join(warms[:shown]) + more
        if len(line) < width:
            return line
    return (warms[0] if warms else "")[:max(0, width - 1)]


class CallbackModule(CallbackBase):
    """What Ansible calls."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "mirrorfleet.registry.warm_progress"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._socket: socket.socket | None = None
        self._listening: threading.Thread | None = None
        self._warms: dict[str, Warm] = {}
        self._line = False
        self._quiet_until = 0.0
        self._live = sys.stdout.isatty()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Before the task's processes are made, which inherit the environment."""
        if task.action in _ACTIONS and self._socket is None:
            self._directory = tempfile.TemporaryDirectory(prefix="mirrorfleet-warm-")
            path = os.path.join(self._directory.name, "socket")
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(path)
            self._socket.settimeout(0.5)
            seconds = self.get_option("refresh" if self._live else "interval")
            os.environ[LISTENER] = f"{seconds:g} {path}"
            self._listening = threading.Thread(target=self._listen, args=(self._socket,), daemon=True)
            self._listening.start()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The end of the run."""
        if self._socket is None or self._listening is None or self._directory is None:
            return
        del os.environ[LISTENER]
        there, self._socket = self._socket, None
        self._listening.join()
        there.close()
        self._directory.cleanup()

    def _listen(self, there: socket.socket) -> None:
        while self._socket is not None:
            with contextlib.suppress(socket.timeout, ValueError, KeyError, TypeError):
                said = json.loads(there.recv(65536))
                if said["state"] is None:
                    self._warms.pop(said["source"], None)
                    self._quiet_until = time.monotonic() + _RESULT_SECONDS
                    self._clear()
                else:
                    warm = self._warms.setdefault(said["source"], Warm(said["host"]))
                    warm.hear(said["state"], time.monotonic())
                    self._show(warm)
        self._clear()

    def _show(self, warm: Warm) -> None:
        if not self._live:
            self._display.display(str(warm))
        elif time.monotonic() > self._quiet_until:
            hosts = [str(each) for each in sorted(self._warms.values(), key=lambda each: each.host)]
            # The cursor goes back to the line's beginning: what Ansible says next stands there.
            self._write(f"\r\x1b[K{one_line(hosts, shutil.get_terminal_size().columns)}\r")
            self._line = True

    def _clear(self) -> None:
        if self._line:
            self._write("\r\x1b[K")
            self._line = False

    def _write(self, text: str) -> None:
        # By Ansible's own way, which has the lock that keeps a fork from taking half a line along.
        self._display.display(text, screen_only=True, newline=False)
        sys.stdout.flush()
