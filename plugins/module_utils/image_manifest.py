# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Manifests: Docker image manifest version 2 schema 2 and its list, OCI image manifest and image index.

Formats: github.com/opencontainers/image-spec (manifest.md, image-index.md, descriptor.md) and
github.com/distribution/distribution docs/content/spec/manifest-v2-2.md.
"""

from __future__ import annotations

import json
import platform as host
import re
from dataclasses import dataclass
from typing import Any, Iterable, Sequence

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest

MEDIA_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)

# What distribution accepts (maxManifestBodySize in its registry/handlers/manifests.go); a larger body is no manifest.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
# The config of an image is smaller by far; that of an artifact may be anything.
MAX_CONFIG_BYTES = 1024 * 1024

# Whoever wants all platforms writes this.
ALL_PLATFORMS = "all"
_PLATFORM = re.compile(r"[a-z0-9]+(/[a-z0-9._-]+){1,2}")

# The kernel's machine names, as Go and so every image names them.
_ARCHITECTURES = {
    "x86_64": "amd64", "aarch64": "arm64", "armv8l": "arm64", "armv7l": "arm/v7", "armv6l": "arm/v6",
    "i386": "386", "i686": "386", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64", "loongarch64": "loong64",
}


class ManifestError(RegistryFleetError):
    """The bytes are no manifest, or none that an image is pulled by."""


class PlatformError(ManifestError):
    """An image is made for none of the platforms that are wanted, which are its ``platforms_missing``."""

    def __init__(self, message: str, platforms_missing: list[str]) -> None:
        super().__init__(message)
        self.platforms_missing = platforms_missing


@dataclass(frozen=True)
class Descriptor:
    """What a manifest says of a blob or of another manifest; ``size`` in bytes, ``platform`` like ``linux/arm/v7`` or empty.

    ``artifact_type`` is what a referrer is, like ``application/vnd.cyclonedx+json``. ``about`` is the digest of the image that a
    manifest in an index tells of, as BuildKit's attestations do
    (github.com/moby/buildkit/blob/master/docs/attestations/attestation-storage.md); both are empty otherwise.
    """

    digest: str
    size: int
    media_type: str
    platform: str = ""
    artifact_type: str = ""
    about: str = ""


@dataclass(frozen=True)
class Manifest:
    """An image manifest (``config`` and ``layers``) or an index (``manifests``)."""

    media_type: str
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The config and the layers, each digest once, in the manifest's order."""
        wanted = (*(() if self.config is None else (self.config,)), *self.layers)
        return tuple({blob.digest: blob for blob in wanted}.values())

    @property
    def is_index(self) -> bool:
        return self.config is None


def host_platform() -> str:
    """The platform whose images this host runs, such as ``linux/amd64``."""
    machine = host.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


def parse_manifest(body: bytes, content_type: str = "") -> Manifest:
    """Read a manifest or index; ``content_type`` is what the registry called it. Raises ManifestError."""
    document = _json_object(body)
    media_type = document.get("mediaType") or content_type.partition(";")[0].strip()
    if document.get("schemaVersion") != 2 or not isinstance(media_type, str):
        raise ManifestError(f"it has schemaVersion {document.get('schemaVersion')!r}; only 2 is supported")
    # An OCI manifest may leave its mediaType out; its contents tell what it is.
    if isinstance(document.get("manifests"), list):
        return Manifest(media_type or MEDIA_TYPES[0], manifests=_descriptors(document["manifests"]))
    if isinstance(document.get("layers"), list):
        return Manifest(media_type or MEDIA_TYPES[1], _descriptor(document.get("config")), _descriptors(document["layers"]))
    raise ManifestError("it has neither layers nor manifests")


def parse_platform(config: bytes) -> str:
    """The platform that an image's config says it is for; empty when it says none. An artifact's config may be anything."""
    try:
        return format_platform(_json_object(config))
    except ManifestError:
        return ""


def check_platforms(platforms: Iterable[str]) -> list[str]:
    """The platforms that an operator wants, each once; this host's where none is given. Raises RegistryFleetError."""
    wanted = list(dict.fromkeys(platforms)) or [host_platform()]
    for platform in wanted:
        if platform != ALL_PLATFORMS and not _PLATFORM.fullmatch(platform):
            raise RegistryFleetError(f"platforms: {platform!r} is no platform. Write os/architecture[/variant], like linux/amd64, or {ALL_PLATFORMS}.")
    return wanted


def choose(manifests: Sequence[Descriptor], platforms: Sequence[str]) -> tuple[list[Descriptor], list[str]]:
    """An index's manifests for the platforms, each once, and the platforms that it has none for. Raises PlatformError if it has none at all."""
    chosen: dict[str, Descriptor] = {item.digest: item for item in manifests if ALL_PLATFORMS in platforms}
    missing: dict[str, ManifestError] = {}
    for platform in platforms if not chosen else ():
        try:
            item = select(manifests, platform)
            chosen[item.digest] = item
        except ManifestError as error:
            missing[platform] = error
    if not chosen:
        raise PlatformError(f"{'; '.join(map(str, missing.values()))}. Set platforms to one of these, or to {ALL_PLATFORMS}.", list(missing))
    return list(chosen.values()), list(missing)


def select(manifests: Sequence[Descriptor], platform: str) -> Descriptor:
    """The manifest for a platform; a platform without a variant takes any. Raises ManifestError."""
    exact = [item for item in manifests if item.platform == platform]
    fitting = exact or [item for item in manifests if item.platform.startswith(f"{platform}/")]
    if fitting:
        return fitting[0]
    offered = sorted({item.platform for item in manifests} - {"", "unknown/unknown"})
    raise ManifestError(f"the image is not made for {platform}, but for {', '.join(offered) or 'no platform at all'}")


def format_platform(document: Any) -> str:
    """``{"os": "linux", "architecture": "arm", "variant": "v7"}`` as ``linux/arm/v7``; empty when it is no platform."""
    if not isinstance(document, dict):
        return ""
    parts = [document.get(key) for key in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) and part for part in parts[:2]):
        return ""
    # arm64's only variant is v8, and is as often left out as written.
    if parts[1] == "arm64" and parts[2] == "v8":
        parts.pop()
    return "/".join(part for part in parts if isinstance(part, str) and part)


def _json_object(body: bytes) -> dict[str, Any]:
    # A hostile document can nest deeper than the parser's stack, or hold a number longer than Python converts.
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ManifestError("it is no JSON object")
    return document


def _descriptors(items: list[Any]) -> tuple[Descriptor, ...]:
    return tuple(_descriptor(item) for item in items)


def _descriptor(item: Any) -> Descriptor:
    if not isinstance(item, dict):
        raise ManifestError("a descriptor in it is no JSON object")
    digest, size = item.get("digest"), item.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ManifestError(f"it names a digest that is none: {str(digest)[:200]!r}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ManifestError(f"it gives {digest} the size {str(size)[:200]!r}")
    annotations = item.get("annotations")
    about = annotations.get("vnd.docker.reference.digest") if isinstance(annotations, dict) else None
    return Descriptor(
        digest,
        size,
        str(item.get("mediaType", "")),
        format_platform(item.get("platform")),
        str(item.get("artifactType") or ""),
        about if isinstance(about, str) and is_digest(about) else "",
    )
