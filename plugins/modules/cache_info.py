#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: cache_info
short_description: Tell what a mirror host's caches hold
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
extends_documentation_fragment:
  - mirrorfleet.registry.registry
  - mirrorfleet.registry.unchanging
description:
  - Reads the stores of a mirror host's caches, which are distribution's files, and asks distribution what it counted. It asks
    no upstream, so what it tells is what is there.
  - A store may be read while it is written to. What is odd in it is told in RV(caches[].problems) and fails nothing.
options:
  caches:
    description:
      - The caches. The default is all that the role pull_through_cache has made on this host, with their debug endpoints.
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
      debug_url:
        description: The debug endpoint of its distribution, C(http.debug.addr) in its configuration.
        type: str
        default: ""
  url:
    description:
      - Ask the API of a registry instead, as C(https://host:port), for one whose store can't be read. The module runs anywhere then.
      - It is for a registry that stores what is pushed to it. A mirror host's edge lists nothing and is refused. Of a pull-through cache behind
        no edge, the tags and images told are those that its upstream has, and it fetches their manifests for that, over the WAN.
      - Only the store tells of use, expiry, uploads, disk and figures, of RV(caches[].path), of
        RV(caches[].repositories[].untagged_count) and C(untagged), C(complete) and C(missing), and of the platform of an image without an index.
        They are null. Sizes are those that the manifests say, and RV(caches[].bytes) and the number of blobs are of the repositories and images
        that match O(repository) and O(image).
    type: str
  repository:
    description:
      - Tell only of repositories whose name matches this shell pattern. C(*) matches slashes too.
      - RV(caches[].bytes), the number of blobs, of uploads and of problems, and the figures stay those of the whole cache.
    type: str
    default: "*"
  image:
    description:
      - Tell only of images whose name matches this shell pattern, like V(*:release-*). The name is C(repository:tag), or C(repository@digest)
        without a tag. Repositories without such an image are left out. The rest stays as with O(repository).
    type: str
    default: "*"
  unused_for:
    description:
      - Tell only of images that were not used for so long, like V(30d); V(s), V(m), V(h), V(d) and V(w) are units.
    type: str
  details:
    description: Tell also of each image's platforms, layers and missing blobs, and of images without a tag.
    type: bool
    default: false
notes:
  - The stores belong to a system user, so the module needs C(become).
seealso:
  - module: mirrorfleet.registry.image_info
  - module: mirrorfleet.registry.cache_evict
  - module: mirrorfleet.registry.cache_scrub
"""

EXAMPLES = r"""
- name: Everything that the caches hold is known
  mirrorfleet.registry.cache_info:
  become: true
  register: held

- name: The tags that lack blobs, by repository
  ansible.builtin.debug:
    msg: "{{ held | community.general.json_query('caches[].repositories[].{name: name, tags: tags[?complete==`false`].tag} | [?tags]') }}"

- name: What was not pulled for a month, the names only
  mirrorfleet.registry.cache_info:
    unused_for: 30d
  become: true
  register: old

- name: The oldest image of each cache, and when its disk is full
  ansible.builtin.debug:
    msg: "{{ old | community.general.json_query('caches[].{cache: name, oldest: least_recently_used.image, days: disk.days_until_full}') }}"

- name: One team's images and the figures of one cache
  mirrorfleet.registry.cache_info:
    caches:
      - name: central
        path: /var/lib/mirrorfleet/cache/central
        debug_url: http://127.0.0.1:16000
    repository: svc/*
    details: true
  become: true

- name: What the central registry holds is known by its API
  mirrorfleet.registry.cache_info:
    url: https://registry.example.com:5000
    username: dc-reader
    password: "{{ vault_central_password }}"
  delegate_to: localhost
  register: central

- name: Its largest images
  ansible.builtin.debug:
    msg: >-
      {{ central | community.general.json_query("caches[].repositories[?tags].{name: name, size: max_by(tags, &size).size}[] | sort_by(@, &size)[-5:]") }}
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
    repositories:
      description: The repositories that match O(repository), by name.
      type: list
      elements: dict
      contains:
        name:
          description: The repository's name.
          type: str
          sample: svc/app
        tags:
          description: Its tags, by name.
          type: list
          elements: dict
          contains:
            tag:
              description: The tag.
              type: str
              sample: "1"
            digest:
              description: The digest that the tag names here. The upstream's may be newer.
              type: str
              sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
            size:
              description: The bytes of its manifests and blobs that are in the store, each once.
              type: int
              sample: 230688512
            platforms:
              description: The platforms whose image is there with all its blobs.
              type: list
              elements: str
              sample: [linux/amd64]
            complete:
              description:
                - Whether no blob is missing of the images whose manifest is there. An index's other images were never asked for,
                  and do not count.
              type: bool
              sample: true
            last_used:
              description: When it was used last, in UTC.
              type: str
              sample: "2026-10-02T04:11:09Z"
            last_used_source:
              description: >-
                From where that is known. V(pull) is exact: distribution writes a tag's link at each pull by the tag, while the upstream answers.
                V(atime) is when the file system noted that the link was read, which most do to a day only. V(mtime) is when the image came.
              type: str
              sample: pull
            images:
              description: The images behind the tag, with O(details=true). For an index those too that were never asked for.
              type: list
              elements: dict
              sample:
                - platform: linux/amd64
                  complete: true
                  missing: []
                  layers:
                    - digest: sha256:9f2d7c1b0a3e5d8f6c4b2a1908f7e6d5c4b3a29180f7e6d5c4b3a29180f7e6d5
                      size: 167772160
        untagged_count:
          description: The number of manifests that no tag leads to, such as of images pulled by digest and of a tag's earlier images.
          type: int
          sample: 0
        untagged:
          description: These manifests, shaped as RV(caches[].repositories[].tags) without C(tag), with O(details=true).
          type: list
          elements: dict
          sample: []
    counts:
      description: >-
        The number of C(repositories), C(tags) and C(manifests) that match O(repository), and of C(blobs), C(uploads) under way or
        broken off, and C(problems) in the whole store.
      type: dict
      sample: {repositories: 1, tags: 1, manifests: 1, blobs: 4, uploads: 0, problems: 0}
    bytes:
      description: The bytes of all blobs, manifests and configs included. A blob that several repositories share is there once.
      type: int
      sample: 230688512
    upload_bytes:
      description: The bytes of uploads under way or broken off.
      type: int
      sample: 0
    oldest_upload:
      description: Since when nothing has come of the upload that waits the longest, in UTC; null where there is none.
      type: str
      sample: "2026-10-02T04:11:09Z"
    least_recently_used:
      description: The C(image), C(last_used) and C(last_used_source) of the tag told of that was used the longest ago; null where there is none.
      type: dict
      sample: {image: "svc/old:1", last_used: "2026-05-02T04:11:09Z", last_used_source: pull}
    most_recently_used:
      description: The same of the one that was used last.
      type: dict
      sample: {image: "svc/app:1", last_used: "2026-10-02T04:11:09Z", last_used_source: pull}
    expiry:
      description: >-
        Whether distribution forgets images by itself, as the configuration in C(/etc/mirrorfleet/cache) says: V(off) where the role
        pull_through_cache wrote it, V(on), or V(unknown) where there is none of this cache.
      type: str
      sample: "off"
    disk:
      description: >-
        The C(total) bytes of the file system, those that are C(free) to an unprivileged user, and C(days_until_full) at the rate of the
        last week, or since the guard began; null before it has two figures, an hour apart, and where nothing grows.
      type: dict
      sample: {total: 107374182400, free: 80530636800, days_until_full: 41.5}
    drained:
      description: Whether the guard has taken the cache out of service because its disk is filling.
      type: bool
      sample: false
    proxy:
      description:
        - What distribution counted since it started, for C(blobs) and C(manifests) each C(requests), C(hits), C(misses),
          C(bytes_pulled) from its upstream and C(bytes_pushed) to its clients. Blobs that the edge sends itself are not among them.
        - Distribution 2.8 counts a fill as a request with its bytes pushed, and counts neither hits, misses nor bytes pulled of
          blobs, which are null then.
        - Null when it could not be asked.
      type: dict
      sample:
        blobs: {requests: 9, hits: 6, misses: 3, bytes_pulled: 230686720, bytes_pushed: 692060160}
        manifests: {requests: 4, hits: 3, misses: 1, bytes_pulled: 1792, bytes_pushed: 7168}
    proxy_unknown:
      description: Why RV(caches[].proxy) is null; empty when it is not.
      type: str
      sample: ""
    problems:
      description: The first 20 things in the store that are not as distribution leaves them, and what can't be read.
      type: list
      elements: dict
      contains:
        path:
          description: Where, below the cache's directory.
          type: str
          sample: docker/registry/v2/repositories/svc/notes.txt
        why:
          description: What it is.
          type: str
          sample: a file that distribution does not put there
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils import options
from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_api import report_registry
from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_report import Filter, default_caches, report_cache
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import parse_age


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **options.caches(debug_url={"type": "str", "default": ""}),
            "url": {"type": "str"},
            **options.REGISTRY,
            "repository": {"type": "str", "default": "*"},
            "image": {"type": "str", "default": "*"},
            "unused_for": {"type": "str"},
            "details": {"type": "bool", "default": False},
        },
        mutually_exclusive=[("caches", "url"), ("unused_for", "url")],
        required_together=[options.LOGIN],
        required_by={"username": "url", "ca_certificate": "url"},
        supports_check_mode=True,
    )
    caches, repository, image, unused_for, details = (module.params[name] for name in ("caches", "repository", "image", "unused_for", "details"))
    try:
        wanted = Filter(repository, image, 0 if unused_for is None else parse_age(unused_for, "unused_for"))
        if module.params["url"]:
            registry = options.given({name: module.params[name] for name in ("url", *options.REGISTRY)})
            module.exit_json(changed=False, caches=[report_registry(wanted, details, **registry)])
        reports = [report_cache(**cache, wanted=wanted, details=details) for cache in (default_caches() if caches is None else caches)]
        module.exit_json(changed=False, caches=reports)
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
