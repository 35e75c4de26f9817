#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: cache_scrub
short_description: Find and remove what is damaged in a mirror host's caches
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
extends_documentation_fragment:
  - mirrorfleet.registry.stores
description:
  - Reads the blobs of a mirror host's caches again, from the disk, and compares their digests; removes those that are wrong, with the links to them,
    so that the next pull fetches them again. The caches go on serving.
  - Removes links that hold no digest, or lead to nothing.
  - A link, or a blob of up to 4 MiB, that was written less than a minute ago may be half written, and is judged by the next run only.
  - Blobs take turns, the one whose check is the longest ago first, and the next run goes on where this one ends.
  - A run that was killed has harmed nothing.
options:
  max_seconds:
    description:
      - The most seconds for which a cache is read. A blob that was begun is finished. The default is until all of it was.
    type: float
  max_bytes:
    description:
      - The most bytes of a cache that are read. A blob that was begun is finished. The default is all of them.
    type: bytes
  bytes_per_second:
    description:
      - The most bytes that are read in a second, like V(100M). The default is as many as the disk gives and one processor hashes.
    type: bytes
  upload_age:
    description:
      - Uploads, which are what fills leave that were cut off, are removed when nothing has come for so long, like V(1d).
        The default is that they stay.
    type: str
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details:
      - Reads as much, and does not count as a check of what it reads.
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in check mode), when in diff mode.
    support: full
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: partial
    details:
      - A run with a budget reads what the one before has not, and may find more.
seealso:
  - module: mirrorfleet.registry.cache_evict
"""

EXAMPLES = r"""
- name: Nothing in the caches is damaged
  mirrorfleet.registry.cache_scrub:
  become: true

- name: A part of one cache is checked, in ten minutes and without taking the disk from others
  mirrorfleet.registry.cache_scrub:
    caches:
      - name: central
        path: /var/lib/mirrorfleet/cache/central
    max_seconds: 600
    bytes_per_second: 50M
  become: true
  register: scrubbed

- name: What was damaged is shown
  ansible.builtin.debug:
    msg: "{{ scrubbed | community.general.json_query('caches[].findings[].{what: kind, images: images}') }}"

- name: What cut off fills have left is gone
  mirrorfleet.registry.cache_scrub:
    max_bytes: 0
    upload_age: 1d
  become: true
"""

RETURN = r"""
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
    findings:
      description: The first 100 things that were wrong, and are removed.
      type: list
      elements: dict
      contains:
        kind:
          description: V(wrong bytes), V(truncated), V(empty) and V(unreadable) are blobs; V(broken link) holds no digest, or another one; V(link to nothing).
          type: str
          sample: wrong bytes
        path:
          description: Where it was, below the cache's directory.
          type: str
          sample: docker/registry/v2/blobs/sha256/2d/2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b/data
        digest:
          description: The digest it should have had; empty for a tag whose link held none.
          type: str
          sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
        images:
          description: The images that need it, 20 at most.
          type: list
          elements: str
          sample: [svc/app:1]
    counts:
      description: The number of C(findings), of C(blobs) read, of C(uploads) removed, and of C(incomplete) images, of which a blob is gone now.
      type: dict
      sample: {findings: 1, blobs: 512, uploads: 0, incomplete: 1}
    incomplete:
      description: The first 100 images of which a blob is gone. The next pull of each fetches it.
      type: list
      elements: str
      sample: [svc/app:1]
    bytes:
      description: The bytes read.
      type: int
      sample: 24696061952
    seconds:
      description: How long that took.
      type: float
      sample: 35.2
    complete:
      description: Whether the last blob's turn was in this run. The next one begins with the first again.
      type: bool
      sample: true
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils import options
from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_report import default_caches
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_report import names_and_paths, scrub_cache
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_scrub import Budget
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import parse_age


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **options.caches(),
            "max_seconds": {"type": "float"},
            "max_bytes": {"type": "bytes"},
            "bytes_per_second": {"type": "bytes"},
            "upload_age": {"type": "str"},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        upload_age = None if wanted["upload_age"] is None else parse_age(wanted["upload_age"], "upload_age")
        budget = Budget(wanted["max_seconds"], wanted["max_bytes"], wanted["bytes_per_second"])
        reports, problems = [], []
        for name, path in names_and_paths(default_caches() if wanted["caches"] is None else wanted["caches"]):
            report, problem = scrub_cache(name, path, budget, upload_age, wanted["lock_timeout"], module.check_mode)
            reports.append(report)
            problems += [problem] if problem else []
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    for problem in problems:
        module.warn(f"{problem}. The next run begins where this one did.")
    gone = "".join(f"{report['name']}: {each['path']} ({each['kind']})\n" for report in reports for each in report["findings"])
    changed = any(report["counts"]["findings"] or report["counts"]["uploads"] for report in reports)
    module.exit_json(changed=changed, caches=reports, diff={"before": gone, "after": ""})


if __name__ == "__main__":
    main()
