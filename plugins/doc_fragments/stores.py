# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The options of modules that change the stores of a mirror host; their types are in module_utils/options.py."""

from __future__ import annotations


class ModuleDocFragment:
    """What Ansible loads."""

    DOCUMENTATION = r"""
options:
  caches:
    description:
      - The caches. The default is all that the role pull_through_cache has made on this host.
      - Works with the C(filesystem) driver of distribution 2.8 and 3.x, without its C(storage.cache.blobdescriptor), which goes on
        promising what is gone.
    type: list
    elements: dict
    suboptions:
      name:
        description: The cache's name, that of its upstream.
        type: str
        required: true
      path:
        description: The C(rootdirectory) of its distribution.
        type: path
        required: true
  lock_timeout:
    description:
      - How long to wait for others who change the same store, such as the guard, in seconds.
    type: int
    default: 300
notes:
  - The stores belong to a system user, so the module needs C(become). In a store it acts with the rights of its owner only.
"""
