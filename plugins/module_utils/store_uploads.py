# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What fills have left that were cut off: distribution 2.8 never removes it in proxy mode."""

from __future__ import annotations

import os
import time

from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store, Upload
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_removal import is_open, remove_upload


def purge_uploads(store: Store, age: float, check_mode: bool = False) -> list[Upload]:
    """Remove uploads to which nothing has come for ``age`` seconds, and which nobody has open; those that went, or would.

    The caller holds the store's lock, and is its owner. Raises StorageError when something can't be removed.
    """
    now, gone = time.time(), []
    for repository in store.repositories():
        for upload in store.uploads(repository):
            directory = store.upload_path(upload)
            if now - max(upload.written, _changed(directory)) < age or is_open(f"{directory}/data"):
                continue
            gone.append(upload)
            if not check_mode:
                remove_upload(store, upload)
    return gone


def _changed(directory: str) -> float:
    try:
        return os.lstat(directory).st_mtime
    except OSError:
        return time.time()
