# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the edge of a mirror host sent to docker hosts, counted from its access log, where each line is read once.

nginx counts no bytes, and no module that does is in Debian and in the official image alike; the log is there anyway. How far it has been
read is kept in a file, with the sums. Without that file everything is read that may belong to the time that the rewrite front counts.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, Any, Iterator, cast

from ansible_collections.mirrorfleet.registry.plugins.module_utils import files
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

LOG = "/var/log/mirrorfleet/edge/access.log"
# Gone with a boot, as the rewrite front's own counts are.
STATE = "/run/mirrorfleet-edge-figures.json"
VERSION = 1
CANARY = "/v2/mirrorfleet-edge/canary/"
# The User-Agent of another mirror host's rewrite front.
SIBLING = "mirrorfleet-front"
_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "other")
_CHUNK = 4 * 1024 * 1024
# A file is known by its beginning: logrotate renames it, and compresses it into another one.
_HEAD_BYTES = 1024
# The format `mirror` of the role mirror_edge; a string is as JSON escapes it. What comes between these keys is not read.
_STRING = rb'"(?:[^"\\]|\\.)*"'
_LINE = re.compile(
    rb'^\{"time":"([^"]{19,32})",.*?"upstream":"([a-z0-9-]*)",.*?"method":"([^"\\]*)",.*?"path":(' + _STRING + rb'),.*?"status":(\d{3}),.*?"bytes":(\d{1,18}),'
    rb'.*?"source":"([a-z]*)",.*?"agent":(' + _STRING + rb")[,}]",
    re.MULTILINE,
)


def new_counts() -> dict[str, Any]:
    """Of one upstream, nothing so far."""
    return {"requests": 0, "lan_bytes": 0, "sibling_bytes": 0, "hits": 0, "misses": 0, "responses": dict.fromkeys(_CLASSES, 0)}


@dataclass
class Figures:
    """What is known of the log.

    ``known``: how far each file was read, by its beginning as (its length, its sha256). ``since``: the time of the first line that was
    counted, '' before there is one. ``lost``: whether lines before that are missing. ``total`` and ``front`` are counts by upstream, since
    ``since`` and since the rewrite front's ``front_start`` (seconds since the epoch).
    """

    known: list[list[Any]] = field(default_factory=list)
    since: str = ""
    lost: bool = False
    unreadable: int = 0
    front_start: float = 0
    total: dict[str, dict[str, Any]] = field(default_factory=dict)
    front: dict[str, dict[str, Any]] = field(default_factory=dict)


def seconds_of(time: str) -> float:
    """Seconds since the epoch of nginx's $time_iso8601. Raises ValueError."""
    moment = datetime.fromisoformat(time)
    if moment.tzinfo is None:
        raise ValueError(f"{time} has no zone")
    return moment.timestamp()


def add_lines(text: bytes, figures: Figures) -> None:
    """Count whole lines. One that is none of the edge's is counted as unreadable."""
    moments: dict[bytes, float] = {}
    found = 0
    for match in _LINE.finditer(text):
        time, upstream, method, path, status, size, source, agent = match.groups()
        moment = moments.get(time)
        if moment is None:
            try:
                moment = moments[time] = seconds_of(time.decode("ascii", "replace"))
            except ValueError:
                continue
        found += 1
        figures.since = figures.since or time.decode("ascii")
        name = upstream.decode("ascii")
        windows = (figures.total, figures.front) if moment >= figures.front_start else (figures.total,)
        for window in windows:
            counts = window.get(name)
            if counts is None:
                counts = window[name] = new_counts()
            counts["requests"] += 1
            counts["lan_bytes"] += int(size)
            if agent == _SIBLING_AGENT:
                counts["sibling_bytes"] += int(size)
            counts["responses"][_CLASSES[status[0] - 49] if 49 <= status[0] <= 53 else "other"] += 1
            if method == b"GET" and status in (b"200", b"206") and b"/blobs/" in path and not path.startswith(_CANARY_PATH):
                counts["hits" if source == b"store" else "misses"] += 1
    figures.unreadable += text.count(b"\n") - found


_SIBLING_AGENT = json.dumps(SIBLING).encode()
_CANARY_PATH = json.dumps(CANARY).encode()[:-1]


def rotated(path: str) -> list[str]:
    """The log's files as logrotate names them, the oldest first."""
    numbers = {}
    for each in glob.glob(glob.escape(path) + ".*"):
        match = re.fullmatch(r"\.([1-9]\d{0,3})(?:\.gz)?", each[len(path):])
        if match:
            numbers[each] = int(match.group(1))
    # While one is compressed it is there twice; the one that is being written is not whole.
    plain = {number for each, number in numbers.items() if not each.endswith(".gz")}
    names = [each for each, number in numbers.items() if not (each.endswith(".gz") and number in plain)]
    return sorted(names, key=lambda each: -numbers[each]) + ([path] if os.path.exists(path) else [])


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    with cast("IO[bytes]", gzip.open(path)) if path.endswith(".gz") else open(path, "rb") as stream:
        yield stream


def _place(head: bytes, known: list[list[Any]]) -> list[Any] | None:
    """What is known of a file that begins so: [length of the beginning, its sha256, bytes read]."""
    for each in known:
        if len(head) >= each[0] and hashlib.sha256(head[: each[0]]).hexdigest() == each[1]:
            return each
    return None


def read_log(path: str, figures: Figures) -> None:
    """Count the lines of all of the log's files that were not counted yet. Raises OSError."""
    names = rotated(path)
    before, figures.known = figures.known, []
    places: list[tuple[str, list[Any] | None]] = []
    for name in names:
        # logrotate may be at work: what is gone now is in the next file, or was read before.
        with contextlib.suppress(FileNotFoundError), _opened(name) as stream:
            places.append((name, _place(stream.read(_HEAD_BYTES), before)))
    first = next((number for number, (_name, place) in enumerate(places) if place), None)
    if before and first is None:
        # All that was read is gone, and with it what came after it.
        figures.since, figures.total, figures.front, figures.lost, figures.unreadable = "", {}, {}, True, 0
    if not before:
        skipped = [name for name, _place in places[:-1] if os.stat(name).st_mtime < figures.front_start]
        figures.lost = bool(skipped) or len(places) > 7
        # Read before: nothing of it. Known from now on: all of it.
        for name in skipped:
            figures.known.append(_known_whole(name))
        places = [each for each in places if each[0] not in skipped]
    elif first is not None:
        places = places[first:]
    for name, place in places:
        with contextlib.suppress(FileNotFoundError):
            offset = _read_file(name, place[2] if place else 0, figures)
            if offset:
                with _opened(name) as stream:
                    head = stream.read(min(_HEAD_BYTES, offset))
                figures.known.append([len(head), hashlib.sha256(head).hexdigest(), offset])


def _read_file(name: str, offset: int, figures: Figures) -> int:
    """Count the whole lines from an offset on; the offset behind the last one."""
    if name.endswith(".gz"):
        # Compressed only after it was renamed once more, when nobody wrote to it any longer.
        if offset:
            return offset
    elif os.path.getsize(name) <= offset:
        return offset
    with _opened(name) as stream:
        stream.seek(offset)
        rest = b""
        while True:
            chunk = stream.read(_CHUNK)
            if not chunk:
                return offset
            text, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                add_lines(text + newline, figures)
                offset += len(text) + 1
