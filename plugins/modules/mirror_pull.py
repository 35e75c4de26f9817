#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mirror_pull
short_description: Pull an image from a mirror and keep nothing
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
extends_documentation_fragment:
  - mirrorfleet.registry.registry
  - mirrorfleet.registry.registry.address
  - mirrorfleet.registry.registry.patience
  - mirrorfleet.registry.unchanging
description:
  - Pulls one image as a docker host does, its manifest, its config and its layers, three at once, verifies the digest of
    each and throws the bytes away. It needs no Docker and leaves nothing on the host.
  - It proves that a mirror serves, from where the module runs. A cold mirror fetches the image from its upstream first.
  - Environment variables that name proxies are not used.
options:
  image:
    description:
      - The image, as C([domain/]path[:tag][@digest]). Without a tag and a digest, C(latest) is pulled.
      - Path, tag and digest are asked for at O(url). A domain only says where the image comes from. Without one the path is
        used as written, so an official image of Docker Hub is C(library/NAME) or C(docker.io/NAME).
    type: str
    required: true
  url:
    description:
      - The mirror, as C(https://host:port), or any registry. If the registry's C(/v2/) is below a path, the path belongs to it.
    type: str
    required: true
  platform:
    description:
      - The platform to choose of an image that is made for several, as C(os/architecture) or C(os/architecture/variant).
      - The default is C(linux/) and this host's architecture.
    type: str
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details:
      - The pull is the same in check mode, because it changes nothing on the host. A mirror that did not hold the image holds it
        afterwards.
notes:
  - An error names the URL, the status and what the answer said, and what to do. It holds no credentials.
seealso:
  - module: mirrorfleet.registry.cache_info
"""

EXAMPLES = r"""
- name: The mirror answers a real pull
  mirrorfleet.registry.mirror_pull:
    image: svc/app:1
    url: https://mirror.zagreb:5000
    ca_certificate: /etc/docker/certs.d/mirror.zagreb:5000/ca.crt
  register: pulled

- name: How fast it was
  ansible.builtin.debug:
    msg: "{{ pulled.bytes }} bytes in {{ pulled.seconds }} s, the first after {{ pulled.seconds_to_first_byte }} s"

- name: The upstream accepts the credentials
  mirrorfleet.registry.mirror_pull:
    image: library/canary:1
    url: https://artifactory.example.com/artifactory/api/docker/docker-local
    username: dc-reader
    password: "{{ vault_central_password }}"
    retries: 0
"""

RETURN = r"""
image:
  description: The image, as given.
  returned: success
  type: str
  sample: svc/app:1
digest:
  description: The digest of what the tag names, the index of an image for several platforms.
  returned: success
  type: str
  sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
platform:
  description: The platform that the pulled image says it is for; empty when it says none.
  returned: success
  type: str
  sample: linux/amd64
bytes:
  description: The bytes of all manifests, the config and the layers.
  returned: success
  type: int
  sample: 230688512
bytes_cached:
  description:
    - The bytes of the config and the layers that the mirror had in its store. It fetched the rest, or waited for it with others.
    - V(none) when the registry does not say; a mirror's edge does, by the header C(Cache-Status) of RFC 9211.
  returned: success
  type: int
  sample: 230687230
layers:
  description: The number of different layers.
  returned: success
  type: int
  sample: 2
seconds:
  description: The seconds that the pull took.
  returned: success
  type: float
  sample: 17.634
seconds_to_first_byte:
  description: The seconds from the start of the pull to the first byte of a layer, or of the config when there are no layers.
  returned: success
  type: float
  sample: 0.212
blobs:
  description: The config, then each layer in the image's order.
  returned: success
  type: list
  elements: dict
  contains:
    digest:
      description: Its digest, verified.
      type: str
      sample: sha256:9f2d7c1b0a3e5d8f6c4b2a1908f7e6d5c4b3a29180f7e6d5c4b3a29180f7e6d5
    bytes:
      description: Its size in bytes.
      type: int
      sample: 167772160
    cached:
      description: Whether the mirror had it in its store; V(none) when the registry does not say.
      type: bool
      sample: true
    seconds:
      description: The seconds from its first request to its last byte.
      type: float
      sample: 12.871
    seconds_to_first_byte:
      description: The seconds from its first request to its first byte.
      type: float
      sample: 0.104
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils import options
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_pull import pull_image
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "platform": {"type": "str"},
            **options.REGISTRY,
            **options.ADDRESS,
            **options.PATIENCE,
        },
        required_together=[options.LOGIN],
        supports_check_mode=True,
    )
    given = options.given(module.params)
    image, platform = given.pop("image"), given.pop("platform", "")
    try:
        with RegistryClient(**given) as client:
            module.exit_json(changed=False, **pull_image(client, image, platform))
    except RegistryFleetError as error:
        module.fail_json(msg=f"{image} can't be pulled. {error}")


if __name__ == "__main__":
    main()
