# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What an operator writes in mirror_upstreams, checked, and completed to the form that every template uses."""

from __future__ import annotations

import base64
import difflib
import re
from dataclasses import dataclass
from typing import Any, Iterable, TypedDict
from urllib.parse import urlsplit

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError


class Server(TypedDict):
    """Where to connect: address without brackets, port, and whether TLS is spoken there."""

    address: str
    port: int
    tls: bool


class Token(TypedDict):
    """The token endpoint of a Bearer upstream. `host` is the value of the Host header, `path` that of the realm."""

    realm: str
    service: str
    host: str
    server: Server
    path: str


class Redirect(TypedDict):
    """Where the upstream may send us for a blob: `scheme` and `host` as a Location header has them, without a scheme's own port."""

    scheme: str
    host: str
    server: Server


class Ports(TypedDict):
    """The TCP ports of one upstream on a mirror host. Only `edge` is open to the LAN."""

    edge: int
    cache: int
    debug: int
    coalescer: int
    front: int


class Upstream(TypedDict):
    """One upstream in the normalised form."""

    name: str
    url: str
    host: str
    server: Server
    path_prefix: str
    username: str
    password: str
    auth: str
    basic_authorization: str
    token: Token | None
    redirects: list[Redirect]
    validate_certs: bool
    ca_cert: str
    docker_hub: bool
    canary: str
    wan_bytes_per_second: int
    ports: Ports


@dataclass(frozen=True)
class Missing:
    """Stands in for a value that could not be worked out (an undefined variable, a vault without its password)."""

    reason: str


# The ports of an upstream are its edge port plus these: known without looking anything up, and the same on every host.
PORT_OFFSETS = {"edge": 0, "cache": 10000, "debug": 11000, "coalescer": 12000, "front": 13000}
# The edge has no right to listen below.
LOWEST_EDGE_PORT = 1024
HIGHEST_EDGE_PORT = 65535 - max(PORT_OFFSETS.values())

# What GET /v2/ of these registries answers in WWW-Authenticate: realm and service.
WELL_KNOWN = {
    "registry-1.docker.io": ("https://auth.docker.io/token", "registry.docker.io"),
    "ghcr.io": ("https://ghcr.io/token", "ghcr.io"),
    "quay.io": ("https://quay.io/v2/auth", "quay.io"),
}
# Where these send a client for a blob. https://docs.docker.com/desktop/setup/allow-list/,
# https://docs.openshift.com/container-platform/latest/installing/install_config/configuring-firewall.html
WELL_KNOWN_REDIRECTS = {
    "registry-1.docker.io": (
        "production.cloudflare.docker.com", "production.cloudfront.docker.com",
        "docker-images-prod.6aa30f8b08e16409b46e0173d6de2f56.r2.cloudflarestorage.com",
    ),
    "ghcr.io": ("pkg-containers.githubusercontent.com",),
    "quay.io": ("cdn.quay.io", *(f"cdn0{number}.quay.io" for number in range(1, 7))),
}
# Names of the Docker Hub that are not its registry.
HUB_ALIASES = ("docker.io", "index.docker.io", "hub.docker.com", "www.docker.com", "registry.docker.io")
HUB_CANARY = "library/hello-world:latest"

REQUIRED = ("name", "url", "port")
KEYS = REQUIRED + (
    "path_prefix", "username", "password", "docker_hub", "canary", "auth", "token_realm", "token_service", "redirect_hosts", "validate_certs", "ca_cert",
    "wan_limit_mbit",
)
SECRETS = ("password",)
# The examples ship with it, so that nobody runs a fleet on the example's credentials.
PLACEHOLDER = "CHANGE-ME"

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_IPV6 = re.compile(r"[0-9a-f:.]*:[0-9a-f:.]*")
# These end up in configuration files of several programs. No character here needs quoting in any of them.
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_SERVICE = re.compile(r"[A-Za-z0-9._~:/@+-]+")
_DECIMAL = re.compile(r"[0-9]{1,5}(\.[0-9]+)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# https://github.com/distribution/reference/blob/main/reference.go, without the domain
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(rf"(?P<name>{_COMPONENT}(?:/{_COMPONENT})*)(?P<version>:\w[\w.-]{{0,127}}|@sha256:[0-9a-f]{{64}})?", re.ASCII)


class _Problem(Exception):
    """What is wrong with the value of one key, and what to write instead."""


def near_miss(word: str, known: Iterable[str], cutoff: float = 0.8) -> str | None:
    """The known word that was probably meant, or None."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)), None)


def normalise(upstreams: object) -> list[Upstream]:
    """The normalised form of mirror_upstreams. Raises RegistryFleetError, which lists everything that is wrong."""
    good, problems = read(upstreams)
    if problems:
        raise RegistryFleetError("\n".join(problems))
    return good


def read(upstreams: object) -> tuple[list[Upstream], list[str]]:
    """The upstreams that are right, and one line for each thing that is wrong."""
    if isinstance(upstreams, Missing):
        return [], [f"mirror_upstreams: has no value ({upstreams.reason})."]
    if not isinstance(upstreams, (list, tuple)):
        return [], [f"mirror_upstreams: is {shown(upstreams)}. Write a list of upstreams, each with {_listed(REQUIRED)}."]
    good: list[Upstream] = []
    problems: list[str] = []
    for position, item in enumerate(upstreams, 1):
        if isinstance(item, Missing):
            problems.append(f"mirror_upstreams: item {position}: has no value ({item.reason}).")
            continue
        if not isinstance(item, dict):
            problems.append(f"mirror_upstreams: item {position}: is {shown(item)}. Write a dictionary with {_listed(REQUIRED)}.")
            continue
        upstream, wrong = _Reader(item).read()
        title = shown(item["name"]) if isinstance(item.get("name"), str) else f"number {position}"
        problems.extend(f"mirror_upstreams: upstream {title}: {line}" for line in wrong)
        if upstream is not None:
            good.append(upstream)
    return good, problems + _clashes(upstreams)


def _clashes(upstreams: Iterable[object]) -> list[str]:
    """Names and ports that two upstreams share. Looks at what was written, so that a faulty upstream takes part too."""
    problems = []
    names = [str(item["name"]) for item in upstreams if isinstance(item, dict) and isinstance(item.get("name"), str)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"mirror_upstreams: {names.count(name)} upstreams have the name {name!r}. Give each its own.")
    owners: dict[int, tuple[str, str]] = {}
    for item in upstreams:
        if not isinstance(item, dict):
            continue
        try:
            port = _port(item.get("port"))
        except _Problem:
            continue
        name = str(item.get("name"))
        for use, offset in PORT_OFFSETS.items():
            if port + offset not in owners:
                owners[port + offset] = (name, use)
                continue
            other, other_use = owners[port + offset]
            if use == other_use == "edge":
                problems.append(f"mirror_upstreams: upstreams {other!r} and {name!r} both have port {port}. Give each its own.")
                break
            problems.append(
                f"mirror_upstreams: upstream {name!r}: port: {port}: its {use} port {port + offset} "
                f"is the {other_use} port of upstream {other!r}. Write another port."
            )
    return problems


class _Reader:
    """Reads one upstream, key by key, and goes on after a problem so that the operator sees all of them at once."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.item = item
        self.problems: list[str] = []
        self.credentials = [key for key in ("username", "password") if key in item]

    def read(self) -> tuple[Upstream | None, list[str]]:
        """The normalised upstream, or None and what is wrong with it."""
        self._unknown_keys()
        name = self._get("name", _name, "")
        scheme, server = self._get("url", _address, ("https", _NOWHERE))
        host = _host_header(server)
        known = WELL_KNOWN.get(host)
        username = self._get("username", _username, "")
        password = self._get("password", _credential, "")
        docker_hub = self._get("docker_hub", _boolean, False)
        port = self._get("port", _port, 0)
        path_prefix = self._get("path_prefix", _path_prefix, "")
        validate_certs = self._get("validate_certs", _boolean, True)
        ca_cert = self._get("ca_cert", _certificate, "")
        realm = self._get("token_realm", _realm, _realm(known[0]) if known else None)
        service = self._get("token_service", _service, known[1] if known else "")
        redirects = self._get("redirect_hosts", _redirects, _redirects(WELL_KNOWN_REDIRECTS.get(host, ())))
        auth = self._get("auth", _auth, "bearer" if realm is not None else "basic" if self.credentials else "none")
        wan_limit = self._get("wan_limit_mbit", _bytes_per_second, 0)
        canary = self._canary(docker_hub, host)
        self._credentials(auth)
        token: Token | None = None
        if auth == "bearer":
            self._need_token_endpoint(known is not None)
            if realm is not None:
                token = {"realm": realm[0], "service": service, "host": _host_header(realm[1]), "server": realm[1], "path": realm[2]}
        if ca_cert and scheme == "http":
            self.problems.append("ca_cert: is for https, and the url is http. Write https in the url, or leave ca_cert out.")
        if self.problems:
            return None, self.problems
        pair = (f"{username}:{password}").encode()
        return {
            "name": name,
            "url": f"{scheme}://{host}",
            "host": host,
            "server": server,
            "path_prefix": path_prefix,
            "username": username,
            "password": password,
            "auth": auth,
            "basic_authorization": "Basic " + base64.b64encode(pair).decode("ascii") if auth == "basic" else "",
            "token": token,
            "redirects": redirects,
            "validate_certs": validate_certs,
            "ca_cert": ca_cert,
            "docker_hub": docker_hub,
            "canary": canary,
            "wan_bytes_per_second": wan_limit,
            "ports": {
                "edge": port,
                "cache": port + PORT_OFFSETS["cache"],
                "debug": port + PORT_OFFSETS["debug"],
                "coalescer": port + PORT_OFFSETS["coalescer"],
                "front": port + PORT_OFFSETS["front"],
            },
        }, []

    def _get(self, key: str, parse: Any, default: Any) -> Any:
        """The parsed value of a key; the default where it is left out, or where it is wrong and the problem is noted."""
        if key not in self.item:
            if key in REQUIRED:
                self.problems.append(f"{key}: is missing. Write {_EXAMPLES[key]}.")
            return default
        value = self.item[key]
        try:
            if isinstance(value, Missing):
                remedy = "Define it in the vault, and give the vault's password" if key in SECRETS else "Define it"
                raise _Problem(f"has no value ({value.reason}). {remedy}.")
            return parse(value)
        except _Problem as problem:
            hidden = key in SECRETS or isinstance(value, Missing)
            self.problems.append(f"{key}: {problem}" if hidden else f"{key}: {shown(value)}: {problem}")
            return default

    def _unknown_keys(self) -> None:
        for key in self.item:
            if key not in KEYS:
                meant = near_miss(str(key), KEYS, 0.6)
                self.problems.append(f"{key}: is no key of an upstream. " + (f"Write {meant}." if meant else f"The keys are {_listed(KEYS)}."))

    def _canary(self, docker_hub: bool, host: str) -> str:
        if "canary" not in self.item and not self.item.get("docker_hub"):
            self.problems.append(
                "canary: is missing. Write a small image that is there, as the upstream names it (library/hello-world:latest): "
                "it is pulled to prove that the mirror works."
            )
        image: str = self._get("canary", _image, HUB_CANARY)
        if image.split("/", maxsplit=1)[0] == host.split(":")[0]:
            self.problems.append(f"canary: {image!r}: leave the registry's name out. Write {image.partition('/')[2]}.")
        return "library/" + image if docker_hub and "/" not in image else image

    def _credentials(self, auth: str) -> None:
        if len(self.credentials) == 1:
            there, = self.credentials
            other = "password" if there == "username" else "username"
            self.problems.append(f"{there}: is there without {other}. Write both, or neither where the upstream asks for none.")
        if auth == "basic" and not self.credentials:
            self.problems.append("auth: 'basic': needs username and password.")
        if auth == "none" and self.credentials:
            self.problems.append("auth: 'none': would never use username and password. Write basic or bearer, or leave them out.")
        for key in ("token_realm", "token_service"):
            if key in self.item and auth != "bearer":
                self.problems.append(f"{key}: is used with auth: bearer only. Write auth: bearer, or leave it out.")

    def _need_token_endpoint(self, known: bool) -> None:
        for key, sample in (("token_realm", "https://auth.example.com/token"), ("token_service", "registry.example.com")):
            if not known and key not in self.item:
                self.problems.append(
                    f"{key}: is missing, and auth is bearer. Write what the upstream's /v2/ answers in WWW-Authenticate, like {sample}."
                )


_NOWHERE: Server = {"address": "", "port": 0, "tls": True}
_EXAMPLES = {"name": "name: central", "url": "url: https://registry.example.com", "port": "port: 5000, where docker hosts find it"}


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def shown(value: object) -> str:
    """A value for a message: short, and without what stands before an @ in a URL, which may be a password."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a dictionary"
    if isinstance(value, (list, tuple)):
        return "a list"
    if not isinstance(value, str):
        return str(value)
    text = re.sub(r"^(\w+://)?.*@(?!sha256:)", r"\1…@", value, flags=re.DOTALL)
    return repr(text if len(text) <= 100 else text[:99] + "…")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Problem("must be text.")
    if _CONTROL.search(value):
        raise _Problem("has a line break or a control character in it.")
    return value


def _name(value: object) -> str:
    if not _NAME.fullmatch(_text(value)):
        raise _Problem("must begin with a-z and hold a-z, 0-9 and - only. It names ports, files and metrics.")
    return str(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Problem("write true or false.")
    return value


def _port(value: object) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or not LOWEST_EDGE_PORT <= int(text) <= HIGHEST_EDGE_PORT:
        distance = max(PORT_OFFSETS.values())
        raise _Problem(f"write a port between {LOWEST_EDGE_PORT} and {HIGHEST_EDGE_PORT} (ports up to {distance} above it belong to the upstream too).")
    return int(text)


def _bytes_per_second(value: object) -> int:
    """Of Mbit/s, in which links are sold."""
    text = str(value)
    # Up to what HAProxy's limit holds, 32 bits.
    if isinstance(value, bool) or not _DECIMAL.fullmatch(text) or not 0.1 <= float(text) <= 10000:
        raise _Problem("write Mbit/s, from 0.1 to 10000, or leave it out for no limit.")
    return int(float(text) * 1_000_000 / 8)


def _auth(value: object) -> str:
    if value not in ("none", "basic", "bearer"):
        raise _Problem("write none, basic or bearer.")
    return str(value)


def _service(value: object) -> str:
    if not _SERVICE.fullmatch(_text(value)):
        raise _Problem("write the service that the upstream's /v2/ answers in WWW-Authenticate.")
    return str(value)


def _credential(value: object) -> str:
    if value is None or value == "":
        raise _Problem("is empty. Write it, or leave username and password out where the upstream asks for none.")
    if not isinstance(value, str):
        raise _Problem("must be text. Put it in quotes.")
    if value.startswith(PLACEHOLDER):
        raise _Problem(f"is still the example's {PLACEHOLDER}. Write the real one.")
    if value.startswith("$ANSIBLE_VAULT"):
        raise _Problem("is still encrypted. Write it with !vault, and run with --vault-password-file or --ask-vault-pass.")
    return _text(value)


def _username(value: object) -> str:
    # https://www.rfc-editor.org/rfc/rfc7617#section-2
    if ":" in _credential(value):
        raise _Problem("has a colon in it, which Basic and Bearer authentication cannot carry.")
    return str(value)


def _certificate(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if value == "":
        return ""
    if "PRIVATE KEY-----" in text:
        raise _Problem("holds a private key. Write the certificate of the CA only.")
    if not text.lstrip().startswith("-----BEGIN CERTIFICATE-----"):
        raise _Problem("""write the PEM text itself, as "{{ lookup('ansible.builtin.file', 'ca.pem') }}" gives it.""")
    return text.strip() + "\n"


def _image(value: object) -> str:
    found = _IMAGE.fullmatch(_text(value))
    if not found:
        raise _Problem(f"write an image as the upstream names it, like {HUB_CANARY}.")
    return str(value) if found["version"] else f"{value}:latest"


def _path_prefix(value: object) -> str:
    text = _text(value)
    if text == "":
        return ""
    if not _PATH.fullmatch(text) or {".", ".."} & set(text.split("/")):
        raise _Problem("write a path that begins with / and does not end with one, like /artifactory/api/docker/docker-local.")
    if text.endswith("/v2"):
        raise _Problem(f"leave /v2 out: it is added. Write {text[:-len('/v2')] or repr('')}.")
    return text


def _split(value: object) -> tuple[str, Server, str]:
    """Scheme, server and path of a URL without credentials, query and fragment."""
    text = _text(value)
    if "@" in text:
        raise _Problem("holds credentials. Write them as username and password, and keep the password in the vault.")
    if "://" not in text:
        raise _Problem(f"has no scheme. Write https://{text.lstrip('/')}.")
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise _Problem(f"is no URL ({error}). Write https://host or https://host:port.") from error
    if parts.scheme not in ("http", "https"):
        raise _Problem(f"write http:// or https:// instead of {parts.scheme}://.")
    if not (_HOST_NAME.fullmatch(host) or (_IPV6.fullmatch(host) and parts.netloc.startswith("["))) or port == 0:
        raise _Problem("has no valid host and port. Write https://host or https://host:port.")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise _Problem("leave out what follows ? or #.")
    tls = parts.scheme == "https"
    return parts.scheme, {"address": host, "port": port or (443 if tls else 80), "tls": tls}, parts.path


def _address(value: object) -> tuple[str, Server]:
    scheme, server, path = _split(value)
    bare = f"{scheme}://{_host_header(server)}"
    if server["address"] in HUB_ALIASES:
        raise _Problem("is not the Docker Hub's registry. Write https://registry-1.docker.io.")
    prefix = re.sub(r"(/v2)?/*$", "", path)
    if prefix:
        raise _Problem(f"has a path. Write url: {bare} and path_prefix: {prefix}.")
    if path not in ("", "/"):
        raise _Problem(f"leave {path} out: it is added. Write url: {bare}.")
    return scheme, server


def _realm(value: object) -> tuple[str, Server, str]:
    scheme, server, path = _split(value)
    path = path or "/"
    if path != "/" and not _PATH.fullmatch(path):
        raise _Problem("has a path that is no plain path.")
    return f"{scheme}://{_host_header(server)}{path}", server, path


def _redirects(value: object) -> list[Redirect]:
    if not isinstance(value, (list, tuple)):
        raise _Problem("write a list of hosts, like [storage.example.com].")
    found: list[Redirect] = []
    for each in value:
        text = _text(each)
        scheme, server, path = _split(text if "://" in text else f"https://{text}")
        if path not in ("", "/"):
            raise _Problem(f"{shown(text)}: leave the path out. Write {_host_header(server)}.")
        found.append({"scheme": scheme, "host": _host_header(server), "server": server})
    return found


def _host_header(server: Server) -> str:
    """The value of the Host header: the port is there only when it is not the scheme's own."""
    address, port = server["address"], server["port"]
    if ":" in address:
        address = f"[{address}]"
    return address if port == (443 if server["tls"] else 80) else f"{address}:{port}"
