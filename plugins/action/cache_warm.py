# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Runs the module cache_warm; while somebody wants to see how far it is, asks that now and then and passes it on.

Who wants to see is the callback plugin warm_progress. It names a socket in the environment, which the processes that run tasks inherit. A
module can't speak before its end, so it writes a file, and that is read over a connection of its own: the module's is in use.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shlex
import socket
import threading
import uuid
from typing import Any, Iterator

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_warm import PROGRESS_FILE, PROGRESS_PREFIX

# "SECONDS PATH": how often to say how far it is, and the datagram socket to say it to.
LISTENER = "MIRRORFLEET_WARM_PROGRESS"
_MODULE = "mirrorfleet.registry.cache_warm"


class ActionModule(ActionBase):
    """One remote command; with somebody looking on, one more every few seconds."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the module returns."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        listener, arguments = os.environ.get(LISTENER, ""), dict(self._task.args)
        # A task with async has returned long before its module is done.
        if listener and not self._task.async_val and not arguments.get("progress"):
            # In a directory that all may write to, so nobody may know the name before it is there.
            arguments["progress"] = f"/tmp/{PROGRESS_PREFIX}{uuid.uuid4().hex}"
            seconds, _space, path = listener.partition(" ")
            host = str((task_vars or {}).get("inventory_hostname", ""))
            with self._telling(host, os.path.join(arguments["progress"], PROGRESS_FILE), float(seconds), path):
                result.update(self._execute_module(module_name=_MODULE, module_args=arguments, task_vars=task_vars))
        else:
            result.update(self._execute_module(module_name=_MODULE, module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val))
        return result

    @contextlib.contextmanager
    def _telling(self, host: str, file: str, seconds: float, listener: str) -> Iterator[None]:
        connection, done = copy.copy(self._connection), threading.Event()
        # The file is for everybody to read.
        connection.become = None
        source = uuid.uuid4().hex

        def tell(state: dict[str, Any] | None) -> None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(json.dumps({"host": host, "source": source, "state": state}).encode(), listener)

        def ask() -> None:
            while not done.wait(seconds):
                # What can't be seen now may be seen later, and is no fault of the module.
                with contextlib.suppress(AnsibleError, OSError, ValueError):
                    code, said, _errors = connection.exec_command(f"cat {shlex.quote(file)}", in_data=None, sudoable=False)
                    if code == 0 and not done.is_set():
                        tell(json.loads(said))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        try:
            yield
        finally:
            done.set()
            # Before the result, so that the line is gone when that is shown.
            tell(None)
