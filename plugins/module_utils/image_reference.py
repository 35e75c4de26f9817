# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Image references: ``[domain/]path[:tag][@digest]``.

Grammar and normalisation are those of the Go package ``github.com/distribution/reference`` (regexp.go, normalize.go),
which Docker, containerd and distribution use. Digests are those of ``github.com/opencontainers/go-digest``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

DOCKER_HUB = "docker.io"
MAX_PATH_LENGTH = 255

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_HOST_COMPONENT}(?:\.{_HOST_COMPONENT})*|\[[a-fA-F0-9:]+\])"
_DOMAIN = re.compile(rf"{_HOST}(?::[0-9]+)?")
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


class ImageReferenceError(RegistryFleetError):
    """The text is no image reference."""


@dataclass(frozen=True)
class ImageReference:
    """A parsed reference; an absent part is the empty string."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return "".join((
            f"{self.domain}/" if self.domain else "",
            self.path,
            f":{self.tag}" if self.tag else "",
            f"@{self.digest}" if self.digest else "",
        ))

    @property
    def target(self) -> str:
        """What a registry is asked for under ``/v2/<path>/manifests/``: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or "latest"


def is_digest(text: str) -> bool:
    """Whether the text is a digest of an algorithm that registries use."""
    return _DIGEST.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Whether the text is the name of a repository, as it stands in a registry's URL."""
    return len(text) <= MAX_PATH_LENGTH and _PATH.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether the text is a tag."""
    return _TAG.fullmatch(text) is not None


def parse_image_reference(text: str, default_domain: str = DOCKER_HUB) -> ImageReference:
    """Parse a reference as Docker does: ``ubuntu`` is ``docker.io/library/ubuntu``.

    With ``default_domain=""`` a name without a domain stays as it is written, for a registry that is known by its URL.
    Raises ImageReferenceError.
    """
    def refuse(why: str) -> ImageReferenceError:
        return ImageReferenceError(f"{text!r} is no image reference: {why}. Write [domain/]path[:tag][@digest], such as svc/app:1")

    if not text:
        raise refuse("it is empty")
    if _IDENTIFIER.fullmatch(text):
        raise refuse("64 hexadecimal digits are an image's ID, not its name")
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise refuse(f"{digest!r} is no digest (sha256: and 64 lower-case hexadecimal digits)")
    domain, remainder = _split_domain(name, default_domain)
    path, colon, tag = remainder.partition(":")
    if colon and not is_tag(tag):
        raise refuse(f"{tag!r} is no tag (letters, digits, '_', '.', '-'; 128 at most)")
    if path != path.lower():
        raise refuse(f"the path {path!r} must be in lower case")
    if domain == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    if domain and not _DOMAIN.fullmatch(domain):
        raise refuse(f"{domain!r} is no domain")
    if not _PATH.fullmatch(path):
        raise refuse(f"{path!r} is no path")
    if len(path) > MAX_PATH_LENGTH:
        raise refuse(f"its path has {len(path)} characters, {MAX_PATH_LENGTH} is the limit")
    return ImageReference(domain, path, tag, digest)


def parse_references(images: Iterable[str]) -> dict[str, ImageReference]:
    """The references by what was written, each once; without a domain where none was. Raises ImageReferenceError that names all that are none."""
    found: dict[str, ImageReference] = {}
    problems = []
    for name in images:
        try:
            found[name] = parse_image_reference(name, default_domain="")
        except ImageReferenceError as error:
            problems.append(str(error))
    if problems:
        raise ImageReferenceError("\n".join(problems))
    return found


def _split_domain(name: str, default_domain: str) -> tuple[str, str]:
    """Split off the domain. The first element is one when it has a dot, a colon or a capital, or is ``localhost``."""
    first, slash, rest = name.partition("/")
    if not slash or (first != "localhost" and first == first.lower() and not set(".:") & set(first)):
        return default_domain, name
    return (DOCKER_HUB if first == "index.docker.io" else first), rest
