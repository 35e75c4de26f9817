# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Everything that would keep a host from becoming a mirror or a docker host, found before anything is touched."""

from __future__ import annotations

import base64
import errno
import glob
import http.client
import os
import platform as python_platform
import re
import shutil
import socket
import threading
from dataclasses import asdict, dataclass, field
from typing import Any, Mapping, Sequence
from urllib.parse import urlencode

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import HttpClient, RegistryError, parse_challenges, public_url
from ansible_collections.mirrorfleet.registry.plugins.module_utils.service_config import check_platform, platform, run, search_path

# Seconds: for one connection or answer, and for all that one upstream is asked (a resolver can hang longer than any socket).
TIMEOUT = 5.0
DEADLINE = 20.0
QUOTED = 200  # characters of a body
LISTEN = "0A"  # linux/include/net/tcp_states.h


@dataclass(frozen=True)
class Problem:
    kind: str
    subject: str
    message: str


GO_ON = "Set mirror_allow_unreachable_upstreams: true to go on without it."


@dataclass
class Findings:
    problems: list[Problem] = field(default_factory=list)
    tolerated: list[Problem] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Process:
    """Who listens. `unit` is a systemd unit's name, or a container's; empty where neither is known."""

    pid: int
    command: str
    unit: str
    container: bool = False

    def __str__(self) -> str:
        owner = f", {'container' if self.container else 'unit'} {self.unit}" if self.unit else ""
        return f"{self.command} (pid {self.pid}{owner})"

    def belongs_to(self, unit: str) -> bool:
        """Whether this is the unit's process, or in the container that the unit runs and that has its name."""
        name = unit.rpartition(".")[0].replace("@", "-") if self.container else unit
        return bool(unit) and self.unit == name


def check(arguments: Mapping[str, Any]) -> Findings:
    """Look at everything, stop at nothing. `arguments` are those of the module host_check."""
    findings = Findings()
    found = platform()
    try:
        check_platform(arguments["platforms"], found)
    except RegistryFleetError as error:
        findings.problems.append(Problem("platform", found, str(error)))
    docker, complaint = docker_version()
    findings.facts = {
        "platform": found,
        "architecture": os.uname().machine,
        "docker_version": docker,
        "python": python_platform.python_version(),
        "systemd_version": systemd_version(),
    }
    if arguments["systemd"] and not findings.facts["systemd_version"]:
        message = "systemd does not run on this host, and every service of a mirror is a systemd unit: use a host that systemd has started."
        findings.problems.append(Problem("systemd", "systemd", message))
    if arguments["docker"] and not docker:
        findings.problems.append(Problem("docker", "docker", f"Docker does not answer ({complaint}): install it, and start docker.service."))
    for program in arguments["programs"]:
        if not shutil.which(program, path=search_path()):
            findings.problems.append(Problem("program", program, f"{program} is not on this host: install it."))
    for each in arguments["ports"]:
        findings.problems.extend(port_problems(each["address"], each["port"], each["unit"] or "", each["purpose"] or "this service"))
    findings.problems.extend(disk_problems(arguments["disk"]))
    places = {each["path"]: share_of(each["path"]) for each in arguments["disk"]}
    findings.shares = {path: place for path, place in places.items() if place}
    for problem in ask_all(arguments["upstreams"]):
        if problem:
            tolerated = problem.kind == "unreachable" and arguments["allow_unreachable"]
            (findings.tolerated if tolerated else findings.problems).append(problem)
    return findings


def docker_version() -> tuple[str, str]:
    """The version of the daemon that answers, or '' and why there is none."""
    try:
        answer = run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=15)
    except FileNotFoundError:
        return "", "there is no docker command"
    except RegistryFleetError as error:
        return "", str(error)
    version = answer.stdout.strip()
    if answer.returncode or not version:
        return "", " ".join(answer.stderr.split()) or f"docker version ended with {answer.returncode}"
    return version, ""


def systemd_version() -> str:
    """The version of the systemd that runs this host; '' when it is not systemd."""
    if not os.path.isdir("/run/systemd/system"):
        return ""
    words = run(["systemctl", "--version"]).stdout.split()
    return words[1] if len(words) > 1 else ""


# --- ports


def port_problems(address: str, port: int, unit: str, purpose: str) -> list[Problem]:
    """Whether a service could listen there, tried by binding for a moment; a listener of `unit` itself is no problem."""
    subject = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        family, kind, protocol, _name, where = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        return [Problem("port", subject, f"{address} is no address to listen on for {purpose} ({error}): write an address of this host.")]
    with socket.socket(family, kind, protocol) as probe:
        # A port that closed connections still linger on is free; SO_REUSEADDR does not share it with a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
            return []
        except OSError as error:
            reason = error
    if reason.errno == errno.EADDRNOTAVAIL:
        return [Problem("port", subject, f"{address}, where {purpose} is to listen, is no address of this host: write one of its addresses.")]
    if reason.errno != errno.EADDRINUSE:
        return [Problem("port", subject, f"{subject} cannot be listened on for {purpose}: {reason.strerror}.")]
    holders = listeners(port, str(where[0]))
    if holders and all(each.belongs_to(unit) for each in holders):
        return []
    who = " and ".join(map(str, holders)) or "a process that this host does not list"
    return [Problem("port", subject, f"{subject} is needed for {purpose} and in use by {who}: stop that, or choose another port.")]


def listeners(port: int, address: str) -> list[Process]:
    """The processes that keep others from listening on a TCP port of an address (of proc(5), /proc/net/tcp and /proc/<pid>/fd)."""
    wanted = _packed(address)
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _lines(table)[1:]:
            columns = line.split()
            local, number = columns[1].split(":")
            held = b"".join(bytes.fromhex(local[at : at + 8])[::-1] for at in range(0, len(local), 8))
            held = held[12:] if held[:12] == bytes(10) + b"\xff\xff" else held
            if columns[3] == LISTEN and int(number, 16) == port and (held == wanted or not any(held) or not any(wanted)):
                inodes.add(f"socket:[{columns[9]}]")
    pids = set()
    for path in glob.glob("/proc/[0-9]*/fd/*") if inodes else ():
        try:
            if os.readlink(path) in inodes:
                pids.add(int(path.split("/")[2]))
        except OSError:
            continue
    found: dict[tuple[str, bool], Process] = {}
    for pid in sorted(pids):
        # The first of a unit's processes stands for its workers.
        process = _process(pid)
        found.setdefault((process.unit or str(pid), process.container), process)
    return list(found.values())


def _packed(address: str) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.partition("%")[0])
    return packed[12:] if packed[:12] == bytes(10) + b"\xff\xff" else packed


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().splitlines()
    except OSError:
        return []


def _process(pid: int) -> Process:
    command = (_lines(f"/proc/{pid}/comm") or ["?"])[0]
    unit, container = owner_of("\n".join(_lines(f"/proc/{pid}/cgroup")))
    if container:
        try:
            answer = run(["docker", "inspect", "--format", "{{.Name}}", unit])
            unit = answer.stdout.strip().lstrip("/") or unit[:12]
        except (FileNotFoundError, RegistryFleetError):
            unit = unit[:12]
    return Process(pid, command, unit, container)


def owner_of(cgroup: str) -> tuple[str, bool]:
    """The innermost systemd service, or Docker container (its id, True), in the text of /proc/<pid>/cgroup; else ''."""
    for line in cgroup.splitlines():
        _hierarchy, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers in ("", "name=systemd"):
            for part in reversed(path.split("/")):
                match = re.fullmatch(r"(?:docker-)?([0-9a-f]{64})(?:\.scope)?", part)
                if match:
                    return match.group(1), True
                if part.endswith(".service"):
                    return part, False
    return "", False


# --- disks


def disk_problems(wanted: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Whether each file system has as many bytes free, for a user other than root, as all that is to be on it needs."""
    file_systems: dict[int, list[Mapping[str, Any]]] = {}
    for each in wanted:
        file_systems.setdefault(os.stat(_existing(each["path"])).st_dev, []).append(each)
    problems = []
    for together in file_systems.values():
        status = os.statvfs(_existing(together[0]["path"]))
        free = status.f_bavail * status.f_frsize
        needed = sum(max(0, each["free_bytes"] - _held(each["path"])) for each in together)
        if free < needed:
            paths = " and ".join(each["path"] for each in together)
            purposes = " and ".join(each["purpose"] or "this service" for each in together)
            message = (
                f"{paths}, for {purposes}: {human(free)} are free on the file system, "
                f"and {human(needed)} are needed. Make room, or choose a directory on a larger disk."
            )
            problems.append(Problem("disk", together[0]["path"], message))
    return problems


def share_of(path: str) -> str:
    """Where a path is on another host, like nas:/export/images; '' where it is on a disk of this one (of proc(5), /proc/self/mountinfo)."""
    real = os.path.realpath(path)
    place = ""
    longest = 0
    for line in _lines("/proc/self/mountinfo"):
        mount, _dash, file_system = line.partition(" - ")
        root, point, source = (
            re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word) for word in (*mount.split()[3:5], file_system.split()[1])
        )
        inside = os.path.relpath(real, point)
        # What is mounted last hides what is mounted at the same place.
        if inside.split("/")[0] != ".." and len(point) >= longest:
            longest = len(point)
            # NFS and the like are mounted from host:/path, SMB from //host/share.
            place = os.path.normpath(f"{source}/{root}/{inside}") if ":/" in source or source.startswith("//") else ""
    return place


def _existing(path: str) -> str:
    """The path, or the nearest directory above it that is there."""
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    return existing


def _held(path: str) -> int:
    """The bytes of disk that a file has already."""
    return os.stat(path).st_blocks * 512 if os.path.isfile(path) else 0


def human(count: float) -> str:
    """A number of bytes to read: 1.5 GiB."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        del units[0]
    unit = units[0]
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


# --- upstreams


def ask_all(upstreams: Sequence[Mapping[str, Any]]) -> list[Problem | None]:
    """One problem, or None, for each upstream; all are asked at the same time."""
    late = f"no answer within {DEADLINE:g} seconds. Check this host's resolver and its way there."
    answers: list[Problem | None] = [_unreachable(each, late) for each in upstreams]

    def ask_one(position: int) -> None:
        answers[position] = ask(upstreams[position])

    threads = [threading.Thread(target=ask_one, args=(position,), daemon=True) for position in range(len(upstreams))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    return answers


def ask(upstream: Mapping[str, Any]) -> Problem | None:
    """Whether an upstream (in the normalised form) lets this host in with the credentials that are to be rolled out."""
    try:
        client = HttpClient(upstream["ca_cert"], upstream["validate_certs"], TIMEOUT, TIMEOUT)
        try:
            return _ask(upstream, client)
        finally:
            client.close()
    except RegistryError as error:
        if error.temporary:
            return _unreachable(upstream, str(error))
        return _problem(upstream, str(error))
    except RegistryFleetError as error:
        return _problem(upstream, str(error))


def _ask(upstream: Mapping[str, Any], client: HttpClient) -> Problem | None:
    url = f"{upstream['url']}{upstream['path_prefix']}/v2/"
    basic = upstream["basic_authorization"]
    status, offered, content_type, said = _get(client, url, basic, upstream)
    quoted = f"GET {url} answers {said}"
    scheme = "bearer" if "bearer" in offered else "basic" if "basic" in offered else ""
    bearer = "auth: bearer, token_realm: {realm} and token_service: {service}".format(
        realm=offered.get("bearer", {}).get("realm", ""), service=offered.get("bearer", {}).get("service", "")
    )
    if status >= 500 or status == 429:
        return _unreachable(upstream, f"{quoted}. It is there, and broken or busy: ask who runs it.")
    if status in (401, 403):
        if upstream["auth"] == "none":
            if scheme == "bearer":
                return _problem(upstream, f"{quoted}. It asks for a token: write {bearer}.")
            return _problem(upstream, f"{quoted}. It asks for a password: write username and password.")
        if upstream["auth"] == "basic":
            if scheme == "bearer" and "basic" not in offered:
                return _problem(upstream, f"{quoted}. It asks for a token, not for a password: write {bearer}.")
            return _problem(upstream, f"{quoted}. The username or the password is wrong, or the user may not read there: correct username and password.")
        if scheme == "bearer":
            return _ask_for_token(upstream, client, offered["bearer"])
        if scheme == "basic":
            return _problem(upstream, f"{quoted}. It asks for a password, not for a token: write auth: basic.")
        return _problem(upstream, f"{quoted}. It does not say where to get a token: check url and path_prefix.")
    if status == 404:
        return _problem(upstream, f"{quoted}. There is no registry at this address: check url and path_prefix.")
    if status != 200 or content_type.startswith("text/html"):
        return _problem(upstream, f"{quoted}. That is no registry: check url and path_prefix.")
    return None


def _ask_for_token(upstream: Mapping[str, Any], client: HttpClient, challenge: Mapping[str, str]) -> Problem | None:
    token = upstream["token"]
    for key, name in (("realm", "token_realm"), ("service", "token_service")):
        if challenge.get(key, "") != token[key]:
            return _problem(upstream, f"{name} is {token[key]}, and the upstream sends clients to {challenge.get(key) or 'none'}: write that.")
    repository = re.split(r"[:@]", upstream["canary"])[0]
    query = urlencode({"service": token["service"], "scope": f"repository:{repository}:pull"})
    pair = f"{upstream['username']}:{upstream['password']}" if upstream["username"] else ""
    status, _offered, _content_type, said = _get(client, f"{token['realm']}?{query}", _basic(pair), upstream)
    quoted = f"GET {token['realm']} answers {said}"
    if status in (401, 403):
        remedy = "The username or the password is wrong: correct them." if pair else "It asks for a password: write username and password."
        return _problem(upstream, f"{quoted}. {remedy}")
    if status >= 500 or status == 429:
        return _unreachable(upstream, f"{quoted}. It is there, and broken or busy: ask who runs it.")
    if status != 200:
        return _problem(upstream, f"{quoted}. It gives no token: check token_realm and token_service.")
    return None


def _basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode() if pair else ""


def _get(client: HttpClient, url: str, authorization: str, upstream: Mapping[str, Any]) -> tuple[int, dict[str, dict[str, str]], str, str]:
    """Status, what WWW-Authenticate offers, the content type, and the answer as it may be quoted. Raises RegistryError."""
    headers = {"User-Agent": "mirrorfleet.registry"}
    if authorization:
        headers["Authorization"] = authorization
    with client.get(url, headers) as answer:
        body = answer.read(4096).decode("utf-8", "replace")
        offered = parse_challenges(", ".join(answer.headers.get_all("WWW-Authenticate") or []))
        content_type = answer.headers.get("Content-Type", "").lower()
        location = answer.headers.get("Location", "")
    # A token is a secret too, so what comes with 200 is not repeated.
    text = "" if answer.status == 200 else " ".join(body.split())
    for secret in (upstream["password"], authorization.partition(" ")[2]):
        text = text.replace(secret, "(secret)") if secret else text
    text = text[:QUOTED]
    said = f"{answer.status} {http.client.responses.get(answer.status, '')}".strip()
    said += f' "{text}"' if text else ""
    return answer.status, offered, content_type, said + (f" and sends to {public_url(location)}" if location else "")


def _problem(upstream: Mapping[str, Any], why: str) -> Problem:
    return Problem("upstream", upstream["name"], f"Upstream {upstream['name']}: {why}")


def _unreachable(upstream: Mapping[str, Any], why: str) -> Problem:
    return Problem("unreachable", upstream["name"], f"Upstream {upstream['name']} can't be reached: {why} {GO_ON}")
