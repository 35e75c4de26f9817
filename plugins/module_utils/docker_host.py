# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Docker on this host: its flags, what the running daemon has, and bringing daemon.json to what is wanted."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any, Callable
from urllib.parse import quote, urlencode

from ansible_collections.mirrorfleet.registry.plugins.module_utils import files
from ansible_collections.mirrorfleet.registry.plugins.module_utils.daemon_json import (
    LIST_KEYS,
    RELOADED,
    UNSET,
    DaemonConfigError,
    Document,
    Owned,
    Record,
    back_up,
    backups,
    check_certificates,
    check_options,
    merge,
    needed,
    read,
    redact,
    same,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

UNIT = "docker.service"
SOCKET = "/var/run/docker.sock"
PID_FILE = "/var/run/docker.pid"
ANSWER_WITHIN = 10  # seconds for docker info: it asks the storage driver too
RELOAD_WITHIN = 5  # seconds: kill -HUP answers before the daemon has read the file

# Flags whose key in daemon.json is spelled otherwise (moby cmd/dockerd/config*.go: NewNamed…Opts, and the short forms).
_KEY_OF_FLAG = {
    "H": "hosts",
    "host": "hosts",
    "registry-mirror": "registry-mirrors",
    "insecure-registry": "insecure-registries",
    "label": "labels",
    "log-opt": "log-opts",
    "exec-opt": "exec-opts",
    "storage-opt": "storage-opts",
    "authorization-plugin": "authorization-plugins",
    "dns-opt": "dns-opts",
    "default-ulimit": "default-ulimits",
    "default-network-opt": "default-network-opts",
    "default-address-pool": "default-address-pools",
    "node-generic-resource": "node-generic-resources",
    "cdi-spec-dir": "cdi-spec-dirs",
    "host-gateway-ip": "host-gateway-ips",
    "cluster-store-opt": "cluster-store-opts",
    "feature": "features",
    "http-proxy": "proxies",
    "https-proxy": "proxies",
    "no-proxy": "proxies",
    "b": "bridge",
    "D": "debug",
    "G": "group",
    "g": "graph",
    "l": "log-level",
    "p": "pidfile",
    "s": "storage-driver",
}
_SHORT_SWITCHES = "Dv"  # short flags that take no value


def flags(argv: list[str]) -> list[tuple[str, str]]:
    """The flags of a dockerd command line as (name, value); a switch has the value ''."""
    found: list[tuple[str, str]] = []
    words = iter(enumerate(argv[1:], 1))
    for index, word in words:
        following = argv[index + 1] if index + 1 < len(argv) and not argv[index + 1].startswith("-") else ""
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.append((name, value if equals else following))
        elif word.startswith("-"):
            letters = word[1:]
            while letters and letters[0] in _SHORT_SWITCHES:
                found.append((letters[0], ""))
                letters = letters[1:]
            if letters:
                found.append((letters[0], letters[1:].lstrip("=") or following))
    return found


def keys_set_by(argv: list[str]) -> dict[str, str]:
    """The daemon.json keys that a command line sets, each with its flag. A runtime may be given both ways."""
    return {
        _KEY_OF_FLAG.get(name, name): ("-" if len(name) == 1 else "--") + name for name, _value in flags(argv) if name != "add-runtime"
    }


def command_of_unit(properties: str) -> list[str]:
    """The command line in the answer of systemctl show, its variables replaced from Environment and EnvironmentFiles."""
    environment: dict[str, str] = {}
    command = ""
    for line in properties.splitlines():
        name, _equals, value = line.partition("=")
        if name == "Environment":
            environment.update(word.partition("=")[::2] for word in value.split() if "=" in word)
        elif name == "EnvironmentFiles":
            for setting in (read(value.rpartition(" (")[0] or value) or "").splitlines():
                key, equals, content = setting.strip().partition("=")
                if equals and not key.startswith(("#", ";")):
                    environment[key] = content.strip().strip("\"'")
        elif name == "ExecStart":
            match = re.search(r"argv\[\]=(.*?) ; ignore_errors=", value)
            command = match.group(1) if match else ""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: environment.get(match.group(1), ""), command).split()


class DockerError(RegistryFleetError):
    """The daemon gave no answer, or said no. ``status`` is None when there was no answer."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class DockerApi:
    """The Engine API (docs.docker.com/reference/api/engine) at a socket. `timeout` bounds an answer as a whole, in seconds; raises DockerError."""

    def __init__(self, path: str = SOCKET, timeout: float = ANSWER_WITHIN) -> None:
        self.path, self._timeout = path, timeout

    def info(self) -> dict[str, Any]:
        answer = self._json("GET", "/info")
        if not isinstance(answer, dict):
            raise DockerError(f"What answers at {self.path} is no Docker.")
        return answer

    def image(self, name: str) -> dict[str, Any] | None:
        """What the daemon knows of an image; None where it has none."""
        try:
            answer = self._json("GET", f"/images/{quote(name, safe='')}/json")
        except DockerError as error:
            if error.status == 404:
                return None
            raise
        return answer if isinstance(answer, dict) else None

    def pull(self, repository: str, tag: str, username: str = "", password: str = "") -> str:
        """Pull an image; the digest that its tag named. The daemon gives up when this does."""
        headers = {}
        if username:
            login = json.dumps({"username": username, "password": password, "serveraddress": repository.partition("/")[0]})
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(login.encode()).decode()
        return pulled_digest(self._ask("POST", f"/images/create?{urlencode({'fromImage': repository, 'tag': tag})}", headers))

    def remove_image(self, name: str) -> None:
        """Take a name from an image, and the image away if that was its last one."""
        self._ask("DELETE", f"/images/{quote(name, safe='')}", {})

    def _json(self, method: str, target: str) -> Any:
        try:
            return json.loads(self._ask(method, target, {}))
        except ValueError:
            raise DockerError(f"What answers at {self.path} is no Docker.") from None

    def _ask(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        until = time.monotonic() + self._timeout
        connection = _UnixConnection(self.path, self._timeout)
        body = bytearray()
        try:
            connection.request(method, target, headers=headers)
            peer = connection.sock
            response = connection.getresponse()
            # Before Python 3.12 read1 would wait for more at the end of a body.
            while response.length != 0:
                left = until - time.monotonic()
                if left <= 0:
                    raise socket.timeout
                peer.settimeout(left)
                chunk = response.read1(65536)
                if not chunk:
                    break
                body += chunk
        except socket.timeout:
            raise DockerError(f"Docker does not answer at {self.path} within {self._timeout:g} seconds.") from None
        except PermissionError:
            raise DockerError(f"{self.path} may not be used by this user: set become: true.") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise DockerError(f"Nobody answers at {self.path}: Docker does not run on this host, or its socket is elsewhere.") from None
        except (OSError, http.client.HTTPException) as error:
            raise DockerError(f"What answers at {self.path} is no Docker ({error or type(error).__name__}).") from None
        finally:
            connection.close()
        if response.status >= 400:
            try:
                message = str(json.loads(body)["message"])
            except (ValueError, KeyError, TypeError):
                message = f"status {response.status}"
            raise DockerError(message, response.status)
        return bytes(body)


def pulled_digest(progress: bytes) -> str:
    """The digest in what the daemon tells while it pulls, a JSON object a line; '' where it tells none. Raises DockerError."""
    digest = ""
    for line in progress.splitlines():
        try:
            said = json.loads(line)
            error, status = said.get("error"), str(said.get("status") or "")
        except (ValueError, AttributeError, RecursionError):
            raise DockerError("What answers in the place of Docker tells no progress of a pull.") from None
        if error:
            raise DockerError(str(error), 200)
        if status.startswith("Digest: "):
            digest = status[len("Digest: ") :]
    return digest


def docker_info(path: str = SOCKET) -> dict[str, Any] | None:
    """GET /info of the Engine API; None where nobody answers."""
    try:
        return DockerApi(path).info()
    except DockerError:
        return None


def _registries(values: list[str]) -> list[str]:
    """Insecure registries as they compare: dockerd drops schemes, writes networks out, and adds loopback by itself."""
    plain = set()
    for value in values:
        value = re.sub(r"^https?://", "", value, flags=re.IGNORECASE)
        with contextlib.suppress(ValueError):
            value = str(ipaddress.ip_network(value, strict=False)) if "/" in value else value
        plain.add(value)
    return sorted(plain - {"127.0.0.0/8", "::1/128"})


def _mirrors(values: list[str]) -> list[str]:
    return list(dict.fromkeys(value[:-1] if value.endswith("/") else value for value in values))


def _running_registries(info: dict[str, Any]) -> list[str]:
    configuration = info["RegistryConfig"]
    names = [name for name, index in (configuration["IndexConfigs"] or {}).items() if not index["Secure"]]
    return names + (configuration["InsecureRegistryCIDRs"] or [])


@dataclass(frozen=True)
class _Readable:
    """A key whose value docker info tells: where, what it is by default, and its form for comparing."""

    running: Callable[[dict[str, Any]], Any]
    default: Any
    form: Callable[[Any], Any] = lambda value: value


_READABLE = {
    "registry-mirrors": _Readable(lambda info: info["RegistryConfig"]["Mirrors"] or [], [], _mirrors),
    "insecure-registries": _Readable(_running_registries, [], _registries),
    "labels": _Readable(lambda info: info["Labels"] or [], [], sorted),
    "debug": _Readable(lambda info: info["Debug"], False),
    "live-restore": _Readable(lambda info: info["LiveRestoreEnabled"], False),
    "experimental": _Readable(lambda info: info["ExperimentalBuild"], False),
    "log-driver": _Readable(lambda info: info["LoggingDriver"], "json-file"),
    "default-runtime": _Readable(lambda info: info["DefaultRuntime"], "runc"),
}


@dataclass
class DockerHost:
    """What this host's Docker is at this moment. pid is 0 where no daemon runs."""

    pid: int = 0
    started: str = ""  # which process this is: boot, pid and start time
    reloaded: str = ""  # systemd's note of its last reload, '' where it knows of none
    running_command: list[str] = field(default_factory=list)
    unit_command: list[str] = field(default_factory=list)
    info: dict[str, Any] | None = None

    @classmethod
    def look(cls) -> DockerHost:
        """Ask systemd, /proc and the daemon. A daemon that does not run is not asked: its socket would start it."""
        host = cls()
        shown = ""
        if shutil.which("systemctl"):
            properties = ("MainPID", "ExecStart", "ExecReload", "Environment", "EnvironmentFiles")
            shown = subprocess.run(
                ["systemctl", "show", UNIT, "--property=" + ",".join(properties)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
            ).stdout.decode("utf-8", "replace")
        values = dict(line.partition("=")[::2] for line in shown.splitlines())
        host.unit_command = command_of_unit(shown)
        reload = values.get("ExecReload", "")
        host.reloaded = "" if "start_time=[n/a]" in reload else reload
        for pid in (values.get("MainPID", "0"), (read(PID_FILE) or "0").strip()):
            try:
                with open(f"/proc/{int(pid)}/cmdline", "rb") as file:
                    command = [word.decode("utf-8", "replace") for word in file.read().split(b"\0")[:-1]]
                with open(f"/proc/{int(pid)}/stat", encoding="utf-8") as file:
                    start = file.read().rpartition(")")[2].split()[19]  # proc(5): field 22, in ticks since boot
            except (OSError, ValueError, IndexError):
                continue
            if command and os.path.basename(command[0]).startswith("dockerd"):
                boot = (read("/proc/sys/kernel/random/boot_id") or "").strip()
                host.pid, host.started, host.running_command = int(pid), f"{boot}/{pid}/{start}", command
                host.info = docker_info(host.socket)
                break
        return host

    @property
    def socket(self) -> str:
        addresses = [value for name, value in flags(self.running_command) if name in ("H", "host")]
        return next((address[len("unix://"):] for address in addresses if address.startswith("unix:///")), SOCKET)

    @property
    def command(self) -> list[str]:
        return self.running_command or self.unit_command

    @property
    def program(self) -> str | None:
        name = self.command[0] if self.command else "dockerd"
        return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/usr/local/bin:/sbin")

    @property
    def major(self) -> int | None:
        """Docker's major version."""
        text = str(self.info.get("ServerVersion", "")) if self.info else ""
        if not text and self.program:
            answer = subprocess.run([self.program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
            text = answer.stdout.decode("utf-8", "replace").partition("version ")[2]
        match = re.match(r"(\d+)\.", text)
        return int(match.group(1)) if match else None

    def check_flags(self, path: str, keys: list[str]) -> None:
        """Refuse a key that a flag sets too: dockerd would ignore the reload and not start again."""
        for command, where in (
            (self.running_command, f"by the running dockerd (pid {self.pid})"),
            (self.unit_command, f"by {UNIT}"),
        ):
            file = dict(flags(command)).get("config-file", path)
            if os.path.realpath(file) != os.path.realpath(path):
                raise DaemonConfigError(f"{path} is not what Docker reads: --config-file={file} is set {where}. Give that as path.")
            flag_of = keys_set_by(command)
            for key in keys:
                if key in flag_of:
                    raise DaemonConfigError(
                        f"{key} is set {where} with {flag_of[key]}: dockerd takes it as a flag or in {path}, not both. "
                        f"Take the flag away, or {key} out of the options. The file is untouched."
                    )

    def _refusal(self, text: str) -> str:
        """What dockerd --validate (from 23) says against a configuration, with the flags it runs with; '': nothing."""
        if not self.program:
            return ""
        words = [self.program]
        skip = False
        for word in self.command[1:]:
            if not skip and word.partition("=")[0] != "--config-file":
                words.append(word)
            skip = word == "--config-file"
        # Read from a pipe: nothing is left behind, and what the file holds is in no other file.
        answer = subprocess.run(
            [*words, "--validate", "--config-file", "/dev/stdin"], input=text.encode("utf-8"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        said = answer.stdout.decode("utf-8", "replace").strip().replace("/dev/stdin", "daemon.json")
        return "" if answer.returncode == 0 or "unknown flag: --validate" in said else said or f"exit code {answer.returncode}"

    def validate(self, path: str, before: str | None, after: str | None) -> None:
        """Raise DaemonConfigError where dockerd refuses the new text."""
        said = self._refusal(after or "{}")
        if said:
            also = " It refuses the file as it is, too." if self._refusal(before or "{}") else ""
            raise DaemonConfigError(f"dockerd refuses the new {path}: {redact(said)}.{also} The file is untouched.")

    def has(self, key: str, value: Any) -> bool | None:
        """Whether the running daemon has a value (UNSET: its default). None where it doesn't tell."""
        readable = _READABLE.get(key)
        if readable is None or self.info is None:
            return None
        try:
            return same(readable.form(readable.running(self.info)), readable.form(readable.default if value is UNSET else value))
        except (KeyError, TypeError, AttributeError):
            return None

    def took(self, change: dict[str, str]) -> bool:
        """Whether the daemon was restarted, or reloaded where that is enough, after a change was noted."""
        if change["daemon"] != self.started:
            return True
        return change["needs"] == "reload" and bool(self.reloaded) and change["reloaded"] != self.reloaded

    def waiting(self, document: Document, keys: list[str], noted: dict[str, dict[str, str]]) -> dict[str, str]:
        """The keys whose value in the file the running daemon does not have yet, each with what it needs."""
        found: dict[str, str] = {}
        if not self.pid:
            return found
        until = time.monotonic() + RELOAD_WITHIN
        for key in dict.fromkeys([*keys, *noted]):
            value = document.get(key, UNSET)
            change = noted.get(key)
            has = self.has(key, value)
            while has is False and change and self.took(change) and time.monotonic() < until:
                time.sleep(0.2)
                self.info = docker_info(self.socket)
                has = self.has(key, value)
            if has is None:
                if change and not self.took(change):
                    found[key] = change["needs"]
            elif not has:
                found[key] = change["needs"] if change and not self.took(change) else needed(key, UNSET, value)
        return found


@dataclass
class Result:
    """What was, or would be, done."""

    keys: list[str]
    certificates: list[str]  # paths
    waiting: dict[str, str]
    backup: str
    diff: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        pending = {need: sorted(key for key, needs in self.waiting.items() if needs == need) for need in ("reload", "restart")}
        return {
            "changed": bool(self.diff),
            "keys_changed": self.keys,
            "certificates_changed": self.certificates,
            "needs": "restart" if pending["restart"] else "reload" if pending["reload"] else "nothing",
            "pending": pending,
            "backup": self.backup,
            "diff": self.diff,
        }


def _plan_certificates(record: Record, directory: str, wanted: dict[str, str]) -> tuple[dict[str, Owned], dict[str, str | None]]:
    """What is then ours, and the texts to write by path (None: remove)."""
    now: dict[str, Owned] = {}
    changes: dict[str, str | None] = {}
    for registry in [*wanted, *(registry for registry in record.certificates if registry not in wanted)]:
        path = os.path.join(directory, registry, "ca.crt")
        there, own = read(path), record.certificates.get(registry)
        if registry in wanted:
            text = wanted[registry].strip() + "\n"
            if there != text:
                if os.path.islink(path):
                    raise DaemonConfigError(f"{path} is a link to {os.readlink(path)}, which holds another certificate. Remove the link.")
                changes[path] = text
            if own or there != text:
                now[registry] = Owned(own.before if own else there, text)
        elif own and there == own.value:  # else the operator has changed it: theirs
            changes[path] = own.before
    return now, changes


def _missing_directories(path: str) -> list[str]:
    """The directories to make before a file can be there, the upper first."""
    path = os.path.dirname(path)
    return [] if os.path.isdir(path) else [*_missing_directories(path), path]


def _make_directories(paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
            os.chmod(path, 0o755)  # whatever the umask


def _remove_empty(directories: list[str]) -> None:
    """Remove those directories that are empty, the last first."""
    for directory in reversed(directories):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def configure(
    host: DockerHost,
    path: str,
    certs_dir: str,
    record_path: str,
    options: dict[str, Any],
    certificates: dict[str, str],
    absent: bool = False,
    check: bool = False,
) -> Result:
    """Bring Docker's configuration to what is wanted; absent: to what was there before us.

    Where a key of ours has to be cleared by a reload (RELOADED), absent is two calls with a reload in between: the
    first writes what clears it, the second takes the key out.
    """
    real = os.path.realpath(path)  # a link stays a link: its target is written
    text = read(real)
    document = Document(text, path)
    record = Record.load(record_path, path)
    # An empty list of ours adds nothing: it is no reason to touch the key, or to mind a flag.
    wanted = {} if absent else {key: value for key, value in options.items() if not (key in LIST_KEYS and value == [])}
    check_options(wanted, host.major if "registry-mirrors" in wanted else None)
    check_certificates({} if absent else certificates)
    host.check_flags(path, list(wanted))

    before = document.values()
    noted = record.waiting
    old = record.keys

    def forgotten(key: str) -> bool:
        if not host.pid:
            return True
        cleared = key in record.keys and record.keys[key].cleared
        if host.has(key, UNSET) is None:
            return cleared and not (key in noted and not host.took(noted[key]))
        # A reload that was to clear the key may not be done yet: waiting() gives it a moment.
        change = {key: noted[key]} if cleared and key in noted else {}
        return not host.waiting(Document(json.dumps({key: RELOADED[key]})), [key], change)

    was_empty = not document.members
    record.keys = merge(document, record.keys, wanted, absent, forgotten)
    if document.members and was_empty:
        record.empty = text
    if not document.members and record.empty is not False:
        document = Document(record.empty, path)
        record.empty = False
    after = document.values()
    changed = [key for key in dict.fromkeys([*before, *after]) if (key in before) != (key in after) or not same(before.get(key), after.get(key))]
    if document.text != text:
        host.validate(path, text, document.text)

    for key in changed:
        if key not in after and key in old and old[key].cleared:
            record.waiting.pop(key, None)  # what cleared it is the default: the daemon has that already
            continue
        record.waiting[key] = {
            "needs": needed(key, before.get(key, UNSET), after.get(key, UNSET)),
            "daemon": host.started,
            "reloaded": host.reloaded,
        }
    waiting = host.waiting(document, [*old, *record.keys, *wanted], record.waiting)
    record.waiting = {key: change for key, change in record.waiting.items() if key in waiting}
    record.certificates, certificate_changes = _plan_certificates(record, certs_dir, {} if absent else certificates)

    diff = []
    if document.text != text:
        diff.append({"before_header": path, "after_header": path, "before": redact(text), "after": redact(document.text)})
    for file, content in certificate_changes.items():
        diff.append({"before_header": file, "after_header": file, "before": read(file) or "", "after": content or ""})
    result = Result(changed, sorted(certificate_changes), waiting, "", diff)
    if not check:
        result.backup = _write(real, text, document.text, certificate_changes, record, record_path)
    return result


def _write(
    path: str,
    before: str | None,
    after: str | None,
    certificates: dict[str, str | None],
    record: Record,
    record_path: str,
) -> str:
    """Write in an order that an interruption leaves right: the record knows of a change before it is made."""
    if read(path) != before:
        raise DaemonConfigError(f"{path} was changed by somebody else at this moment. It is untouched: run again.")
    try:
        to_write = [file for file, content in [(path, after), *certificates.items()] if content is not None]
        to_make = list(dict.fromkeys(directory for file in to_write for directory in _missing_directories(file)))
        record.directories += [directory for directory in to_make if directory not in record.directories]
        if record.holds and read(record_path) != record.dump():
            _make_directories(_missing_directories(record_path))
            files.write(record_path, record.dump().encode("utf-8"), mode=0o600)
        _make_directories(to_make)
        for file, content in certificates.items():
            if content is not None:
                files.write(file, content.encode("utf-8"))
        backup = ""
        if after != before:
            backup = back_up(path)
            if after is None:
                files.discard(path)
            elif before is None:
                files.write(path, after.encode("utf-8"))
            else:
                status = os.stat(path)
                files.write(path, after.encode("utf-8"), status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
        for file, content in certificates.items():
            if content is None:
                files.discard(file)
                _remove_empty([directory for directory in record.directories if directory == os.path.dirname(file)])
        if not record.holds and os.path.exists(record_path):
            for old in backups(path):
                files.discard(old)
            backup = ""
            _remove_empty(record.directories)
            files.discard(record_path)
            _remove_empty([os.path.dirname(record_path)])
    except OSError as error:
        raise DaemonConfigError(f"{error.filename} cannot be written: {error.strerror}.") from error
    return backup
