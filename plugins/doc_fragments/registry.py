# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The options of modules that ask a registry; their types and defaults are in module_utils/options.py."""

from __future__ import annotations


class ModuleDocFragment:
    """What Ansible loads."""

    DOCUMENTATION = r"""
options:
  username:
    description: The user, for a registry that asks for one. It is sent only when the registry asks.
    type: str
  password:
    description: The user's password or token.
    type: str
  ca_certificate:
    description:
      - The certificate of the authority that signed the registry's, as PEM text or as the path of a file on the host.
        It is trusted beside the system's authorities.
    type: str
  validate_certs:
    description: Whether the registry's certificate must be valid.
    type: bool
    default: true
"""

    ADDRESS = r"""
options:
  address:
    description:
      - The host name or address to connect to instead of the host in O(url), so that one of several mirror hosts behind a name
        can be asked, V(127.0.0.1) on the mirror host itself. The certificate must be for the host in O(url) still.
    type: str
"""

    PATIENCE = r"""
options:
  timeout:
    description:
      - The most seconds to wait for the next byte. It does not bound a transfer, which takes as long as bytes come.
    type: float
    default: 60
  connect_timeout:
    description: The most seconds to wait for a connection, TLS included.
    type: float
    default: 5
  retries:
    description:
      - How often a manifest or blob is asked for again after a broken connection, a time-out, 429 or 5xx, with growing pauses
        of 0.25 to 8 seconds, or after the seconds that C(Retry-After) asks for, up to 60. A blob goes on at the byte where it broke.
    type: int
    default: 3
"""
