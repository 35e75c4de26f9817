# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Pull an image as a docker host does, verify every byte, keep none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import (
    MAX_CONFIG_BYTES,
    Descriptor,
    ManifestError,
    host_platform,
    parse_platform,
    select,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import parse_image_reference
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient, RegistryError, Transfer

# Docker's max-concurrent-downloads.
LAYERS_AT_ONCE = 3


class _GivenUp(Exception):
    """Another layer failed."""


def pull_image(client: RegistryClient, reference: str, platform: str = "") -> dict[str, Any]:
    """Manifest (of an index: the platform's), config, then the layers, three at once.

    The reference's path and tag are asked for at the client's registry; its domain, if it has one, only names the image.
    Returns the figures that mirror_pull documents; raises RegistryFleetError.
    """
    image = parse_image_reference(reference, default_domain="")
    wanted = platform or host_platform()
    began = time.monotonic()
    manifest, transfer = client.manifest(image.path, image.target)
    digest, manifest_bytes = transfer.digest, transfer.bytes
    if manifest.is_index:
        try:
            chosen = select(manifest.manifests, wanted)
        except ManifestError as error:
            raise ManifestError(f"{client.url} has it, but {error}. Set platform to one of these.") from None
        manifest, transfer = client.manifest(image.path, chosen.digest)
        manifest_bytes += transfer.bytes
        if manifest.is_index:
            raise ManifestError(f"{client.url}: what the index names for {wanted} is an index again, which no engine pulls.")
    config, *layers = manifest.blobs
    document = bytearray()
    config_transfer = client.blob(image.path, config, document.extend if config.size <= MAX_CONFIG_BYTES else None)
    layers_began = time.monotonic() - began
    transfers, first_byte = _pull_layers(client, image.path, layers)
    blobs = [config_transfer, *transfers]
    seconds_to_first_byte = layers_began + first_byte if layers else layers_began - config_transfer.seconds + config_transfer.seconds_to_first_byte
    return {
        "image": reference,
        "digest": digest,
        "platform": parse_platform(bytes(document)),
        "bytes": manifest_bytes + sum(each.bytes for each in blobs),
        "bytes_cached": sum(each.bytes for each in blobs if each.cached) if any(each.cached is not None for each in blobs) else None,
        "layers": len(layers),
        "seconds": round(time.monotonic() - began, 3),
        "seconds_to_first_byte": round(seconds_to_first_byte, 3),
        "blobs": [
            {
                "digest": each.digest,
                "bytes": each.bytes,
                "cached": each.cached,
                "seconds": round(each.seconds, 3),
                "seconds_to_first_byte": round(each.seconds_to_first_byte, 3),
            }
            for each in blobs
        ],
    }


def _pull_layers(client: RegistryClient, repository: str, layers: list[Descriptor]) -> tuple[list[Transfer], float]:
    """The transfers in the layers' order, and the seconds until the first layer's first byte of all came."""
    began = time.monotonic()
    first_bytes: list[float] = []
    failed = threading.Event()

    def throw_away(_chunk: bytes) -> None:
        if not first_bytes:
            first_bytes.append(time.monotonic() - began)
        if failed.is_set():
            raise _GivenUp

    def pull(layer: Descriptor) -> Transfer:
        if failed.is_set():
            raise _GivenUp
        try:
            return client.blob(repository, layer, throw_away)
        except RegistryError:
            failed.set()
            raise

    with ThreadPoolExecutor(LAYERS_AT_ONCE) as pool:
        pulls = [pool.submit(pull, layer) for layer in layers]
        errors = [error for error in (done.exception() for done in as_completed(pulls)) if error is not None]
    for error in errors:
        if not isinstance(error, _GivenUp):
            raise error
    return [done.result() for done in pulls], min(first_bytes, default=0.0)
