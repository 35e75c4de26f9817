#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: registry_restore
short_description: Bring back a registry, a repository or one image from a backup, while the registry serves
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - Brings back from a backup, which the role registry makes by restic, what a registry lacks of it. The registry goes on serving, and may be pushed to.
  - Every blob that comes is verified on its way, put in place by renaming, and read from the disk once more; those that are there already are read and
    verified, too, and replaced if they are damaged. Links follow from the bottom up, a tag last. A run that was killed is finished by the next one.
  - A tag that leads elsewhere than in the backup is an error before anything is changed, unless O(force=true).
options:
  name:
    description:
      - The registry on this host. The role registry has written down, in O(directory), where its images and its backups are.
    type: str
    required: true
  repository:
    description:
      - The repository that is to come back, like V(svc/app). The default is the whole registry.
    type: str
    default: ""
  tag:
    description:
      - The one image that is to come back, like V(svc/app:2.7.0), with all its platforms, signatures and attestations.
    type: str
    default: ""
  snapshot:
    description:
      - The backup. V(latest), or the first 8 digits of its ID or more, or a time in UTC like V(2026-05-20) or V(2026-05-20T10:30Z), which means the newest
        backup that is no later.
    type: str
    default: latest
  source:
    description:
      - The restic repository, a directory or V(s3:https://host/bucket), if it is not the registry's own. The passwords are those of the registry.
    type: str
    default: ""
  force:
    description:
      - Whether a tag that leads elsewhere is moved to what it is in the backup. What it leads to now stays under C(TAG.history-TIME-DIGEST).
    type: bool
    default: false
  lock_timeout:
    description:
      - How long to wait for others who change the same store, such as its backup, in seconds.
    type: int
    default: 300
  directory:
    description:
      - Where the role registry writes the settings of backups.
    type: path
    default: /etc/mirrorfleet/registry-backup
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
notes:
  - The store and the settings belong to system users, so the module needs C(become). In the store it acts with the rights of its owner only.
"""

EXAMPLES = r"""
- name: The registry has all that its newest backup has
  mirrorfleet.registry.registry_restore:
    name: prod
  become: true

- name: One image is as it was on that day
  mirrorfleet.registry.registry_restore:
    name: prod
    tag: svc/app:2.7.0
    snapshot: "2026-05-20"
  become: true
  register: restored

- name: What came is shown
  ansible.builtin.debug:
    msg: "{{ restored.blobs }} blobs came from {{ restored.snapshot }} of {{ restored.taken }}, {{ restored.verified }} are right"
"""

RETURN = r"""
snapshot:
  description: The first digits of the backup's ID.
  returned: success
  type: str
  sample: 2aad0b8a
taken:
  description: When it was made, in UTC.
  returned: success
  type: str
  sample: "2026-05-20T02:30:00Z"
owner:
  description: The registry that it is a backup of, by its host and its name.
  returned: success
  type: str
  sample: registry1/prod
repositories:
  description: How many repositories of it were wanted.
  returned: success
  type: int
  sample: 1
images:
  description: How many tags were wanted, those that are there already and signatures included.
  returned: success
  type: int
  sample: 2
blobs:
  description: How many blobs came, manifests included; in check mode, would come. The same holds for what follows.
  returned: success
  type: int
  sample: 4
bytes:
  description: Their bytes.
  returned: success
  type: int
  sample: 62914560
damaged:
  description: The digests of the blobs among them that were there and wrong, the first 100.
  returned: success
  type: list
  elements: str
  sample: []
links:
  description: How many links were written.
  returned: success
  type: int
  sample: 9
tags:
  description: The tags that were set, the first 100.
  returned: success
  type: list
  elements: str
  sample: [svc/app:2.7.0]
moved:
  description: The tags among them that led elsewhere, with O(force=true); the first 100.
  returned: success
  type: list
  elements: dict
  contains:
    tag:
      description: The tag.
      type: str
      sample: svc/app:2.7.0
    from:
      description: The digest that it led to.
      type: str
      sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    to:
      description: The digest that it leads to now.
      type: str
      sample: sha256:7b1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    history:
      description: The tag under which the former digest stays.
      type: str
      sample: svc/app:2.7.0.history-20260521T101530Z-2d1b2f0e9a5f
verified:
  description: How many of the wanted blobs, manifests included, were read from the disk and have their digest; in check mode, of those that are there already.
  returned: success
  type: int
  sample: 12
verified_bytes:
  description: Their bytes.
  returned: success
  type: int
  sample: 183500800
"""

import os
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_backup import secrets_of, settings_of
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_restore import parse_wanted, restore

SHOWN = 100


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "repository": {"type": "str", "default": ""},
            "tag": {"type": "str", "default": ""},
            "snapshot": {"type": "str", "default": "latest"},
            "source": {"type": "str", "default": ""},
            "force": {"type": "bool", "default": False},
            "lock_timeout": {"type": "int", "default": 300},
            "directory": {"type": "path", "default": "/etc/mirrorfleet/registry-backup"},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        wanted = parse_wanted(given["snapshot"], given["repository"], given["tag"], given["force"])
        path = os.path.join(given["directory"], given["name"])
        outcome = restore(
            settings_of(f"{path}.json"), secrets_of(f"{path}.secret"), wanted,
            source=given["source"], lock_timeout=given["lock_timeout"], check_mode=module.check_mode,
        )
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    shown = {key: value[:SHOWN] if isinstance(value, list) else value for key, value in asdict(outcome).items()}
    module.exit_json(changed=outcome.changed, diff={"before": "", "after": "".join(f"{tag}\n" for tag in outcome.tags)}, **shown)


if __name__ == "__main__":
    main()
