#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: cache_warm
short_description: Bring images into a mirror host's cache before docker hosts ask for them
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
extends_documentation_fragment:
  - mirrorfleet.registry.registry
  - mirrorfleet.registry.registry.address
  - mirrorfleet.registry.registry.patience
description:
  - Runs on a mirror host and pulls what one cache lacks of a list of images by the host's own edge, as a docker host would, so that
    distribution verifies and keeps it. The bytes are verified once more as they come, and thrown away; memory does not grow with a blob.
  - What is in the store already is not asked for again, a blob that several images, tags or platforms share is fetched once, and a
    run that was broken off is taken up by the next one.
  - Images come in the order of the list, O(parallel) blobs at once. What goes wrong with one of them does not stop the others; at
    the end the module fails and names all that are not there.
  - With the callback plugin P(mirrorfleet.registry.warm_progress#callback) enabled, it is shown how far it is while it runs.
options:
  images:
    description:
      - The images, as C([domain/]path[:tag][@digest]). Without a tag and a digest, C(latest) is meant.
      - Path, tag and digest are asked for at O(url). A domain only says where the image comes from. Without one the path is
        used as written, so an official image of Docker Hub is C(library/NAME) or C(docker.io/NAME).
    type: list
    elements: str
    required: true
  platforms:
    description:
      - Which platforms to bring of an image that is made for several, as C(os/architecture) or C(os/architecture/variant). V(all)
        brings everything that its index names, attestations too.
      - The default is C(linux/) and this host's architecture.
      - An image that is made for none of them is an error; one that is made for some of them is brought for these, and
        RV(images[].platforms_missing) has the others. An image that is made for one platform only, without an index, always comes.
    type: list
    elements: str
    default: []
  url:
    description:
      - The mirror host's edge for the upstream, as C(https://host:port). The certificate must be for this host.
    type: str
    required: true
  path:
    description:
      - The store of the same upstream's cache, C(/var/lib/mirrorfleet/cache/NAME). Its files tell what is there.
    type: path
    required: true
  upstream_url:
    description:
      - Where manifests are asked for in check mode, because the edge would store them. Usually the rewrite front,
        C(http://127.0.0.1:PORT), whose port is the upstream's port + 13000. Required in check mode.
    type: str
  upstream_username:
    description:
      - The user for O(upstream_url). A rewrite front needs it for a Bearer upstream with a login, and for no other.
    type: str
  upstream_password:
    description: This user's password.
    type: str
  parallel:
    description: How many blobs to fetch at once.
    type: int
    default: 3
  bytes_per_second:
    description:
      - The most bytes a second, in the mean over the run, like V(10M). The default is no limit.
      - A blob is only asked for when those before it have used up their time. It then comes as fast as the link carries it, because
        the coalescer reads without waiting for anybody. So this spreads a list over time, and can't slow down one large blob; the
        rewrite front can.
    type: bytes
  max_seconds:
    description:
      - The most seconds for the run. What is left then is told, and is no error; see O(fail_on). The default is no limit.
      - The cache goes on by itself with the blobs that are under way at that moment, up to O(parallel) of them.
    type: float
  free_bytes:
    description: The bytes that must stay free on the file system of O(path). A blob that would not leave them is not asked for, and that is an error.
    type: bytes
    default: 1073741824
  fail_on:
    description:
      - When to fail. V(error) when an image can't be had, V(incomplete) also when O(max_seconds) was too short, V(never) to only tell.
    type: str
    choices: [error, incomplete, never]
    default: error
  progress:
    description:
      - A directory that must not exist yet. It is made, and while the module runs, its file C(progress.json) is rewritten each second
        with C(images), C(images_done), C(images_failed), C(bytes), C(bytes_done), C(seconds). It is removed at the end.
      - What can't be written there is no fault. The callback plugin P(mirrorfleet.registry.warm_progress#callback) needs nothing here.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details:
      - Nothing is stored on the host. Manifests that are not there are asked for at O(upstream_url); another mirror host that a
        rewrite front asks first keeps them.
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in check mode), when in diff mode.
    support: none
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
    details:
      - Unless a tag was moved between the runs, or something was evicted.
notes:
  - It needs no root, only the right to read O(path), which C(root) and the user C(mirrorfleet-cache) have.
  - A run that is killed leaves nothing behind but the directory O(progress). Where its name begins with C(mirrorfleet-progress-), as that of
    the callback plugin does, the next run that has one beside it removes it.
seealso:
  - module: mirrorfleet.registry.cache_info
  - module: mirrorfleet.registry.mirror_pull
"""

EXAMPLES = r"""
- name: Tonight's release is in the cache before the docker hosts ask for it
  mirrorfleet.registry.cache_warm:
    images:
      - svc/app:2.7
      - svc/worker:2.7
      - svc/base@sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    platforms: [linux/amd64, linux/arm64]
    url: https://mirror1.zagreb.example.com:5000
    address: 127.0.0.1
    ca_certificate: /etc/docker/certs.d/mirror1.zagreb.example.com:5000/ca.crt
    path: /var/lib/mirrorfleet/cache/central
    upstream_url: http://127.0.0.1:18000
  become: true
  register: warmed

- name: The images that are not there, and why
  ansible.builtin.debug:
    msg: "{{ warmed | community.general.json_query('images[?!complete].{image: image, error: error, bytes_left: bytes_left}') }}"

- name: What can be had in an hour, a quarter of the link at most
  mirrorfleet.registry.cache_warm:
    images: "{{ release_images }}"
    url: https://mirror1.zagreb.example.com:5000
    address: 127.0.0.1
    path: /var/lib/mirrorfleet/cache/central
    upstream_url: http://127.0.0.1:18000
    max_seconds: 3600
    bytes_per_second: 3M
  become: true
  become_user: mirrorfleet-cache
"""

RETURN = r"""
images:
  description: The images, in the order of the list, each once.
  returned: always, unless nothing was begun
  type: list
  elements: dict
  contains:
    image:
      description: The image, as given.
      type: str
      sample: svc/app:2.7
    digest:
      description: The digest of what the tag names, the index of an image for several platforms; empty when it is not known.
      type: str
      sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    platforms:
      description: The platforms that were chosen of its index; empty for an image without one.
      type: list
      elements: str
      sample: [linux/amd64]
    platforms_missing:
      description: Those of O(platforms) that it is not made for.
      type: list
      elements: str
      sample: []
    bytes_fetched:
      description:
        - The bytes that came for it and were not in the store, or in check mode would. They came over the WAN, or from the other mirror
          hosts that the rewrite front asks first; M(mirrorfleet.registry.front_info) counts which.
        - A blob that several images share is the first one's, and counts as present for the others.
      type: int
      sample: 62914560
    bytes_present:
      description: The bytes of it that were there already.
      type: int
      sample: 167772160
    bytes_left:
      description: The bytes of its blobs that are not there yet; 0 in check mode.
      type: int
      sample: 0
    seconds:
      description: The seconds from its first request to its last byte. Other images came meanwhile.
      type: float
      sample: 5.213
    complete:
      description: Whether all of it is in the store, for the chosen platforms; in check mode, whether all of it is there already.
      type: bool
      sample: true
    error:
      description: What went wrong, and what to do; empty when nothing did.
      type: str
      sample: ""
counts:
  description: How many C(images) there are, and how many of them are C(complete), have C(failed), or are C(left) because the time was over.
  returned: always, unless nothing was begun
  type: dict
  sample: {"images": 2, "complete": 2, "failed": 0, "left": 0}
bytes_fetched:
  description: The sum over the images.
  returned: always, unless nothing was begun
  type: int
  sample: 62914560
bytes_present:
  description: The sum over the images, so what several images share is counted for each.
  returned: always, unless nothing was begun
  type: int
  sample: 167772160
bytes_left:
  description: The sum over the images.
  returned: always, unless nothing was begun
  type: int
  sample: 0
seconds:
  description: The seconds that the run took.
  returned: always, unless nothing was begun
  type: float
  sample: 5.402
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils import options
from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_warm import Limits, failure, warm
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "str", "required": True},
            "platforms": {"type": "list", "elements": "str", "default": []},
            "url": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "upstream_url": {"type": "str"},
            "upstream_username": {"type": "str"},
            "upstream_password": {"type": "str", "no_log": True},
            "parallel": {"type": "int", "default": 3},
            "bytes_per_second": {"type": "bytes"},
            "max_seconds": {"type": "float"},
            "free_bytes": {"type": "bytes", "default": 1073741824},
            "fail_on": {"type": "str", "choices": ["error", "incomplete", "never"], "default": "error"},
            "progress": {"type": "path"},
            **options.REGISTRY,
            **options.ADDRESS,
            **options.PATIENCE,
        },
        required_together=[options.LOGIN, ("upstream_username", "upstream_password")],
        supports_check_mode=True,
    )
    given = options.given(module.params)
    try:
        limits = Limits(**{name: given.pop(name) for name in ("parallel", "bytes_per_second", "max_seconds", "free_bytes") if name in given})
        fail_on = given.pop("fail_on")
        report = warm(limits=limits, dry=module.check_mode, **given)
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    changed, why = report["bytes_fetched"] > 0, failure(report, fail_on)
    if why:
        module.fail_json(msg=why, changed=changed, **report)
    module.exit_json(changed=changed, **report)


if __name__ == "__main__":
    main()
