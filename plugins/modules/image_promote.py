#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: image_promote
short_description: Copy images from one registry to the next, if the next one's policy lets them in
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - Runs on a host that reaches both registries and has C(skopeo), and C(cosign) where something is verified or signed.
  - An image is promoted by its digest, with all its platforms, and with what is attached to it or to one of its platforms, signatures,
    attestations and SBOMs, by cosign's tags and as OCI referrers. A tag is asked for once; what it names later is of no account.
  - Everything is looked at first. Then blobs and manifests are copied under their digests, then what is attached, then it is signed, and
    the tag is set last. So what fails in between leaves the target's tags as they were, and the next run goes on.
  - A tag that the target has already is not moved, unless O(force=true). The digest that it had is then kept under a history tag,
    C(TAG.history-YYYYMMDDTHHMMSSZ-DIGEST), time in UTC and the first twelve digits of the digest that it names.
  - What goes wrong with one image does not stop the others; at the end the module fails and names all that were not promoted.
options:
  images:
    description:
      - The images, as C(PATH[:TAG][@DIGEST]) with a tag or a digest or both, and C(as PATH:TAG) after it for another name at the target.
      - With both, the tag must still be at this digest, otherwise it has moved and the image is refused. With a digest alone, C(as) is required.
      - A path may begin with its registry's C(host[:port]).
    type: list
    elements: str
    required: true
  source:
    description: The registry that the images are in.
    type: dict
    required: true
    suboptions: &registry
      url:
        description: Where it is, C(https://host[:port]).
        type: str
        required: true
      username:
        description: The user, where it asks for one.
        type: str
      password:
        description: The user's password. No program gets it as an argument.
        type: str
      ca_certificate:
        description: The certificate of the authority that signed the registry's, as PEM text or as the path of a file on the host.
        type: str
      validate_certs:
        description: Whether its certificate must be valid.
        type: bool
        default: true
  target:
    description: The registry that they come to.
    type: dict
    required: true
    suboptions: *registry
  policy:
    description: What the target demands of an image. All of it is checked, and all that does not hold is named.
    type: dict
    default: {}
    suboptions:
      signed_by:
        description:
          - Public keys of cosign's, as PEM text or as paths of files on the host. The image must be signed by one of them, at the source.
          - No transparency log and no other service is asked.
        type: list
        elements: str
        default: []
      labels:
        description:
          - Labels that every platform's image must have, with what each one's value must be; V(*) stands for any text. Annotations of its manifest
            and of its index count as labels that it lacks.
        type: dict
        default: {}
      max_age:
        description:
          - How long ago it may have been created, as a number and one of s, m, h, d, w. An image that the target's tag names already may be older.
          - The annotation C(org.opencontainers.image.created) counts, else what the config says. Of several platforms each must be young enough.
        type: str
        default: ""
      sources:
        description:
          - Where it may come from, as patterns of C([https://]host[:port]/path). V(*) is anything within a part of the path, V(**) over several.
        type: list
        elements: str
        default: []
  sign:
    description: The key that signs what was promoted, at the target, unless it is signed by it already. The other signatures stay.
    type: dict
    suboptions:
      key:
        description: The path of cosign's private key on the host.
        type: path
      key_text:
        description: This key's text instead.
        type: str
      password:
        description: The key's password. It is passed in the environment of cosign alone.
        type: str
        default: ""
  force:
    description: Whether a tag of the target may be moved.
    type: bool
    default: false
  record:
    description:
      - A file on the host to which a line of JSON is appended for everything that was promoted, with C(time), C(by), C(host), C(source),
        C(target), C(digest), C(previous), C(history_tag), C(signed_by), C(signed), C(blobs_copied), C(bytes_copied), C(actions).
      - Its directory must be there. Nothing is promoted when it can't be written to.
    type: path
  promoted_by:
    description: Who promotes, for O(record) and the signature. The user who runs the module, or who became it by sudo, unless told.
    type: str
  parallel:
    description: How many images to promote at once.
    type: int
    default: 3
  copy_timeout:
    description: The most seconds for each run of skopeo or cosign.
    type: float
    default: 3600
  timeout:
    description: The most seconds to wait for a registry's answer to a question.
    type: float
    default: 30
  connect_timeout:
    description: The most seconds to wait for a connection, TLS included.
    type: float
    default: 5
  retries:
    description: How often something is tried again after a broken connection, a time-out, 429 or 5xx, with growing pauses.
    type: int
    default: 3
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details:
      - Everything is asked that is asked otherwise, signatures are verified, and RV(images[].actions) says what would be done.
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in check mode), when in diff mode.
    support: full
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
    details:
      - Unless a tag was moved between the runs.
notes:
  - It needs no root. O(sign.key) and O(record) must be for its user.
  - Registries have no way to set a tag only if it still is what it was. Two runs that promote to one tag within the same few
    milliseconds can both succeed, and the later one wins. What each of them did is in O(record).
  - A registry below a path of its host, which only some clients can use, is refused.
seealso:
  - module: mirrorfleet.registry.image_info
  - module: mirrorfleet.registry.cache_warm
"""

EXAMPLES = r"""
- name: The release is in prod
  mirrorfleet.registry.image_promote:
    images:
      - svc/app:2.7.0-rc3 as svc/app:2.7.0
      - svc/worker:2.7.0@sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    source:
      url: https://ci-snapshots.example.com
    target:
      url: https://prod.example.com
      username: promoter
      password: "{{ vault_promoter_password }}"
    policy:
      signed_by: [/etc/mirrorfleet/ci.pub]
      labels:
        org.opencontainers.image.source: https://git.example.com/*
      max_age: 30d
      sources: [https://ci-snapshots.example.com/svc/**]
    sign:
      key: /etc/mirrorfleet/prod.key
      password: "{{ vault_prod_key_password }}"
    record: /var/log/mirrorfleet/promotions.jsonl
  register: promoted

- name: What was done
  ansible.builtin.debug:
    msg: "{{ item.image }} ({{ item.digest }}): {{ item.actions | join(', ') or 'nothing' }}"
  loop: "{{ promoted.images }}"
  loop_control:
    label: "{{ item.image }}"
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
      sample: svc/app:2.7.0-rc3 as svc/app:2.7.0
    source:
      description: Where it comes from.
      type: str
      sample: ci-snapshots.example.com/svc/app:2.7.0-rc3
    target:
      description: Where it comes to.
      type: str
      sample: prod.example.com/svc/app:2.7.0
    digest:
      description: The digest that is promoted, of the index of an image for several platforms; empty when it is not known.
      type: str
      sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    previous:
      description: The digest that the target's tag had before; empty when there was no such tag.
      type: str
      sample: ""
    history_tag:
      description: The tag that keeps RV(images[].previous), where the tag was moved.
      type: str
      sample: ""
    platforms:
      description: The platforms of its index; empty for an image without one.
      type: list
      elements: str
      sample: [linux/amd64, linux/arm64]
    signed_by:
      description: The key of O(policy.signed_by) whose signature it has, with the first digits of its SHA-256; empty when none is demanded.
      type: str
      sample: ci.pub (sha256:0b1f6c2a9d3e)
    signed:
      description: Whether it was signed with O(sign), or in check mode would be.
      type: bool
      sample: true
    blobs_copied:
      description: How many of its blobs were not in the target's repository.
      type: int
      sample: 3
    bytes_copied:
      description: Their bytes. What another repository of the target has is not sent once more if skopeo knows of it.
      type: int
      sample: 62914560
    actions:
      description: What was done, or in check mode would be, in its order; empty when all of it was there.
      type: list
      elements: str
      sample:
        - copy it (3 blobs, 62914560 bytes)
        - bring the signatures of sha256:2d1b2f0e9a5f…
        - sign it with the target's key
        - set the tag 2.7.0
    changed:
      description: Whether something was done, or in check mode would be.
      type: bool
      sample: true
    error:
      description: Why it was not promoted, and what to do; empty when it was. RV(images[].actions) then holds what was to be done.
      type: str
      sample: ""
    seconds:
      description: The seconds that it took. Others were promoted meanwhile.
      type: float
      sample: 0.812
counts:
  description: How many C(images) there are, how many were C(promoted), or in check mode would be, and how many C(failed).
  returned: always, unless nothing was begun
  type: dict
  sample: {"images": 2, "promoted": 2, "failed": 0}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_promote import failure, promote


def main() -> None:
    registry = {
        "type": "dict",
        "required": True,
        "options": {
            "url": {"type": "str", "required": True},
            "username": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "ca_certificate": {"type": "str"},
            "validate_certs": {"type": "bool", "default": True},
        },
        "required_together": [("username", "password")],
    }
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "str", "required": True},
            "source": registry,
            "target": registry,
            "policy": {
                "type": "dict",
                "default": {},
                "options": {
                    "signed_by": {"type": "list", "elements": "str", "default": []},
                    "labels": {"type": "dict", "default": {}},
                    "max_age": {"type": "str", "default": ""},
                    "sources": {"type": "list", "elements": "str", "default": []},
                },
            },
            "sign": {
                "type": "dict",
                "options": {
                    "key": {"type": "path", "no_log": False},
                    "key_text": {"type": "str", "no_log": True},
                    "password": {"type": "str", "no_log": True, "default": ""},
                },
                "required_one_of": [("key", "key_text")],
                "mutually_exclusive": [("key", "key_text")],
            },
            "force": {"type": "bool", "default": False},
            "record": {"type": "path"},
            "promoted_by": {"type": "str"},
            "parallel": {"type": "int", "default": 3},
            "copy_timeout": {"type": "float", "default": 3600},
            "timeout": {"type": "float", "default": 30},
            "connect_timeout": {"type": "float", "default": 5},
            "retries": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    given = {name: value for name, value in module.params.items() if value is not None}
    for name in ("source", "target"):
        given[name] = {key: value for key, value in given[name].items() if value is not None}
    try:
        report = promote(dry=module.check_mode, **given)
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    changed, why = report["counts"]["promoted"] > 0, failure(report)
    tags = [each for each in report["images"] if each["previous"] != each["digest"] and not each["error"]]
    diff = [{"before_header": each["target"], "after_header": each["target"], "before": each["previous"], "after": each["digest"]} for each in tags]
    if why:
        module.fail_json(msg=why, changed=changed, diff=diff, **report)
    module.exit_json(changed=changed, diff=diff, **report)


if __name__ == "__main__":
    main()
