# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Edit Docker's daemon.json in place, and remember what was there before.

An edit touches the bytes of the member it changes and no others: order, indentation, spelling of numbers, unknown
keys and the last newline stay. So what was written can be taken back to the byte.
"""

from __future__ import annotations

import glob
import ipaddress
import json
import os
import re
import ssl
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

BACKUPS_KEPT = 5
BACKUP_SUFFIX = ".mirrorfleet~"

# Lists that belong to several owners: we add and remove our elements, the rest stays.
LIST_KEYS = ("registry-mirrors", "insecure-registries")

# What the module leaves alone, and why.
UNMANAGED = {
    "authorization-plugins": "dockerd exits when it reloads and cannot reach a plugin, and its containers with it"
}

UNSET = object()  # taking the key out of the file is enough
RESTART = object()  # only a restart makes the daemon forget the key

# Keys that dockerd takes over at SIGHUP, and what makes it forget them at SIGHUP: most are looked at only when they
# are in the file, so taking them out changes nothing. Every other key needs a restart.
# Source: moby daemon/reload.go and daemon/reload_unix.go, the same from 20.10 to 28. The cluster-* keys are gone
# since 23; features is treated in needed().
RELOADED: dict[str, Any] = {
    "registry-mirrors": [],
    "insecure-registries": [],
    "allow-nondistributable-artifacts": [],
    "labels": [],
    "debug": False,
    "live-restore": False,
    "shutdown-timeout": 15,
    "runtimes": {},
    "default-runtime": "runc",
    "default-shm-size": "64M",
    "default-ipc-mode": RESTART,
    "default-cgroupns-mode": RESTART,
    "max-concurrent-downloads": UNSET,
    "max-concurrent-uploads": UNSET,
    "max-download-attempts": UNSET,
    "network-diagnostic-port": UNSET,
    "features": UNSET,
}


class DaemonConfigError(RegistryFleetError):
    """daemon.json, or what was asked of it, is not usable. Nothing was written."""


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: true is not 1, 1 is not 1.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def needed(key: str, before: Any, after: Any) -> str:
    """What a change of a key needs: reload or restart. UNSET stands for a key that is not in the file."""
    if key not in RELOADED:
        return "restart"
    if key == "features":
        # All features reload, but only BuildKit's is looked at later than at start.
        old, new = (value if isinstance(value, dict) else {} for value in (before, after))
        return "reload" if all(same(old.get(name), new.get(name)) for name in {*old, *new} - {"buildkit"}) else "restart"
    return "restart" if after is UNSET and RELOADED[key] is not UNSET else "reload"


@dataclass
class Member:
    """A member of the object, by its offsets in the text."""

    key: str
    start: int
    key_end: int
    value_start: int
    end: int
    value: Any


class Document:
    """A JSON object as text, edited member by member.

    text is None where there is no file; a text of white space only is an empty object, as it is for dockerd
    (moby daemon/config, getConflictFreeConfiguration).
    """

    _decoder = json.JSONDecoder()

    def __init__(self, text: str | None, name: str = "daemon.json") -> None:
        self.text = text
        self._name = name
        self._parse()

    def _fail(self, position: int, why: str) -> DaemonConfigError:
        text = self.text or ""
        line = text.count("\n", 0, position) + 1
        column = position - text.rfind("\n", 0, position)
        rest = text[position:]
        if rest.startswith(("//", "/*", "#")):
            why = "JSON has no comments"
        elif rest.startswith(("}", "]")) and text[:position].rstrip().endswith(","):
            why = "a comma before the closing bracket"
        return DaemonConfigError(
            f"{self._name} is not valid JSON at line {line}, column {column}: {why}. Mend it there; the file is untouched."
        )

    def _skip(self, position: int) -> int:
        text = self.text or ""
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        return position

    def _value(self, position: int) -> Any:
        try:
            value, end = self._decoder.raw_decode(self.text or "", position)
            json.dumps(value, allow_nan=False)
        except json.JSONDecodeError as error:
            raise self._fail(error.pos, error.msg) from error
        except (RecursionError, ValueError) as error:
            raise self._fail(position, f"a value no JSON reader takes ({error})") from error
        return value, end

    def _parse(self) -> None:
        text = self.text or ""
        self.members: list[Member] = []
        self._open = self._close = 0
        position = self._skip(1 if text.startswith("\ufeff") else 0)  # dockerd takes a byte order mark
        if position == len(text):
            return
        if text[position] != "{":
            raise self._fail(position, "the file has to be one object, { … }")
        self._open = position + 1
        position = self._skip(self._open)
        while text[position:position + 1] != "}" or self.members:
            if text[position:position + 1] != '"':
                raise self._fail(position, 'a key in "double quotes" is missing')
            start = position
            key, key_end = self._value(start)
            position = self._skip(key_end)
            if text[position:position + 1] != ":":
                raise self._fail(position, f'a colon is missing after "{key}"')
            value_start = self._skip(position + 1)
            value, end = self._value(value_start)
            if key in self:
                raise self._fail(start, f'the key "{key}" is there twice')
            self.members.append(Member(key, start, key_end, value_start, end, value))
            position = self._skip(end)
            if text[position:position + 1] == "}":
                break
            if text[position:position + 1] != ",":
                raise self._fail(position, "a comma or a closing brace is missing")
            position = self._skip(position + 1)
        self._close = position
        position = self._skip(position + 1)
        if position != len(text):
            raise self._fail(position, "text after the closing brace")

    def _member(self, key: str) -> Member | None:
        return next((member for member in self.members if member.key == key), None)

    def __contains__(self, key: str) -> bool:
        return self._member(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        member = self._member(key)
        return default if member is None else member.value

    def raw(self, key: str) -> str | None:
        """A member's value as it stands in the text."""
        member = self._member(key)
        return None if member is None else (self.text or "")[member.value_start:member.end]

    def values(self) -> dict[str, Any]:
        return {member.key: member.value for member in self.members}

    @property
    def _newline(self) -> str:
        return "\r\n" if "\r\n" in (self.text or "") else "\n"

    def _lead(self, index: int) -> str:
        """The white space before a member."""
        start = self._open if index == 0 else (self.text or "").index(",", self.members[index - 1].end) + 1
        return (self.text or "")[start:self.members[index].start]

    @property
    def _indent(self) -> str | None:
        """The white space that starts a member's line; None where all stand on one line."""
        if not self.members:
            return "  "
        lead = self._lead(0)
        return lead.rpartition("\n")[2] if "\n" in lead else None

    def _render(self, value: Any, on_one_line: bool) -> str:
        indent = self._indent
        if on_one_line or indent is None:
            return json.dumps(value, allow_nan=False)
        return json.dumps(value, allow_nan=False, indent=indent or "  ").replace("\n", self._newline + indent)

    def _replace(self, start: int, end: int, by: str) -> None:
        self.text = (self.text or "")[:start] + by + (self.text or "")[end:]
        self._parse()

    def set(self, key: str, value: Any) -> None:
        """Give a key a value; a new key is the last. A list that stands on one line stays on one."""
        old = self.raw(key)
        self.set_raw(key, self._render(value, old is not None and old[0] in "[{" and "\n" not in old))

    def set_raw(self, key: str, raw: str) -> None:
        """Give a key a value that is JSON text already."""
        text, member = self.text or "", self._member(key)
        if member is not None:
            self._replace(member.value_start, member.end, raw)
        elif self.members:
            last = self.members[-1]
            colon = text[last.key_end:last.value_start]
            indent = self._indent
            if indent is not None:
                lead = self._newline + indent
            elif len(self.members) > 1:
                lead = self._lead(len(self.members) - 1)
            else:
                lead = " " if colon != ":" else ""
            self._replace(last.end, last.end, f",{lead}{json.dumps(key)}{colon}{raw}")
        elif self._open:
            self._replace(self._open, self._close, f"{self._newline}  {json.dumps(key)}: {raw}{self._newline}")
        else:
            self._replace(0, len(text), f"{{\n  {json.dumps(key)}: {raw}\n}}\n")

    def delete(self, key: str) -> None:
        """Take a member out, the opposite of set() for a new key."""
        member = self._member(key)
        if member is None:
            return
        index = self.members.index(member)
        if len(self.members) == 1:
            self._replace(self._open, self._close, "")
        elif member is self.members[-1]:
            self._replace(self.members[index - 1].end, member.end, "")
        else:
            self._replace(member.start, self.members[index + 1].start, "")


@dataclass
class Owned:
    """A key that is ours: what was there before (JSON text; None: nothing), and what we put there.

    For LIST_KEYS value is our elements. cleared: the key is no longer wanted, and value is what clears it at reload.
    """

    before: str | None
    value: Any
    cleared: bool = False


def _elements(document: Document, key: str) -> list[str]:
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
        raise DaemonConfigError(f'"{key}" in daemon.json is {json.dumps(value)}: it has to be a list of strings. The file is untouched.')
    return value


def _plain(element: str) -> str:
    """An element as it compares: dockerd takes a mirror with and without its last slash for the same."""
    return element[:-1] if element.endswith("/") else element


def merge(
    document: Document,
    owned: dict[str, Owned],
    wanted: dict[str, Any],
    absent: bool,
    forgotten: Callable[[str], bool],
) -> dict[str, Owned]:
    """Bring a document to what is wanted and give back what is then ours.

    forgotten(key) says whether the daemon has nothing of a key any more, so that it need not be cleared by a reload.
    """
    now: dict[str, Owned] = {}

    def clear(key: str) -> None:
        """Nothing was there before us: take the key out, or have a reload forget it first."""
        clearing = RELOADED.get(key, UNSET)
        if clearing in (UNSET, RESTART) or forgotten(key):
            document.delete(key)
            return
        if key not in document or not same(document.get(key), clearing):
            document.set(key, clearing)
        now[key] = Owned(None, clearing, True)

    def merge_list(key: str, elements: list[str], own: Owned | None) -> None:
        there = _elements(document, key)
        ours = {_plain(element) for element in own.value} if own else set()
        theirs = [element for element in there if _plain(element) not in ours]
        taken = {_plain(element) for element in theirs}
        ours_now = []
        for element in elements:
            if _plain(element) not in taken:
                taken.add(_plain(element))
                ours_now.append(element)
        # Docker asks mirrors in their order: the data center's own comes first.
        merged = ours_now + theirs if key == "registry-mirrors" else theirs + ours_now
        if ours_now:
            now[key] = Owned(own.before if own else document.raw(key), ours_now)
        elif own is None:
            return
        elif own.before is None and not theirs:
            if key in document:
                clear(key)
            return
        elif own.before is not None and (json.loads(own.before) or []) == theirs:
            document.set_raw(key, own.before)
            return
        if merged != there:
            document.set(key, merged)

    for key in [*wanted, *(key for key in owned if key not in wanted)]:
        own = owned.get(key)
        if own and own.cleared and key not in wanted and not absent and same(document.get(key), own.value):
            now[key] = own
        elif key in LIST_KEYS:
            merge_list(key, wanted.get(key, []), own)
        elif key in wanted:
            if key not in document or not same(document.get(key), wanted[key]):
                now[key] = Owned(own.before if own else document.raw(key), wanted[key])
                document.set(key, wanted[key])
            elif own:
                now[key] = Owned(own.before, wanted[key])
        elif own and key in document and same(document.get(key), own.value):  # else the operator has changed it: theirs
            if own.before is None:
                clear(key)
            else:
                document.set_raw(key, own.before)
    return now


_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")


def _is_host_port(text: str) -> bool:
    match = _HOST.fullmatch(text)
    return match is not None and (match.group(1) is None or 0 < int(match.group(1)) < 65536)


def check_mirror(url: str, docker_major: int | None) -> None:
    """Refuse a mirror that dockerd refuses (moby registry/config.go, ValidateMirror), or could never reach."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise DaemonConfigError(f'registry-mirrors: "{url}" is not a URL: {error}') from error
    problem = ""
    if parts.scheme not in ("http", "https") or "://" not in url:
        problem = "has to begin with https:// or http://"
    elif "@" in parts.netloc:
        url = urllib.parse.urlunsplit(parts._replace(netloc="…@" + parts.netloc.rpartition("@")[2]))
        problem = "holds a user name: Docker takes no credentials for a mirror"
    elif "?" in url or "#" in url:
        problem = "has a query or a fragment: Docker takes neither"
    elif not _is_host_port(parts.netloc):
        problem = "has no usable host[:port]"
    elif parts.path not in ("", "/") and docker_major is not None and docker_major < 25:
        problem = f"has a path: Docker takes one from version 25, this is {docker_major}. Give the mirror a name or a port of its own"
    if problem:
        raise DaemonConfigError(f'registry-mirrors: "{url}" {problem}.')


def check_options(options: dict[str, Any], docker_major: int | None) -> None:
    """Refuse what the daemon would refuse only when it reloads or starts: --validate looks at none of it before 28."""
    for key, value in options.items():
        if key in UNMANAGED:
            raise DaemonConfigError(f"{key} is not managed here: {UNMANAGED[key]}. Take it out of the options and set it by hand.")
        if key in LIST_KEYS and not (isinstance(value, list) and all(isinstance(element, str) for element in value)):
            raise DaemonConfigError(f"{key} is {json.dumps(value)}: it has to be a list of strings.")
        if value is None:
            raise DaemonConfigError(f"{key} is null. Leave a key out to have it as it was before.")
    for url in options.get("registry-mirrors", []):
        check_mirror(url, docker_major)
    for registry in options.get("insecure-registries", []):
        try:
            ipaddress.ip_network(registry, strict=False)
        except ValueError:
            if not _is_host_port(registry):
                raise DaemonConfigError(
                    f'insecure-registries: "{registry}" is neither host[:port] nor a network like 10.0.0.0/8; no scheme, no path.'
                ) from None


def check_certificates(certificates: dict[str, str]) -> None:
    """Refuse a registry that is no directory name under certs.d, and what is not a certificate."""
    for registry, text in certificates.items():
        if not _is_host_port(registry):
            raise DaemonConfigError(f'ca_certificates: "{registry}" is not host[:port].')
        if not isinstance(text, str) or "PRIVATE KEY" in text:
            raise DaemonConfigError(f"ca_certificates: what is given for {registry} is not a certificate. Give the CA's certificate, without its key.")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
        except (ssl.SSLError, ValueError) as error:
            raise DaemonConfigError(f"ca_certificates: what is given for {registry} is not a certificate in PEM form: {error}") from error


_SECRETS = (
    re.compile(r'(://)[^/@\s"]+(?=@)'),
    re.compile(r'("[^"]*(?:token|password|passwd|secret|key)"\s*:\s*")(?:[^"\\]|\\.)*', re.IGNORECASE),
)


def redact(text: str | None) -> str:
    """A text of daemon.json to show: no credentials of a proxy, no token of a log driver."""
    text = text or ""
    for secret in _SECRETS:
        text = secret.sub(r"\1********", text)
    return text


def secrets_in(value: Any, name: str = "") -> list[str]:
    """The strings of an option that redact() would hide."""
    if isinstance(value, dict):
        return [secret for key, inner in value.items() for secret in secrets_in(inner, str(key))]
    if isinstance(value, list):
        return [secret for inner in value for secret in secrets_in(inner, name)]
    if isinstance(value, str) and value and redact(json.dumps({name: value})) != json.dumps({name: value}):
        return [value]
    return []


def read(path: str) -> str | None:
    """A file's text, None where there is none."""
    try:
        with open(path, "rb") as file:
            content = file.read()
        return content.decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DaemonConfigError(f"{path} is not UTF-8 at line {line}. Mend it there; the file is untouched.") from error
    except OSError as error:
        raise DaemonConfigError(f"{path} cannot be read: {error.strerror}.") from error


def back_up(path: str) -> str:
    """Keep a file beside itself under a second name, keep the last BACKUPS_KEPT, and give the new one's path ('': no file).

    It is a hard link: owner, mode and label stay, and the next file takes the first name by rename.
    """
    if not os.path.exists(path):
        return ""
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
    backup = f"{path}.{stamp}{BACKUP_SUFFIX}"
    os.link(path, backup)
    for old in backups(path)[:-BACKUPS_KEPT]:
        os.unlink(old)
    return backup


def backups(path: str) -> list[str]:
    """The copies of a file, the oldest first."""
    return sorted(glob.glob(f"{glob.escape(path)}.*Z{BACKUP_SUFFIX}"))


@dataclass
class Record:
    """What is ours on this host, kept from run to run."""

    path: str  # of daemon.json
    keys: dict[str, Owned] = field(default_factory=dict)
    certificates: dict[str, Owned] = field(default_factory=dict)  # by registry; before and value are texts
    directories: list[str] = field(default_factory=list)  # made by us, in the order of making
    # Changes that the daemon which ran then (daemon) had not taken over at its reload of that time (reloaded).
    waiting: dict[str, dict[str, str]] = field(default_factory=dict)
    # The file's text before us where it held no key: None for no file. False: it held keys.
    empty: Any = False

    @classmethod
    def load(cls, record: str, path: str) -> Record:
        text = read(record)
        if text is None:
            return cls(path)
        try:
            data = json.loads(text)
            data["keys"] = {key: Owned(**value) for key, value in data["keys"].items()}
            data["certificates"] = {key: Owned(**value) for key, value in data["certificates"].items()}
            loaded = cls(**data)
        except (ValueError, TypeError, KeyError) as error:
            raise DaemonConfigError(
                f"{record} is damaged ({error}). It says which parts of {path} are ours. Take those out by hand, then remove it."
            ) from error
        if loaded.path != path:
            raise DaemonConfigError(f"{record} is about {loaded.path}, not {path}. Run with state: absent and path: {loaded.path} first.")
        return loaded

    def dump(self) -> str:
        data = dict(vars(self))
        data["keys"] = {key: vars(owned) for key, owned in self.keys.items()}
        data["certificates"] = {key: vars(owned) for key, owned in self.certificates.items()}
        return json.dumps(data, indent=2) + "\n"

    @property
    def holds(self) -> bool:
        """Whether there is anything to remember."""
        return bool(self.keys or self.certificates or self.waiting)
