# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Does this host's own Docker really use the mirrors of its data center?

Docker goes to the Docker Hub without a word when a mirror fails, so that a pull succeeds proves nothing. The edge of every mirror host has an
image that no registry has (roles/mirror_edge/templates/canary.yml.j2), whose label names the mirror host. No account of the Docker Hub can
have a name with a hyphen, and the digest that Docker got must be one that a mirror gives this host too.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import hashlib
import ipaddress
import json
import os
import re
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.mirrorfleet.registry.plugins.module_utils.certificate import parse_certificate
from ansible_collections.mirrorfleet.registry.plugins.module_utils.daemon_json import UNSET, DaemonConfigError, Document, read
from ansible_collections.mirrorfleet.registry.plugins.module_utils.docker_host import DockerApi, DockerError, DockerHost, keys_set_by
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import HttpClient, RegistryError, in_quotes

REPOSITORY, TAG = "mirrorfleet-edge/canary", "1"
# The annotation of the canary's index and the label of its image.
HOST_KEY = "mirrorfleet.host"
HUB = "docker.io"
_MAX_BYTES = 64 * 1024
_INDEX = "application/vnd.oci.image.index.v1+json"
_KEYS = ("registry-mirrors", "insecure-registries")
_DAY = 86400


@dataclass
class Tls:
    """``trusted`` is None where Docker does not ask, or nobody got so far. ``days`` are those that the certificate is valid yet."""

    trusted: bool | None = None
    days: int | None = None
    signed_by: str = ""
    why_not: str = ""


@dataclass
class Mirror:
    """One address of one mirror, as this host sees it."""

    registry: str
    url: str
    address: str | None = None
    reachable: bool = False
    status: int | None = None
    milliseconds: float | None = None
    mirror_host: str = ""
    digest: str = ""
    tls: Tls | None = None
    why_not: str = ""


@dataclass
class Pull:
    """What the daemon got. ``uses_mirror`` is None when it was not asked."""

    registry: str
    image: str
    uses_mirror: bool | None = None
    mirror_host: str = ""
    digest: str = ""
    seconds: float | None = None
    why_not: str = ""


@dataclass
class Docker:
    """What the running daemon has."""

    version: str = ""
    image_store: str = ""
    registry_mirrors: list[str] = field(default_factory=list)
    insecure_registries: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    why_not: str = ""


@dataclass(frozen=True)
class Question:
    """What is to be found out. `registries` are host:port; times are seconds."""

    registries: list[str]
    docker_hub: bool
    pull: bool
    docker_socket: str
    daemon_json: str
    certs_dir: str
    username: str
    password: str = field(repr=False)
    timeout: float
    pull_timeout: float


def probe(question: Question) -> dict[str, Any]:
    """What mirror_probe documents."""
    docker, answers, api = _look_at_docker(question)
    ways = _ways(question, docker) if answers else []
    with ThreadPoolExecutor(16) as pool:
        looks = [pool.submit(_look_at, registry, url, question, docker) for registry, urls in ways for url in urls]
        mirrors = [each for look in looks for each in look.result()]
    pulls = [_pull(question, docker, api, registry, [each for each in mirrors if each.registry == registry]) for registry, _urls in ways]
    why_not = [f"{each.registry}: {each.why_not}" for each in pulls if each.why_not]
    if answers and not ways:
        why_not = ["There is nothing to be pulled by a mirror: give registries, or docker_hub: true."]
    if docker.why_not and (why_not or not answers):
        why_not.insert(0, docker.why_not)
    return {
        "uses_mirror": False if why_not else True if question.pull else None,
        "why_not": " ".join(why_not),
        "docker": asdict(docker),
        "mirrors": [asdict(each) for each in mirrors],
        "pulls": [asdict(each) for each in pulls],
    }


def describe(info: dict[str, Any]) -> Docker:
    """The daemon by its own words. Raises DockerError."""
    try:
        configuration = info["RegistryConfig"]
        names = [name for name, index in (configuration["IndexConfigs"] or {}).items() if not index["Secure"]]
        return Docker(
            version=str(info["ServerVersion"]),
            # moby daemon/containerd/service.go, Status; a graph driver says other things there.
            image_store="containerd" if ["driver-type", "io.containerd.snapshotter.v1"] in (info.get("DriverStatus") or []) else "classic",
            registry_mirrors=[str(each) for each in configuration["Mirrors"] or []],
            insecure_registries=names + [str(each) for each in configuration["InsecureRegistryCIDRs"] or []],
        )
    except (KeyError, TypeError, AttributeError):
        raise DockerError("What answers in the place of Docker does not tell its configuration.") from None


def _look_at_docker(question: Question) -> tuple[Docker, bool, DockerApi]:
    """Also whether it answers, and how to go on asking it."""
    docker = Docker()
    host = DockerHost() if question.docker_socket else DockerHost.look()
    api = DockerApi(question.docker_socket or host.socket, question.timeout)
    if not question.docker_socket and not host.pid:
        docker.why_not = "Docker does not run on this host."
        return docker, False, api
    try:
        info = host.info = host.info or api.info()
        docker = describe(info)
    except DockerError as error:
        docker.why_not = str(error)
        return docker, False, api
    try:
        document = Document(read(question.daemon_json), question.daemon_json)
        by_flag = keys_set_by(host.command)
        docker.pending = [key for key in _KEYS if key not in by_flag and host.has(key, document.get(key, UNSET)) is False]
    except DaemonConfigError as error:
        docker.why_not = str(error)
    return docker, True, api


def _ways(question: Question, docker: Docker) -> list[tuple[str, list[str]]]:
    """The registries whose images are to come by a mirror, each with the URLs of its mirrors, the first one asked first."""
    ways: dict[str, list[str]] = {}
    if question.docker_hub:
        ways[HUB] = list(docker.registry_mirrors)
    if docker.image_store == "containerd":
        for path in sorted(glob.glob(os.path.join(glob.escape(question.certs_dir), "*", "hosts.toml"))):
            registry = registry_of(os.path.basename(os.path.dirname(path)))
            if registry and (registry != HUB or question.docker_hub):
                with contextlib.suppress(DaemonConfigError):
                    ways.setdefault(registry, []).extend(hosts_of(read(path) or ""))
    for registry in question.registries:
        ways.setdefault(registry, []).append(f"https://{registry}")
    return list(ways.items())


def registry_of(directory: str) -> str:
    """The registry that a directory of certs.d is for (containerd docs/hosts.md); '' for the default of all."""
    match = re.fullmatch(r"(.+)_(\d+)_", directory)
    return "" if directory == "_default" else f"{match.group(1)}:{match.group(2)}" if match else directory


def hosts_of(toml: str) -> list[str]:
    """The mirrors in a hosts.toml, in their order. Only the names of its tables matter, which are one line each."""
    found = re.findall(r"""(?m)^[ \t]*\[[ \t]*host[ \t]*\.[ \t]*(?:"([^"\\\n]*)"|'([^'\n]*)')[ \t]*\][ \t]*(?:#.*)?$""", toml)
    return [double or single for double, single in found]


def is_insecure(registry: str, insecure: list[str]) -> bool:
    """Whether Docker takes plain HTTP and any certificate from a registry (moby registry/config.go, isSecureIndex)."""
    if registry in insecure:
        return True
    host = urlsplit(f"//{registry}").hostname or ""
    networks = []
    for each in insecure:
        with contextlib.suppress(ValueError):
            networks.append(ipaddress.ip_network(each))
    with contextlib.suppress(OSError, UnicodeError):
        for address in {ipaddress.ip_address(str(found[4][0]).partition("%")[0]) for found in socket.getaddrinfo(host, None)}:
            if any(address in network for network in networks):
                return True
    return False


def _look_at(registry: str, url: str, question: Question, docker: Docker) -> list[Mirror]:
    """One entry for each address of a mirror."""
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except ValueError as error:
        return [Mirror(registry, url, why_not=f"{url} is no URL: {error}.")]
    except OSError as error:
        return [Mirror(registry, url, why_not=f"{url}: its name has no address ({error.strerror}).")]
    verify = not is_insecure(parts.netloc, docker.insecure_registries)
    mirrors = []
    for address in dict.fromkeys(str(each[4][0]) for each in found):
        mirror = Mirror(registry, url, address)
        if parts.scheme == "https":
            mirror.tls = _look_at_certificate(host, port, address, question.timeout)
        try:
            authorities = _authorities(os.path.join(question.certs_dir, parts.netloc))
            client = HttpClient(authorities, verify, question.timeout, question.timeout, address)
            # The login is for the data center's mirrors, and Docker has none for a mirror of the Docker Hub.
            _ask(mirror, client, (question.username, question.password) if registry in question.registries else ("", ""))
        except RegistryError as error:
            mirror.why_not = f"{url} ({address}): {error.why}."
            if mirror.tls and isinstance(error.__context__, ssl.SSLCertVerificationError):
                mirror.tls.trusted, mirror.tls.why_not = False, error.__context__.verify_message
        except RegistryFleetError as error:
            mirror.why_not = str(error)
        if mirror.tls and mirror.reachable and verify:
            mirror.tls.trusted = True
        mirrors.append(mirror)
    if url == f"https://{registry}" and not verify and not any(each.reachable for each in mirrors):
        # Docker asks an insecure registry without TLS then.
        plain = _look_at(registry, f"http://{registry}", question, docker)
        return plain if any(each.reachable for each in plain) else mirrors
    return mirrors


def _ask(mirror: Mirror, client: HttpClient, login: tuple[str, str]) -> None:
    """Ask for /v2/, then for the canary on the same connection. Raises RegistryError."""
    headers = {"User-Agent": "mirrorfleet.registry"}
    if login[0]:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    where = f"{mirror.url} ({mirror.address})"
    with contextlib.closing(client):
        with client.get(f"{mirror.url}/v2/", headers) as answer:
            body = answer.read(_MAX_BYTES)
            mirror.reachable, mirror.status = True, answer.status
            kind = answer.headers.get_content_type()
        if mirror.status == 401:
            remedy = ", which Docker has for no mirror of the Docker Hub" if mirror.registry == HUB else ": give username and password"
            mirror.why_not = f"{where} asks for a login{', and refuses this one' if login[0] else remedy}."
            return
        if mirror.status != 200 or kind == "text/html":
            why = in_quotes(body, login[1], headers.get("Authorization", "").partition(" ")[2]) or "nothing"
            mirror.why_not = f"{where} answers {mirror.status} for /v2/, {kind}, and says {why}: it is out of service, refuses this host, or is no mirror."
            return
        began = time.monotonic()
        with client.get(f"{mirror.url}/v2/{REPOSITORY}/manifests/{TAG}", {**headers, "Accept": _INDEX}) as answer:
            mirror.milliseconds = round((time.monotonic() - began) * 1000, 1)
            body = answer.read(_MAX_BYTES)
        try:
            mirror.mirror_host = str(json.loads(body)["annotations"][HOST_KEY])
            mirror.digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        except (ValueError, KeyError, TypeError, RecursionError):
            kind = answer.headers.get_content_type()
            mirror.why_not = f"{where} has no canary, it answers {answer.status} and {kind}: it is no edge, or an older one. Run site.yml for it."


def _authorities(directory: str) -> str:
    """The certificates that Docker trusts for a registry beside the system's own (docs.docker.com/engine/security/certificates)."""
    return "\n".join(read(path) or "" for path in sorted(glob.glob(os.path.join(glob.escape(directory), "*.crt"))))


def _look_at_certificate(host: str, port: int, address: str, timeout: float) -> Tls:
    """Read the certificate, whoever signed it. What is wrong with the connection is told by the request."""
    tls = Tls()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError, ValueError):
        with socket.create_connection((address, port), timeout) as plain, context.wrap_socket(plain, server_hostname=host) as connection:
            certificate = parse_certificate(connection.getpeercert(binary_form=True) or b"")
        tls.days, tls.signed_by = int((certificate.not_after - time.time()) // _DAY), certificate.issuer
    return tls


def _pull(question: Question, docker: Docker, api: DockerApi, registry: str, mirrors: list[Mirror]) -> Pull:
    """Let the daemon pull the canary, and see where it has it from."""
    repository = REPOSITORY if registry == HUB else f"{registry}/{REPOSITORY}"
    pull = Pull(registry, f"{repository}:{TAG}")
    if not mirrors:
        pull.uses_mirror, pull.why_not = False, "the running Docker has no mirror for it."
        if registry == HUB and "registry-mirrors" in docker.pending:
            pull.why_not += f" {question.daemon_json} says otherwise: reload Docker."
        return pull
    if not question.pull:
        pull.why_not = " ".join(each.why_not for each in mirrors) if all(each.why_not for each in mirrors) else ""
        return pull
    pull.uses_mirror = False
    there, began = None, time.monotonic()
    slow = DockerApi(api.path, question.pull_timeout)
    try:
        there = api.image(pull.image)
        try:
            pull.digest = slow.pull(repository, TAG, question.username if registry in question.registries else "", question.password)
            pull.seconds = round(time.monotonic() - began, 3)
            image = api.image(pull.image) or {}
            pull.mirror_host = str(((image.get("Config") or {}).get("Labels") or {}).get(HOST_KEY, ""))
        finally:
            if there is None:
                with contextlib.suppress(DockerError):
                    api.remove_image(pull.image)
    except DockerError as error:
        faults = " ".join(each.why_not for each in mirrors if each.why_not)
        pull.why_not = f"Docker can't pull the canary: {str(error).rstrip('.')}." + (f" {faults}" if faults else "")
        return pull
    if pull.digest in [each.digest for each in mirrors if each.digest]:
        pull.uses_mirror = True
    else:
        pull.why_not = f"Docker pulled {pull.image} with the digest {pull.digest or '(none)'}, which none of its mirrors gives this host."
    return pull
