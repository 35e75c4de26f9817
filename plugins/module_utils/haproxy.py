# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The figures of HAProxy's runtime socket, as those of the rewrite front's upstreams.

The commands are in HAProxy's Management Guide, 9.3 "Unix Socket commands"; the columns of "show stat" in 9.1 "CSV format".
"""

from __future__ import annotations

import csv
import socket
from typing import TypedDict

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

# "show stat <iid> <type> <sid>": every proxy, servers only.
SERVERS = "show stat -1 4 -1"
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "other")


class Check(TypedDict):
    """The last health check: its short name (L7OK), the HTTP status it got, how long it took (ms), and HAProxy's words on it."""

    result: str
    status: int | None
    milliseconds: int | None
    text: str


class Errors(TypedDict):
    """How many requests found no connection, got no answer, were tried again; how many checks failed."""

    connections: int
    responses: int
    retries: int
    checks: int


class Figures(TypedDict):
    """One server of a backend. Bytes received are LAN bytes from a sibling, WAN bytes from anywhere else; they and the counts are
    since HAProxy's start or last reload."""

    name: str
    source: str
    healthy: bool
    status: str
    since_seconds: int
    wan_bytes: int
    lan_bytes: int
    sent_bytes: int
    requests: int
    transfers: int
    responses: dict[str, int]
    errors: Errors
    check: Check | None


def ask(path: str, command: str, timeout: float = 5.0) -> str:
    """The answer to one command. Raises RegistryFleetError when nobody answers at the socket."""
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(path)
            connection.sendall(command.encode("ascii") + b"\n")
            for part in iter(lambda: connection.recv(65536), b""):
                answer += part
    except PermissionError:
        raise RegistryFleetError(f"{path}: only root and the rewrite front's own user may ask HAProxy. Run as root (become: true).") from None
    except OSError as error:
        raise RegistryFleetError(
            f"{path}: HAProxy does not answer at its runtime socket ({error.strerror or error}). Is mirrorfleet-front.service running on this host?"
        ) from error
    return answer.decode("utf-8", "replace")


def uptime(info: str) -> int:
    """Seconds since HAProxy's worker started, from the answer to "show info". Raises RegistryFleetError."""
    found = _info(info, "Uptime_sec")
    if found is None:
        raise RegistryFleetError("The answer to 'show info' has no Uptime_sec: this is no runtime socket of HAProxy.")
    return found


def start_time(info: str, now: float) -> int:
    """The second since the epoch in which that was, or where HAProxy does not tell, at most two before it. Raises RegistryFleetError."""
    found = _info(info, "Start_time_sec")
    return int(now) - uptime(info) - 1 if found is None else found


def _info(info: str, wanted: str) -> int | None:
    for line in info.splitlines():
        key, _separator, value = line.partition(": ")
        if key == wanted and value.strip().isascii() and value.strip().isdigit():
            return int(value)
    return None


def servers(stat: str) -> list[Figures]:
    """One entry for each server outside HAProxy, from the answer to "show stat". Raises RegistryFleetError for anything else."""
    if not stat.startswith("# pxname,svname,"):
        raise RegistryFleetError(f"This is no answer to 'show stat': {stat[:80]!r}")
    try:
        rows = list(csv.DictReader((line for line in stat[2:].splitlines() if line), restval="", strict=True))
    except csv.Error as error:
        raise RegistryFleetError(f"The answer to 'show stat' is not CSV: {error}") from error
    figures = [_figures(row) for row in rows if row["svname"] not in ("FRONTEND", "BACKEND")]
    # The rewrite front's own way from other mirror hosts back to the upstream: these bytes are counted there.
    return [each for each in figures if not (each["source"] == "upstream" and each["name"].endswith(("_sources", "_sources_tags")))]


def wan_bytes_by_upstream(figures: list[Figures]) -> dict[str, int]:
    """The WAN bytes of each upstream: its tags, token endpoint, object storage and hub are backends of their own, NAME_…"""
    found: dict[str, int] = {}
    for each in figures:
        name = each["name"].partition("_")[0]
        found[name] = found.get(name, 0) + each["wan_bytes"]
    return found


def _figures(row: dict[str, str]) -> Figures:
    status = row.get("status") or "unknown"
    received, near = _number(row, "bout") or 0, row["svname"].startswith("sibling-")
    return {
        "name": row["pxname"],
        "source": row["svname"],
        # "UP", "UP 1/2" while checks begin to fail, "no check"
        "healthy": status.startswith("UP") or status == "no check",
        "status": status,
        "since_seconds": _number(row, "lastchg") or 0,
        "wan_bytes": 0 if near else received,
        "lan_bytes": received if near else 0,
        "sent_bytes": _number(row, "bin") or 0,
        "requests": _number(row, "stot") or 0,
        "transfers": _number(row, "scur") or 0,
        "responses": {each: _number(row, f"hrsp_{each}") or 0 for each in CLASSES},
        "errors": {
            "connections": _number(row, "econ") or 0,
            "responses": _number(row, "eresp") or 0,
            "retries": _number(row, "wretr") or 0,
            "checks": _number(row, "chkfail") or 0,
        },
        "check": _check(row),
    }


def _check(row: dict[str, str]) -> Check | None:
    # "* L7OK": a check is under way, and this is the one before it.
    result = (row.get("check_status") or "").lstrip("* ")
    if not result:
        return None
    return {
        "result": result,
        # 0 while the next check has not got that far.
        "status": _number(row, "check_code") or None,
        "milliseconds": _number(row, "check_duration"),
        "text": "; ".join(text for text in (row.get("check_desc"), row.get("last_chk")) if text),
    }


def _number(row: dict[str, str], column: str) -> int | None:
    """An unsigned number, None where the column is empty or missing: older versions have fewer columns."""
    text = row.get(column) or ""
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise RegistryFleetError(f"The answer to 'show stat' has {text!r} as {column}.")
    return int(text)
