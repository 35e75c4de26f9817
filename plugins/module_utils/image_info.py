# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What references name at an upstream, and what of it caches hold, asked side by side and without making a cache fetch anything."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Sequence, Tuple, TypeVar, Union

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import (
    MAX_CONFIG_BYTES,
    Descriptor,
    Manifest,
    ManifestError,
    PlatformError,
    check_platforms,
    choose,
    parse_platform,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import ImageReference, parse_references
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient, RegistryError

# Far below what an edge lets one client do at the same time.
_AT_ONCE = 16
# What an artifact type has in it, by what it is of; the first that fits.
_KINDS = {
    "sbom": re.compile(r"sbom|spdx|cyclonedx|syft", re.IGNORECASE),
    "attestation": re.compile(r"in-toto|dsse|attest|provenance", re.IGNORECASE),
    "signature": re.compile(r"signature|signing|\.sig\b|sigstore", re.IGNORECASE),
}

# Whether manifests, by repository and digest, and blobs, by "" and digest, are there.
_Held = Dict[Tuple[str, str], Union[bool, RegistryFleetError]]
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class _Platform:
    """One platform's image; ``manifest`` is None where nobody asked for it."""

    name: str
    descriptor: Descriptor
    manifest: Manifest | None = None

    @property
    def parts(self) -> tuple[Descriptor, ...]:
        return self.manifest.blobs if self.manifest else ()


@dataclass
class _Image:
    """What a reference names: an index of platforms, or the manifest of one."""

    descriptor: Descriptor
    platforms: list[_Platform]
    platforms_missing: list[str] = field(default_factory=list)
    attestations: list[Descriptor] = field(default_factory=list)

    @property
    def wanted(self) -> list[_Platform]:
        return [each for each in self.platforms if each.manifest]

    @property
    def manifests(self) -> list[Descriptor]:
        return list({each.digest: each for each in (self.descriptor, *(one.descriptor for one in self.wanted))}.values())

    @property
    def parts(self) -> dict[str, Descriptor]:
        """Manifests and blobs of the platforms that are wanted, each once."""
        return {each.digest: each for each in (*self.manifests, *(part for one in self.wanted for part in one.parts))}


class _Cache:
    """A registry that is asked what it holds."""

    def __init__(self, name: str, may_fill: bool, client: RegistryClient) -> None:
        self.name, self.may_fill, self.client = name, may_fill, client

    def unaskable(self) -> RegistryFleetError | None:
        """Why it can't be asked without harm; None when it can."""
        if self.may_fill or self.client.understands_only_if_cached():
            return None
        return RegistryFleetError(
            f"{self.client.url} does not say that it understands only-if-cached, so to ask it could make it fetch. If it is a mirror host of an older"
            " version, run site.yml; if it stores what is pushed, or may fetch all that is asked for, set may_fill: true."
        )

    def tag(self, repository: str, tag: str) -> str:
        """The digest that a tag names here; empty when it names none."""
        if not self.may_fill:
            return self.client.stored_tag(repository, tag)
        found = self.client.head_manifest(repository, tag)
        return found.digest if found else ""

    def has_manifest(self, repository: str, item: Descriptor) -> bool:
        found = self.client.head_manifest(repository, item.digest)
        return found is not None and found.size == item.size

    def has_blob(self, repository: str, item: Descriptor) -> bool:
        return self.client.head_blob(repository, item.digest, item.size)


def image_info(
    images: Sequence[str],
    upstream: dict[str, Any] | None = None,
    caches: Sequence[dict[str, Any]] = (),
    platforms: Sequence[str] = (),
    details: bool = False,
    artifacts: bool = True,
    **waiting: Any,
) -> list[dict[str, Any]]:
    """What the module image_info documents of each image, in the order given.

    ``upstream`` and each of ``caches`` are arguments of RegistryClient, with ``name`` and ``may_fill`` beside them for a cache; ``waiting``
    are its time-outs and retries. Raises RegistryFleetError for what is wrong with the arguments; what a registry does is told.
    """
    references = parse_references(images)
    wanted = check_platforms(platforms)
    names = [str(cache["name"]) for cache in caches]
    for name in names:
        if names.count(name) > 1:
            raise RegistryFleetError(f"caches: {name} is there {names.count(name)} times. Give each cache a name of its own.")
    with ExitStack() as stack:
        source = stack.enter_context(RegistryClient(**upstream, **waiting)) if upstream else None
        asked = []
        for cache in caches:
            given = {key: value for key, value in cache.items() if key not in ("name", "may_fill")}
            may_fill = bool(cache.get("may_fill"))
            client = stack.enter_context(RegistryClient(**given, **waiting, only_if_cached=not may_fill))
            asked.append(_Cache(cache["name"], may_fill, client))
        pool = stack.enter_context(ThreadPoolExecutor(_AT_ONCE))
        return _Inquiry(pool, [references[image] for image in images], wanted, source, asked).report(images, details, artifacts)


class _Inquiry:
    """Step by step; within a step all at once. What fails is kept in the answer's place."""

    def __init__(
        self, pool: ThreadPoolExecutor, references: list[ImageReference], platforms: Sequence[str], source: RegistryClient | None, caches: list[_Cache]
    ) -> None:
        self._pool, self._references, self._platforms, self._source, self._caches = pool, references, platforms, source, caches
        self._out_of_reach: RegistryError | None = None

    def report(self, images: Sequence[str], details: bool, artifacts: bool) -> list[dict[str, Any]]:
        source = self._source
        unaskable = self._each(self._caches, lambda cache: cache.unaskable())
        resolved = self._each(self._references, self._resolved)
        attached = self._each(
            zip(self._references, resolved),
            lambda pair: _artifacts(source, pair[0].path, pair[1]) if source and artifacts and isinstance(pair[1], _Image) else None,
        )
        looked_at = [(cache, index) for index in range(len(images)) for cache in self._caches]
        reasons = dict(zip(self._caches, unaskable))
        found = self._each(looked_at, lambda pair: reasons[pair[0]] or self._named(*pair, resolved[pair[1]]))
        held = self._held(looked_at, found)
        reports = []
        for index, image in enumerate(images):
            at_upstream = resolved[index]
            reports.append({
                "image": image,
                **_report_image(at_upstream, details),
                **_report_artifacts(attached[index], artifacts and source is not None),
                "caches": [
                    _report_cache(cache.name, named, at_upstream, held.get(cache, {}), self._references[index], details)
                    for (cache, number), named in zip(looked_at, found) if number == index
                ],
            })
        return reports

    def _each(self, items: Iterable[T], work: Callable[[T], R]) -> list[R | RegistryFleetError]:
        def kept(item: T) -> R | RegistryFleetError:
            try:
                return work(item)
            except RegistryFleetError as error:
                return error

        return list(self._pool.map(kept, items))

    def _resolved(self, reference: ImageReference) -> _Image | None:
        if self._out_of_reach is not None:
            raise self._out_of_reach
        try:
            return _load(self._source, reference.path, reference.target, self._platforms) if self._source else None
        except RegistryError as error:
            # Nobody waits for each of a hundred images until an upstream that is gone has not answered.
            if error.status is None:
                self._out_of_reach = error
            raise

    def _named(self, cache: _Cache, index: int, at_upstream: _Image | RegistryFleetError | None) -> tuple[str, _Image | None]:
        """The digest that the cache has for a reference, and the image to look for there: the upstream's, or while that is not known its own."""
        reference = self._references[index]
        digest = reference.digest or cache.tag(reference.path, reference.target)
        if isinstance(at_upstream, _Image):
            return digest, at_upstream
        if not digest or (reference.digest and not cache.client.head_manifest(reference.path, digest)):
            return "", None
        try:
            return digest, _load(cache.client, reference.path, digest, self._platforms)
        except RegistryError as error:
            if error.status not in (404, 504):
                raise
            return digest, None

    def _held(self, looked_at: list[tuple[_Cache, int]], found: Sequence[Any]) -> dict[_Cache, _Held]:
        """By cache: which manifests of which repository, and which blobs, are there. Each is asked for once, however many images share it."""
        wanted: dict[tuple[_Cache, str, str], tuple[str, Descriptor]] = {}
        for (cache, index), named in zip(looked_at, found):
            image = named[1] if isinstance(named, tuple) else None
            if image is None:
                continue
            path, manifests = self._references[index].path, {each.digest for each in image.manifests}
            for item in image.parts.values():
                wanted[cache, path if item.digest in manifests else "", item.digest] = (path, item)

        def ask(item: tuple[tuple[_Cache, str, str], tuple[str, Descriptor]]) -> bool:
            (cache, repository, _digest), (path, part) = item
            return cache.has_manifest(path, part) if repository else cache.has_blob(path, part)

        answers: dict[_Cache, _Held] = {}
        for (cache, repository, digest), there in zip(wanted, self._each(wanted.items(), ask)):
            answers.setdefault(cache, {})[repository, digest] = there
        return answers


def _load(client: RegistryClient, repository: str, target: str, platforms: Sequence[str]) -> _Image:
    """The image with the manifests of the platforms that are wanted and offered. Raises RegistryFleetError if none is."""
    manifest, transfer = client.manifest(repository, target)
    top = Descriptor(transfer.digest, transfer.bytes, manifest.media_type)
    if not manifest.is_index:
        return _Image(top, [_Platform(_platform(client, repository, manifest), top, manifest)])
    offered = [_Platform(item.platform, item) for item in manifest.manifests if not _is_attestation(item)]
    try:
        items, missing = choose([each.descriptor for each in offered], platforms)
    except PlatformError as error:
        raise PlatformError(f"{client.url} has it, but {error}", error.platforms_missing) from None
    chosen = {item.digest for item in items}
    for each in offered:
        if each.descriptor.digest in chosen:
            each.manifest = client.manifest(repository, each.descriptor.digest)[0]
            if each.manifest.is_index:
                raise ManifestError(f"{client.url}: what the index names for {each.name} is an index again, which no engine pulls.")
    return _Image(top, offered, missing, [item for item in manifest.manifests if _is_attestation(item)])


def _is_attestation(item: Descriptor) -> bool:
    return bool(item.about) or item.platform == "unknown/unknown"


def _platform(client: RegistryClient, repository: str, manifest: Manifest) -> str:
    """The platform that an image's config says; empty when it says none, or is no config."""
    config, document = manifest.config, bytearray()
    if config is None or config.size > MAX_CONFIG_BYTES:
        return ""
    try:
        client.blob(repository, config, document.extend)
    except RegistryFleetError:
        return ""
    return parse_platform(bytes(document))


def _artifacts(client: RegistryClient, repository: str, image: _Image) -> list[dict[str, Any]]:
    """What is attached to an image, by whichever way."""
    digest = image.descriptor.digest
    found = [_artifact(item, "index", "attestation", item.artifact_type or item.media_type) for item in image.attestations]
    for item in client.referrers(repository, digest):
        found.append(_artifact(item, "referrers", kind_of(item.artifact_type), item.artifact_type))
    for kind, item in client.cosign(repository, digest).items():
        manifest, _transfer = client.manifest(repository, item.digest)
        found.append(_artifact(item, "cosign", kind, manifest.layers[0].media_type if manifest.layers else manifest.media_type))
    return found


def _artifact(item: Descriptor, found_by: str, kind: str, artifact_type: str) -> dict[str, Any]:
    return {"kind": kind, "artifact_type": artifact_type, "digest": item.digest, "size": item.size, "found_by": found_by}


def kind_of(artifact_type: str) -> str:
    """What an artifact type is the type of: ``signature``, ``attestation``, ``sbom`` or ``other``."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(artifact_type)), "other")


def _report_image(image: _Image | RegistryFleetError | None, details: bool) -> dict[str, Any]:
    if not isinstance(image, _Image):
        return {
            "digest": None, "media_type": None, "size": None, "platforms": [],
            "platforms_missing": image.platforms_missing if isinstance(image, PlatformError) else [],
            "unknown": "no upstream was given" if image is None else str(image),
        }
    platforms = []
    for each in image.platforms:
        report: dict[str, Any] = {
            "platform": each.name,
            "digest": each.descriptor.digest,
            "size": each.descriptor.size + sum(part.size for part in each.parts) if each.manifest else None,
        }
        if details:
            layers = each.manifest.layers if each.manifest else None
            report["layers"] = None if layers is None else [{"digest": layer.digest, "size": layer.size} for layer in layers]
        platforms.append(report)
    return {
        "digest": image.descriptor.digest,
        "media_type": image.descriptor.media_type,
        "size": sum(part.size for part in image.parts.values()),
        "platforms": platforms,
        "platforms_missing": image.platforms_missing,
        "unknown": "",
    }


def _report_artifacts(artifacts: list[dict[str, Any]] | RegistryFleetError | None, asked: bool) -> dict[str, Any]:
    if isinstance(artifacts, RegistryFleetError):
        return {"artifacts": None, "artifacts_unknown": str(artifacts)}
    why = "" if artifacts is not None else "the image is not known" if asked else "nobody was asked"
    return {"artifacts": artifacts, "artifacts_unknown": why}


def _report_cache(
    name: str,
    named: tuple[str, _Image | None] | RegistryFleetError,
    at_upstream: _Image | RegistryFleetError | None,
    held: _Held,
    reference: ImageReference,
    details: bool,
) -> dict[str, Any]:
    """One line of the answer: in_cache, and why or how far."""
    def report(in_cache: str, **more: Any) -> dict[str, Any]:
        empty: dict[str, Any] = {"digest": None, "drift": None, "platforms": [], "bytes": None, "bytes_missing": None, "unknown": ""}
        if details:
            empty["missing"] = []
        return {"name": name, "in_cache": in_cache, **empty, **more}

    if isinstance(named, RegistryFleetError):
        return report("unknown", unknown=str(named))
    digest, image = named
    drift = bool(digest) and digest != at_upstream.descriptor.digest if isinstance(at_upstream, _Image) else None
    if image is None:
        return report("partial" if digest else "absent", digest=digest or None, drift=drift)
    manifests = {each.digest for each in image.manifests}

    def answer(item: Descriptor) -> bool | RegistryFleetError:
        return held[reference.path if item.digest in manifests else "", item.digest]

    errors = [there for there in map(answer, image.parts.values()) if isinstance(there, RegistryFleetError)]
    if errors:
        return report("unknown", digest=digest or None, drift=drift, unknown=str(errors[0]))
    missing = [part for part in image.parts.values() if not answer(part)]
    lacking = {part.digest for part in missing}
    whole = [each.name for each in image.wanted if not lacking & {each.descriptor.digest, *(part.digest for part in each.parts)}]
    size = sum(part.size for part in image.parts.values())
    bytes_missing = sum(part.size for part in missing)
    return report(
        "complete" if not missing else "absent" if manifests <= lacking else "partial",
        digest=(digest if not reference.digest or digest not in lacking else "") or None,
        drift=drift,
        platforms=whole,
        bytes=size - bytes_missing,
        bytes_missing=bytes_missing,
        **({"missing": [{"digest": part.digest, "size": part.size} for part in missing]} if details else {}),
    )
