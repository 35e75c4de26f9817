# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""skopeo, which copies between two registries, and cosign, which verifies and signs.

No secret is an argument or on a disk: logins are in files in memory that only children inherit, so that nothing stays of a run that is killed;
a signing key's password is in the environment of the one program that needs it. Options: github.com/containers/skopeo/blob/main/docs/skopeo-copy.1.md,
github.com/sigstore/cosign/tree/main/doc (version 2).
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Mapping, Sequence
from urllib.parse import urlsplit

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion import Key
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient

# What else the caller's environment would make them do.
_FOREIGN = re.compile(r"COSIGN_|SIGSTORE_|REGISTRY_AUTH_FILE$|DOCKER_CONFIG$|SSL_CERT_FILE$")
_REMEDIES = {
    r"unauthorized|authentication required|\b401\b": "Correct username and password of the {role}; they must have the right to {right} there.",
    r"denied|forbidden|\b403\b": "The {role} does not let this user or host {right}: check its permissions and allowed networks.",
    r"manifest unknown|blob unknown|name unknown": "It is not whole at the source: push it there again.",
    r"connection refused|no such host|no route|i/o timeout": "Check that both registries are up and that this host reaches them.",
    r"x509": "Pass the authority that signed the registry's certificate as ca_certificate.",
    r"no space left": "Make room there.",
}


class ToolError(RegistryFleetError):
    """A program failed; what it said, and what to do."""


class UnsignedError(RegistryFleetError):
    """No signature by the given key; ``why`` says whether there is none at all."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class Endpoint:
    """A registry: the arguments of RegistryClient. It is reached by tools that take no path in its URL."""

    role: str
    url: str
    username: str = ""
    password: str = field(default="", repr=False)
    ca_certificate: str = ""
    validate_certs: bool = True

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def is_plain(self) -> bool:
        return urlsplit(self.url).scheme == "http"

    def client(self, **waiting: Any) -> RegistryClient:
        """Raises RegistryFleetError for a URL that is none, or one that only this client could use."""
        client = RegistryClient(
            self.url, username=self.username, password=self.password, ca_certificate=self.ca_certificate, validate_certs=self.validate_certs, **waiting
        )
        if urlsplit(self.url).path.strip("/"):
            why = "has a path, below which neither container engines nor skopeo and cosign find a registry"
            raise RegistryFleetError(f"{self.role}.url: {self.url} {why}. Write https://host[:port], and put the path before each image's.")
        return client


@dataclass(frozen=True)
class SigningKey:
    """A private key of cosign's: the path of its file, or its text."""

    path: str = ""
    text: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


class Tools:
    """Both programs, for one pair of registries; usable from several threads. Raises ToolError."""

    def __init__(self, source: Endpoint, target: Endpoint, *, retries: int = 3, timeout: float = 3600) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="mirrorfleet-"))
        self._ends = {"src": source, "dest": target}
        self._logins: dict[str, int] = {}
        self._retries, self._timeout = retries, timeout
        self._environment = {key: value for key, value in os.environ.items() if not _FOREIGN.match(key)}
        try:
            for side, end in self._ends.items():
                self._configure(side, end)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Tools:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self._logins.values():
            os.close(descriptor)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _configure(self, side: str, end: Endpoint) -> None:
        directory = self._directory / side
        directory.mkdir()
        # What is not given is not looked for elsewhere: a login of somebody's on this host is not the one that was meant.
        login = base64.b64encode(f"{end.username}:{end.password}".encode()).decode()
        self._logins[side] = os.memfd_create("login")
        os.write(self._logins[side], json.dumps({"auths": {end.host: {"auth": login}} if end.username else {}}).encode())
        (directory / "config.json").symlink_to(f"/dev/fd/{self._logins[side]}")
        if end.ca_certificate:
            (directory / "certs").mkdir()
            (directory / "certs" / "ca.crt").write_text(read_text_or_file(end.ca_certificate, f"{end.role}.ca_certificate"), encoding="utf-8")

    def copy(self, path: str, digest: str, to_path: str) -> None:
        """Bring a manifest and all that it names, for all platforms, to the target under its digest, without a tag."""
        options = ["copy", "--quiet", "--all", "--preserve-digests", f"--retry-times={self._retries}"]
        for side, end in self._ends.items():
            options.append(f"--{side}-authfile={self._directory / side / 'config.json'}")
            if end.ca_certificate:
                options.append(f"--{side}-cert-dir={self._directory / side / 'certs'}")
            if end.is_plain or not end.validate_certs:
                options.append(f"--{side}-tls-verify=false")
        places = [f"docker://{end.host}/{each}@{digest}" for end, each in zip(self._ends.values(), (path, to_path))]
        done = self._run("skopeo", [*options, *places])
        if done.returncode:
            raise self._error("skopeo", f"{path}@{digest} could not be copied", done.stderr)

    def verify(self, side: str, path: str, digest: str, key: Key) -> None:
        """Raises UnsignedError unless a manifest at ``src`` or ``dest`` is signed by this key. Nothing but the registry is asked."""
        options = ["verify", "--key=env://MIRRORFLEET_KEY", "--private-infrastructure", "--output=text"]
        done = self._cosign(side, options, path, digest, {"MIRRORFLEET_KEY": key.pem})
        if "no signatures found" in done.stderr:
            raise UnsignedError("it is not signed")
        if "no matching signatures" in done.stderr:
            raise UnsignedError(f"it is signed, but not by {key.label}")
        if done.returncode:
            raise self._error("cosign", f"the signature of {path}@{digest} could not be verified", done.stderr)

    def public_key(self, key: SigningKey) -> str:
        """The public half, as PEM text."""
        done = self._run("cosign", ["public-key", _key_option(key)], _key_environment(key))
        if done.returncode:
            raise self._error("cosign", f"the signing key{' ' + key.path if key.path else ''} can't be used", done.stderr, "Check sign.key and sign.password.")
        return done.stdout

    def sign(self, path: str, digest: str, key: SigningKey, annotations: Mapping[str, str]) -> None:
        """Add a signature to a manifest at the target; the annotations are signed with it."""
        # cosign reads a line of comma-separated values there, and takes no second = in one of them.
        quoted = (f"{name}={value.replace('=', ':')}".replace('"', '""') for name, value in annotations.items())
        options = ["sign", _key_option(key), "--tlog-upload=false", "--yes", *(f'--annotations="{each}"' for each in quoted)]
        done = self._cosign("dest", options, path, digest, _key_environment(key))
        if done.returncode:
            raise self._error("cosign", f"{path}@{digest} could not be signed", done.stderr)

    def _cosign(self, side: str, options: list[str], path: str, digest: str, key: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        end, directory = self._ends[side], self._directory / side
        environment = {"DOCKER_CONFIG": str(directory), **key}
        if end.ca_certificate:
            # Trusted beside the directory of the system's authorities; cosign's own option would replace these.
            environment["SSL_CERT_FILE"] = str(directory / "certs" / "ca.crt")
        if end.is_plain:
            options.append("--allow-http-registry")
        if not end.validate_certs:
            options.append("--allow-insecure-registry")
        return self._run("cosign", [*options, f"--timeout={self._timeout:.0f}s", f"{end.host}/{path}@{digest}"], environment)

    def _run(self, program: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [program, *arguments], env={**self._environment, **(environment or {})}, cwd=self._directory, stdin=subprocess.DEVNULL,
                pass_fds=tuple(self._logins.values()), capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=self._timeout,
            )
        except subprocess.TimeoutExpired:
            remedy = "Look at the way to both registries, or raise copy_timeout."
            raise ToolError(f"{program} {arguments[0]} was not done after {self._timeout:g} seconds. {remedy}") from None
        except OSError as error:
            raise ToolError(f"{program} can't be run: {error.strerror}. Install it on this host: apt-get install {program}") from None

    def _error(self, program: str, what: str, stderr: str, remedy: str = "") -> ToolError:
        said = _said(stderr)
        for end in self._ends.values():
            for secret in (end.password, base64.b64encode(f"{end.username}:{end.password}".encode()).decode()):
                said = said.replace(secret, "***") if end.password else said
        for pattern, text in _REMEDIES.items():
            if not remedy and re.search(pattern, said, re.IGNORECASE):
                at_source = f"{self._ends['src'].host}/" in said and f"{self._ends['dest'].host}/" not in said
                remedy = text.format(role="source" if at_source else "target", right="pull" if at_source else "push")
        return ToolError(f"{what}: {program} says {said!r}. {remedy}".rstrip())


def need(*programs: str) -> None:
    """Raises ToolError unless all of them are installed."""
    lacking = [program for program in programs if shutil.which(program) is None]
    if lacking:
        hint = " (Debian has cosign from 13 on)" if "cosign" in lacking else ""
        raise ToolError(f"{' and '.join(lacking)} not found on this host. Install: apt-get install {' '.join(lacking)}{hint}")


def _key_option(key: SigningKey) -> str:
    return f"--key={key.path or 'env://MIRRORFLEET_KEY'}"


def _key_environment(key: SigningKey) -> dict[str, str]:
    # Without a password in the environment cosign would ask for one.
    return {"COSIGN_PASSWORD": key.password, **({"MIRRORFLEET_KEY": key.text} if key.text else {})}


def _said(stderr: str) -> str:
    """The last thing of weight that one of them printed, in a line: ``level=fatal msg="…"`` of skopeo's, ``Error: …`` of cosign's."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in reversed(lines):
        found = re.search(r'level=(?:fatal|error) msg=("(?:[^"\\]|\\.)*")', line)
        if found:
            try:
                return str(json.loads(found[1]))
            except ValueError:
                return found[1][1:-1]
    errors = [line[len("Error: "):] for line in lines if line.startswith("Error: ")]
    return " ".join((errors or lines or ["nothing"])[-1].split())[:1000]


def read_text_or_file(value: str, option: str) -> str:
    """PEM text as it is, or that of the file whose path is given. Raises RegistryFleetError."""
    if "-----BEGIN" in value:
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise RegistryFleetError(f"{option}: {value} can't be read ({why}). Give the path of a file on this host, or its text.") from None
