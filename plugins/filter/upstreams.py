# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The filter that turns mirror_upstreams into what templates use."""

from __future__ import annotations

DOCUMENTATION = r"""
name: upstreams
short_description: Turn mirror_upstreams into the form that templates use
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - Checks what an operator wrote in C(mirror_upstreams) and completes it with defaults and derived values, the ports among them.
  - Whatever is wrong is said at once, each line with the upstream, the key, the value and what to write instead. Passwords are never shown.
options:
  _input:
    description:
      - The value of C(mirror_upstreams).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show where docker hosts find each upstream
  ansible.builtin.debug:
    msg: "{{ dict(upstreams | map(attribute='name') | zip(upstreams | map(attribute='ports.edge'))) }}"
  vars:
    upstreams: "{{ mirror_upstreams | mirrorfleet.registry.upstreams }}"
    mirror_upstreams:
      - name: dockerhub
        url: https://registry-1.docker.io
        port: 5001
        docker_hub: true
"""

RETURN = r"""
_value:
  description:
    - The upstreams in the order they were written.
  type: list
  elements: dict
  contains:
    name:
      description: The name of the upstream.
      type: str
      sample: central
    url:
      description: Scheme and host, without a path.
      type: str
      sample: https://artifactory.example.com:8443
    host:
      description: The value of the C(Host) header, with the port only when it is not the scheme's own.
      type: str
      sample: artifactory.example.com:8443
    server:
      description: Where to connect.
      type: dict
      contains:
        address:
          description: Host name or address, without brackets.
          type: str
          sample: artifactory.example.com
        port:
          description: TCP port.
          type: int
          sample: 8443
        tls:
          description: Whether TLS is spoken there.
          type: bool
    path_prefix:
      description: What stands before C(/v2/) at the upstream, or an empty string.
      type: str
      sample: /artifactory/api/docker/docker-local
    username:
      description: The user name, or an empty string.
      type: str
    password:
      description: The password, or an empty string.
      type: str
    auth:
      description: V(none), V(basic) or V(bearer).
      type: str
    basic_authorization:
      description: The value of the C(Authorization) header where RV(_value[].auth=basic), else an empty string.
      type: str
    token:
      description: The token endpoint where RV(_value[].auth=bearer), else null.
      type: dict
      contains:
        realm:
          description: The URL of the token endpoint.
          type: str
          sample: https://auth.docker.io/token
        service:
          description: The service that a token is asked for.
          type: str
          sample: registry.docker.io
        host:
          description: The value of the C(Host) header.
          type: str
          sample: auth.docker.io
        server:
          description: Where to connect, like RV(_value[].server).
          type: dict
        path:
          description: The path of the URL.
          type: str
          sample: /token
    redirects:
      description: Where the upstream may send a client for a blob.
      type: list
      elements: dict
      contains:
        scheme:
          description: V(https) or V(http).
          type: str
        host:
          description: The host as a C(Location) header names it, with the port only when it is not the scheme's own.
          type: str
          sample: storage.example.com
        server:
          description: Where to connect, like RV(_value[].server).
          type: dict
    validate_certs:
      description: Whether the upstream's certificate is verified.
      type: bool
    ca_cert:
      description: PEM text of the CA that signed the upstream's certificate, or an empty string for the system's CAs.
      type: str
    docker_hub:
      description: Whether it becomes one of the docker hosts' C(registry-mirrors).
      type: bool
    canary:
      description: A small image that is there, with its tag or digest.
      type: str
      sample: library/hello-world:latest
    wan_bytes_per_second:
      description: The most that a mirror host takes from it, in bytes a second; 0 for no limit.
      type: int
    ports:
      description: The TCP ports of the upstream on a mirror host. All but RV(_value[].ports.edge) listen on loopback.
      type: dict
      contains:
        edge:
          description: Where docker hosts find the upstream.
          type: int
          sample: 5000
        cache:
          description: Where the cache listens.
          type: int
          sample: 15000
        debug:
          description: Where the cache answers with its figures.
          type: int
          sample: 16000
        coalescer:
          description: Where the coalescer listens.
          type: int
          sample: 17000
        front:
          description: Where the rewrite front listens.
          type: int
          sample: 18000
"""

from typing import Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import Upstream, normalise


def upstreams(value: object) -> list[Upstream]:
    """The normalised form of mirror_upstreams."""
    try:
        return normalise(value)
    except RegistryFleetError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """The filters of this file."""
        return {"upstreams": upstreams}
