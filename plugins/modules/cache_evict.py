#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: cache_evict
short_description: Remove images from a mirror host's caches while they serve
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
extends_documentation_fragment:
  - mirrorfleet.registry.stores
description:
  - Removes images from the stores of a mirror host's caches, by name, by their last use, or least recently used first until there is room.
  - The caches go on serving. Whoever is sent a blob gets it whole, and what was evicted is fetched again when it is asked for.
  - A blob that several images need, of whatever repositories, goes with the last of them. What a fill has just brought, what is being sent
    and what is pinned stays; RV(caches[].kept) says what stayed, and why.
  - A run that was killed has harmed nothing, and is finished by the next one with the same options.
options:
  images:
    description:
      - Only these images go, like V(svc/app:1), V(svc/app@sha256:…) or a digest alone, or shell patterns of names, like V(svc/*:old-*).
        C(*) matches slashes, colons and C(@) too. An image without a tag has the name V(repository@digest).
      - The default is all images, and blobs that no image needs.
    type: list
    elements: str
    default: []
  unused_for:
    description:
      - Only images go that were not used for so long, like V(30d); V(s), V(m), V(h), V(d) and V(w) are units.
    type: str
  max_bytes:
    description:
      - Images go until each store has no more bytes than this, like V(500G).
    type: bytes
  free_bytes:
    description:
      - Images go until the stores' file system has so many bytes free for users who are not root. Caches on one file system are one heap.
    type: bytes
  free_percent:
    description:
      - The same in percent of what C(df) gives users. Where both are given, both must be met.
    type: float
  pinned:
    description:
      - These images stay, whatever else says that they go. In the form of O(images).
    type: list
    elements: str
    default: []
  grace:
    description:
      - What was used or has come in this time stays, unless O(images) means it. What came in the last 10 seconds always stays.
    type: str
    default: 1h
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in check mode), when in diff mode.
    support: full
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
    details:
      - Unless somebody pulls in between.
seealso:
  - module: mirrorfleet.registry.cache_info
  - module: mirrorfleet.registry.cache_scrub
"""

EXAMPLES = r"""
- name: One image is gone
  mirrorfleet.registry.cache_evict:
    images: [svc/app:1]
  become: true

- name: A fifth of the disk is free, without what the platform needs
  mirrorfleet.registry.cache_evict:
    free_percent: 20
    pinned: [platform/*]
  become: true

- name: What no host has pulled for a month is gone from one cache
  mirrorfleet.registry.cache_evict:
    caches:
      - name: central
        path: /var/lib/mirrorfleet/cache/central
    unused_for: 30d
  become: true
  register: evicted

- name: The names of what is gone are shown
  ansible.builtin.debug:
    msg: "{{ evicted | community.general.json_query('caches[].evicted[].image') }}"
"""

RETURN = r"""
absent:
  description: Those of O(images) that are whole names, and of which none of the caches has anything; there is a warning, too.
  returned: success
  type: list
  elements: str
  sample: []
caches:
  description: The caches, in the order given or by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The cache's name.
      type: str
      sample: central
    path:
      description: Its directory.
      type: str
      sample: /var/lib/mirrorfleet/cache/central
    evicted:
      description: The first 100 images that went, the least recently used first.
      type: list
      elements: dict
      contains:
        image:
          description: Its name, the digest alone for a blob that no image needed.
          type: str
          sample: svc/app:1
        digest:
          description: Its digest.
          type: str
          sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
        bytes_freed:
          description: The bytes of its blobs and manifests that no other image needs.
          type: int
          sample: 63045632
        last_used:
          description: When it was used last, in UTC.
          type: str
          sample: "2026-10-02T04:11:09Z"
        last_used_source:
          description: >-
            From where that is known. V(pull) is exact: distribution writes a tag's link at each pull by the tag, while the upstream answers.
            V(atime) is when the file system noted that the link was read, which most do to a day only. V(mtime) is when the image came; of a use
            after that nothing is known, as on a file system that is mounted with C(noatime).
          type: str
          sample: pull
    kept:
      description: The first 20 images that would have gone but for something else.
      type: list
      elements: dict
      contains:
        image:
          description: Its name.
          type: str
          sample: platform/canary:1
        why:
          description: >-
            V(pinned), V(being served), V(its repository is being filled), V(used meanwhile), V(used within grace)
            or V(a blob of it has just come).
          type: str
          sample: pinned
    counts:
      description: How many images were C(evicted) and C(kept).
      type: dict
      sample: {evicted: 1, kept: 1}
    bytes_freed:
      description: The bytes that went.
      type: int
      sample: 63045632
    bytes:
      description: The bytes of all blobs that are left.
      type: int
      sample: 230688512
    bytes_lacking:
      description: The bytes that O(max_bytes), O(free_bytes) or O(free_percent) still lack, because the rest stays; 0 when they are met.
      type: int
      sample: 0
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils import options
from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_report import default_caches
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_evict import Criteria, evict
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_report import evict_report, names_and_paths
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import parse_age


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **options.caches(),
            "images": {"type": "list", "elements": "str", "default": []},
            "unused_for": {"type": "str"},
            "max_bytes": {"type": "bytes"},
            "free_bytes": {"type": "bytes"},
            "free_percent": {"type": "float"},
            "pinned": {"type": "list", "elements": "str", "default": []},
            "grace": {"type": "str", "default": "1h"},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        criteria = Criteria(
            images=tuple(wanted["images"]),
            unused_for=None if wanted["unused_for"] is None else parse_age(wanted["unused_for"], "unused_for"),
            max_bytes=wanted["max_bytes"],
            free_bytes=wanted["free_bytes"],
            free_percent=wanted["free_percent"],
            pinned=tuple(wanted["pinned"]),
            grace=parse_age(wanted["grace"], "grace"),
        )
        caches = names_and_paths(default_caches() if wanted["caches"] is None else wanted["caches"])
        outcomes = evict(caches, criteria, "cache_evict", wanted["lock_timeout"], module.check_mode)
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    reports = [evict_report(outcome) for outcome in outcomes]
    absent = [image for image in wanted["images"] if all(image in outcome.absent for outcome in outcomes)]
    for image in absent:
        module.warn(f"images: {image} is in no cache here ({', '.join(name for name, _path in caches)}). If it should be, look up its name by cache_info.")
    for report in reports:
        if report["bytes_lacking"]:
            module.warn(f"{report['name']}: {report['bytes_lacking']} bytes are lacking still; what is left is pinned or in use. `kept` says more.")
    gone = "".join(f"{report['name']}: {each['image']}\n" for report in reports for each in report["evicted"])
    changed = any(report["counts"]["evicted"] for report in reports)
    module.exit_json(changed=changed, absent=absent, caches=reports, diff={"before": gone, "after": ""})


if __name__ == "__main__":
    main()
