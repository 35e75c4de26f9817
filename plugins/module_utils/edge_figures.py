# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the edge of a mirror host sent to docker hosts, counted from its access log, where each line is read once.

nginx counts no bytes, and no module that does is in Debian and in the official image alike; the log is there anyway. How far it has been
read is kept in a file, with the sums. Without that file everything is read that may belong to the time that the rewrite front counts.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import IO, Any, Tuple, cast

from ansible_collections.mirrorfleet.registry.plugins.module_utils import files
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import utc

LOG = "/var/log/mirrorfleet/edge/access.log"
# Gone with a boot, as the rewrite front's own counts are.
MEMORY = "/run/mirrorfleet-edge-figures.json"
_VERSION = 1
_CLASSES = {b"1": "1xx", b"2": "2xx", b"3": "3xx", b"4": "4xx", b"5": "5xx"}
_BLOB_FROM = {b"store": "hits", b"cache": "misses"}
# The User-Agent by which another mirror host's rewrite front asks.
_SIBLING = b'"mirrorfleet-front"'
# So many files the role's logrotate keeps beside the one that nginx writes.
_ROTATED = 7
_CHUNK = 4 * 1024 * 1024
# A file is known by its beginning: logrotate renames it, and compresses it into another one.
_HEAD_BYTES = 1024
# The format `mirror` of the role mirror_edge, where strings are as JSON escapes them. Between these keys there may be others.
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MORE = rb'(?:"[a-z_]+":(?:' + _STRING + rb"|[0-9.]+),)*?"
_LINE = re.compile(
    rb'^\{"time":"([^"\\]{19,32})",' + _MORE + rb'"upstream":"([a-z0-9-]*)",' + _MORE + rb'"method":"([^"\\]*)",' + _MORE + rb'"path":(' + _STRING + rb"),"
    + _MORE + rb'"status":(\d{3}),' + _MORE + rb'"bytes":(\d{1,18}),' + _MORE + rb'"source":"([a-z]*)",' + _MORE + rb'"agent":(' + _STRING + rb")[,}]",
    re.MULTILINE,
)
# The length of a file's beginning, that beginning's sha256, and how many bytes of the file were counted.
Place = Tuple[int, str, int]


def new_counts() -> dict[str, Any]:
    """Of one upstream, nothing so far."""
    return {"requests": 0, "lan_bytes": 0, "sibling_bytes": 0, "hits": 0, "misses": 0, "responses": dict.fromkeys([*_CLASSES.values(), "other"], 0)}


@dataclass
class Figures:
    """What is known of the log.

    ``known``: the files, the oldest first. ``since``: the time of the first line that was counted, '' before there is one. ``lost``: whether
    there were lines before it. ``total`` and ``front`` are counts by upstream, since ``since`` and since the rewrite front's ``front_start``
    (seconds since the epoch).
    """

    known: list[Place] = field(default_factory=list)
    since: str = ""
    lost: bool = False
    unreadable: int = 0
    front_start: int = 0
    total: dict[str, dict[str, Any]] = field(default_factory=dict)
    front: dict[str, dict[str, Any]] = field(default_factory=dict)


def seconds_of(time: bytes) -> float | None:
    """Seconds since the epoch of nginx's $time_iso8601; None for anything else."""
    try:
        moment = datetime.fromisoformat(time.decode("ascii"))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo else None


def add_lines(text: bytes, figures: Figures) -> None:
    """Count whole lines. One that is none of the edge's is counted as unreadable."""
    last, counting, in_front = b"", False, False
    # By what the line says: how many there are, and their bytes.
    sums: dict[tuple[bool, bytes, bytes, bytes, bytes, bool, bool], list[int]] = {}
    for match in _LINE.finditer(text):
        time, upstream, method, path, status, size, source, agent = match.groups()
        if time != last:
            last, moment = time, seconds_of(time)
            counting, in_front = moment is not None, moment is not None and moment >= figures.front_start
        if not counting:
            continue
        figures.since = figures.since or time.decode("ascii")
        key = in_front, upstream, method, status, source, b"/blobs/" in path, agent == _SIBLING
        both = sums.get(key)
        if both is None:
            both = sums[key] = [0, 0]
        both[0] += 1
        both[1] += int(size)
    for (in_front, upstream, method, status, source, blob, sibling), (number, sent) in sums.items():
        for window in (figures.total, figures.front) if in_front else (figures.total,):
            counts = window.setdefault(upstream.decode("ascii"), new_counts())
            counts["requests"] += number
            counts["sibling_bytes" if sibling else "lan_bytes"] += sent
            counts["responses"][_CLASSES.get(status[:1], "other")] += number
            if blob and method == b"GET" and status in (b"200", b"206") and source in _BLOB_FROM:
                counts[_BLOB_FROM[source]] += number
    figures.unreadable += text.count(b"\n") - sum(number for number, _sent in sums.values())


@dataclass
class LogFile:
    """One of the log's files, open: logrotate may take its name away meanwhile."""

    stream: IO[bytes]
    status: os.stat_result
    packed: bool
    head: bytes

    def size(self, offset: int) -> int:
        """How many bytes of log it has. Of a compressed one its end says so, modulo 4 GiB (RFC 1952, ISIZE): the first such size from an offset on."""
        if not self.packed:
            return os.fstat(self.stream.fileno()).st_size
        last = os.pread(self.stream.fileno(), 4, self.status.st_size - 4)
        return offset + (int.from_bytes(last, "little") - offset) % 2**32


def log_files(path: str, stack: contextlib.ExitStack) -> list[LogFile]:
    """The log and what logrotate made of it, the oldest first. Raises OSError.

    They are opened the newest first, because logrotate may be at work, and moves them the other way: so one may be seen twice, and none is missed.
    """
    numbers = [re.fullmatch(r"\.([1-9]\d{0,3})(?:\.gz)?", each[len(path) :]) for each in glob.glob(glob.escape(path) + ".*")]
    last = max((int(number.group(1)) for number in numbers if number), default=0)
    found: list[LogFile] = []
    for number in range(last + 2):
        # While a file is compressed it is there twice, and the new one is not whole yet.
        for name in (f"{path}.{number}", f"{path}.{number}.gz") if number else (path,):
            each = _open(name, stack)
            if each:
                if not any(os.path.samestat(each.status, other.status) or each.head and each.head == other.head for other in found):
                    found.append(each)
                break
    return found[::-1]


def _open(name: str, stack: contextlib.ExitStack) -> LogFile | None:
    """Only a file: the directory is the edge's own, and root reads it."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    status, packed = os.fstat(descriptor), name.endswith(".gz")
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return None
    plain = stack.enter_context(os.fdopen(descriptor, "rb"))
    stream = cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=plain))) if packed else plain
    return LogFile(stream, status, packed, stream.read(_HEAD_BYTES))


def _known(file: LogFile, known: list[Place]) -> Place | None:
    """What is known of a file, found by its beginning."""
    return next((each for each in known if len(file.head) >= each[0] and _hash(file.head[: each[0]]) == each[1]), None)


def _hash(head: bytes) -> str:
    return hashlib.sha256(head).hexdigest()


def read_log(log: list[LogFile], figures: Figures) -> None:
    """Count the lines of the log's files that were not counted yet. Raises OSError."""
    before, figures.known = figures.known, []
    places = [(each, _known(each, before)) for each in log]
    if before and before[-1] not in [place for _file, place in places]:
        # Where reading ended is gone, and nobody knows what came after it: counts begin anew with what is new.
        figures.since, figures.unreadable, figures.total, figures.front, figures.lost = "", 0, {}, {}, True
    elif not before:
        figures.lost = len(places) > _ROTATED
    for file, place in places:
        offset = place[2] if place else 0
        if before or file is log[-1] or file.status.st_mtime >= figures.front_start:
            offset = _read_file(file, offset, figures)
        else:
            # Without a memory, what ended before the rewrite front began is left out.
            offset = file.size(0)
        if offset:
            head = file.head[:offset]
            figures.known.append((len(head), _hash(head), offset))


def _read_file(file: LogFile, offset: int, figures: Figures) -> int:
    """Count the whole lines from an offset on; the offset behind the last one."""
    if file.size(offset) == offset:
        return offset
    file.stream.seek(offset)
    rest = b""
    for chunk in iter(lambda: file.stream.read(_CHUNK), b""):
        text, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            add_lines(text + newline, figures)
            offset += len(text) + 1
    return offset


def recall(path: str) -> Figures:
    """What was known the last time; nothing where that can't be read, or is another version's."""
    try:
        with open(path, encoding="utf-8") as stream:
            state = json.load(stream)
        version, known = state.pop("version"), [(int(length), str(digest), int(offset)) for length, digest, offset in state.pop("known")]
        figures = Figures(known=known, **state)
        for window in (figures.total, figures.front):
            for counts in window.values():
                if {key: type(value) for key, value in counts.items()} != {key: type(value) for key, value in new_counts().items()}:
                    raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Figures()
    return figures if version == _VERSION else Figures()


def look(log: str, memory: str, front_start: int, remember: bool) -> Figures:
    """The figures up to now. `front_start`: the second since the epoch in which the rewrite front began to count. Raises RegistryFleetError."""
    figures = recall(memory)
    # An old HAProxy's start is not known to the second. Nor is a line's time: what ended in that second counts.
    if abs(front_start - figures.front_start) > 2:
        figures.front_start, figures.front = front_start, {}
    try:
        with contextlib.ExitStack() as stack:
            opened = log_files(log, stack)
            if not opened:
                raise RegistryFleetError(f"{log} is not there: does mirrorfleet-edge.service run on this host?")
            read_log(opened, figures)
        if remember:
            # Somebody else who asks in this moment writes the same.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                files.write(memory, json.dumps({"version": _VERSION, **asdict(figures)}).encode() + b"\n", os.geteuid(), os.getegid(), 0o600)
    except PermissionError as error:
        raise RegistryFleetError(f"{error.filename} can't be used: {error.strerror}. Run as root (become: true).") from None
    except (OSError, EOFError, zlib.error) as error:
        raise RegistryFleetError(f"{getattr(error, 'filename', None) or log} can't be used: {getattr(error, 'strerror', None) or error}.") from error
    return figures


def report(figures: Figures, wan_bytes: dict[str, int], now: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """What front_info documents as `edge` and `saved`. `wan_bytes`: by upstream, since figures.front_start."""
    names = sorted({*figures.total, *wan_bytes} - {""})
    total = {name: figures.total.get(name) or new_counts() for name in names}
    since = seconds_of(figures.since.encode())
    edge = {
        "since": None if since is None else utc(since),
        "counting_seconds": 0 if since is None else int(now - since),
        "lan_bytes": sum(each["lan_bytes"] for each in total.values()),
        "sibling_bytes": sum(each["sibling_bytes"] for each in total.values()),
        "unreadable_lines": figures.unreadable,
        "upstreams": [{"name": name, **counts, "hit_ratio": _ratio(counts["hits"], counts["hits"] + counts["misses"])} for name, counts in total.items()],
    }
    # Where lines of the rewrite front's time are missing, nobody can say.
    whole = not figures.lost or (since is not None and since <= figures.front_start)
    lan = {name: counts["lan_bytes"] for name, counts in figures.front.items()}
    saved = {
        "since": utc(figures.front_start),
        **_saved(sum(lan.values()), sum(wan_bytes.values()), whole),
        "upstreams": [{"name": name, **_saved(lan.get(name, 0), wan_bytes.get(name, 0), whole)} for name in names],
    }
    return edge, saved


def _saved(lan: int, wan: int, whole: bool) -> dict[str, Any]:
    return {
        "lan_bytes": lan if whole else None,
        "wan_bytes": wan,
        "bytes": lan - wan if whole else None,
        "ratio": _ratio(lan, wan) if whole else None,
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
