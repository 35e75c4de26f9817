#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: image_info
short_description: Tell what images are at the upstream, and what of them each data center's cache holds
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
extends_documentation_fragment:
  - mirrorfleet.registry.registry.patience
  - mirrorfleet.registry.unchanging
description:
  - Resolves images at an upstream and, at the same time, in any number of caches. It runs anywhere, usually on the controller, as
    one remote command for all images and all caches.
  - A pull-through cache fetches what it is asked for, even by C(HEAD). So a mirror host's edge is asked with the directive C(only-if-cached)
    of RFC 9111, which it answers from its store. Nothing is fetched over the WAN but manifests, and the config of an image without an
    index, from O(upstream). A cache that does not say that it understands this is not asked, and RV(images[].caches[].in_cache) is V(unknown).
  - What a registry answers or fails to answer is told and fails nothing; only wrong options do.
  - Environment variables that name proxies are not used.
options:
  images:
    description:
      - The images, as C([domain/]path[:tag][@digest]). Without a tag and a digest, C(latest) is meant.
      - Path, tag and digest are asked for at O(upstream) and in all O(caches). A domain only says where an image comes from. Without one the
        path is used as written, so an official image of Docker Hub is C(library/NAME) or C(docker.io/NAME).
    type: list
    elements: str
    required: true
  upstream:
    description:
      - The registry that knows what the images are. Without it, or while it does not answer, each cache tells of the image that it has by that name.
    type: dict
    suboptions: &registry
      url:
        description: The registry, as C(https://host:port), with a path if its C(/v2/) is below one.
        type: str
        required: true
      username:
        description: The user, for a registry that asks for one. It is sent only when the registry asks.
        type: str
      password:
        description: The user's password or token.
        type: str
      ca_certificate:
        description:
          - The certificate of the authority that signed the registry's, as PEM text or as the path of a file where the module runs.
            It is trusted beside the system's authorities.
        type: str
      validate_certs:
        description: Whether the registry's certificate must be valid.
        type: bool
        default: true
      address:
        description: The host name or address to connect to instead of the host in C(url). The certificate must be for the host in C(url) still.
        type: str
  caches:
    description: The caches to look in, usually one for each data center, at the port of O(upstream).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What to call it in the answer, such as the data center's name. Each name once.
        type: str
        required: true
      may_fill:
        description:
          - Ask by plain C(HEAD), as is right for a registry that stores what is pushed to it.
          - A pull-through cache fetches each image whole then, and answers that it has it.
        type: bool
        default: false
      <<: *registry
  platforms:
    description:
      - The platforms that must be in a cache, of an image that is made for several, as C(os/architecture) or C(os/architecture/variant);
        C(all) is all that the image is made for. An image that is made for one platform is looked for whatever it is.
      - The default is C(linux/) and the architecture of where the module runs.
    type: list
    elements: str
    default: []
  artifacts:
    description: Look at O(upstream) for what is attached to each image too, four requests more for each.
    type: bool
    default: true
  details:
    description: Tell also of layers, and of the manifests and blobs that a cache lacks.
    type: bool
    default: false
  timeout:
    description: The most seconds to wait for the next byte.
    type: float
    default: 20
  retries:
    description: How often what failed for the moment is asked for again.
    type: int
    default: 2
seealso:
  - module: mirrorfleet.registry.cache_info
  - module: mirrorfleet.registry.mirror_pull
"""

EXAMPLES = r"""
- name: What is to be rolled out is known, at the upstream and in each data center
  mirrorfleet.registry.image_info:
    images: [svc/app:2, svc/web:7]
    platforms: [linux/amd64]
    upstream:
      url: https://artifactory.example.com/artifactory/api/docker/docker-local
      username: dc-reader
      password: "{{ vault_central_password }}"
    caches:
      - {name: zagreb, url: "https://mirror.zagreb:5000", ca_certificate: "{{ mirror_ca }}"}
      - {name: frankfurt, url: "https://mirror.frankfurt:5000", ca_certificate: "{{ mirror_ca }}"}
  delegate_to: localhost
  register: released

- name: Where images are not there yet
  ansible.builtin.debug:
    msg: >-
      {{ released | community.general.json_query("images[].{image: image, lacking: caches[?in_cache!='complete'].name} | [?lacking]") }}

- name: The bytes that would have to come over each data center's WAN
  ansible.builtin.debug:
    msg: >-
      {{ item }}: {{ released | community.general.json_query("images[].caches[] | [?name=='" ~ item ~ "'].bytes_missing") | sum }}
  loop: [zagreb, frankfurt]

- name: Data centers whose tag leads to another image than the upstream's
  ansible.builtin.debug:
    msg: >-
      {{ released | community.general.json_query("images[?caches[?drift]].{image: image, digest: digest, drifted: caches[?drift].[name, digest]}") }}

- name: Images that nobody signed
  ansible.builtin.debug:
    msg: >-
      {{ released | community.general.json_query("images[?artifacts_unknown=='' && !(artifacts[?kind=='signature'])].image") }}
"""

RETURN = r"""
images:
  description: The images, in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    image:
      description: The image, as given.
      type: str
      sample: svc/app:2
    digest:
      description: The digest of what the upstream has by that name, the index of an image for several platforms. Null when that is not known.
      type: str
      sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    media_type:
      description: Its media type; null with RV(images[].digest).
      type: str
      sample: application/vnd.oci.image.index.v1+json
    size:
      description: The bytes of its manifests and blobs for O(platforms), each once; null with RV(images[].digest).
      type: int
      sample: 230688512
    unknown:
      description: Why RV(images[].digest) is null; empty when it is not.
      type: str
      sample: ""
    platforms:
      description: The platforms that it is made for.
      type: list
      elements: dict
      contains:
        platform:
          description: The platform; empty when the image does not say.
          type: str
          sample: linux/amd64
        digest:
          description: The digest of its manifest.
          type: str
          sample: sha256:9f2d7c1b0a3e5d8f6c4b2a1908f7e6d5c4b3a29180f7e6d5c4b3a29180f7e6d5
        size:
          description: The bytes of its manifest, config and layers; null for a platform that is not among O(platforms).
          type: int
          sample: 230688012
        layers:
          description: Its layers with C(digest) and C(size), with O(details=true); null for a platform that is not among O(platforms).
          type: list
          elements: dict
          sample: [{digest: "sha256:7b7bc3e1e5d1f0c2", size: 167772160}]
    platforms_missing:
      description: Those of O(platforms) that it is not made for. Nothing of them can be in a cache, and a cache is complete without them.
      type: list
      elements: str
      sample: []
    artifacts:
      description:
        - What is attached to it. That it is there is all this says; no signature is verified. Null when it is not known.
      type: list
      elements: dict
      contains:
        kind:
          description: V(signature), V(attestation), V(sbom) or V(other), as its type or cosign's tag says.
          type: str
          sample: signature
        artifact_type:
          description: Its type.
          type: str
          sample: application/vnd.dev.cosign.simplesigning.v1+json
        digest:
          description: The digest of its manifest.
          type: str
          sample: sha256:0c1d7c1b0a3e5d8f6c4b2a1908f7e6d5c4b3a29180f7e6d5c4b3a29180f7e6d5
        size:
          description: The bytes of its manifest.
          type: int
          sample: 558
        found_by:
          description:
            - V(referrers), the referrers API or the tag that stands in for it; V(cosign), the tags that cosign writes; V(index), the image's
              own index, where BuildKit puts attestations.
          type: str
          sample: cosign
    artifacts_unknown:
      description: Why RV(images[].artifacts) is null; empty when it is not.
      type: str
      sample: ""
    caches:
      description: What each cache has of it, in the order given.
      type: list
      elements: dict
      contains:
        name:
          description: The cache's name.
          type: str
          sample: zagreb
        in_cache:
          description:
            - V(complete), all manifests and blobs of O(platforms) are there in full size; V(absent), none of the manifests is; V(partial),
              something is missing. V(unknown), it could not be asked.
            - It is about the image that the upstream has now. While that is not known, it is about what the cache has by that name.
          type: str
          sample: complete
        digest:
          description: The digest that a pull by that name would get if the upstream were gone; null when it would get none.
          type: str
          sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
        drift:
          description:
            - Whether the tag leads to another image here than at the upstream. A pull asks the upstream and gets the new one, unless the upstream is gone.
            - Null when one of the two is not known.
          type: bool
          sample: false
        platforms:
          description: Those of O(platforms) of which everything is there.
          type: list
          elements: str
          sample: [linux/amd64]
        bytes:
          description: The bytes of RV(images[].size) that are there; null when the image is not known.
          type: int
          sample: 230688512
        bytes_missing:
          description:
            - The bytes that are not, and would come over the WAN. Null when the image is not known.
            - Blobs are counted as there for whichever image they came, so an absent image may have few.
          type: int
          sample: 0
        missing:
          description: The C(digest) and C(size) of what is not there, with O(details=true).
          type: list
          elements: dict
          sample: []
        unknown:
          description: Why RV(images[].caches[].in_cache) is V(unknown); empty when it is not.
          type: str
          sample: ""
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils import options
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_info import image_info


def main() -> None:
    registry: dict[str, Any] = {"url": {"type": "str", "required": True}, **options.REGISTRY, **options.ADDRESS}
    cache: dict[str, Any] = {"name": {"type": "str", "required": True}, "may_fill": {"type": "bool", "default": False}, **registry}
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "str", "required": True},
            "upstream": {"type": "dict", "options": registry, "required_together": [options.LOGIN]},
            "caches": {"type": "list", "elements": "dict", "default": [], "options": cache, "required_together": [options.LOGIN]},
            "platforms": {"type": "list", "elements": "str", "default": []},
            "artifacts": {"type": "bool", "default": True},
            "details": {"type": "bool", "default": False},
            **options.PATIENCE,
            # A table does not wait for long for one of many.
            "timeout": {"type": "float", "default": 20},
            "retries": {"type": "int", "default": 2},
        },
        supports_check_mode=True,
    )
    given = dict(module.params)
    given["caches"] = [options.given(each) for each in given["caches"]]
    given["upstream"] = given["upstream"] and options.given(given["upstream"])
    try:
        module.exit_json(changed=False, images=image_info(**given))
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
