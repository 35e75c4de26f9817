# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What pytest needs when it is started by hand: playbooks that tests run find this checkout by its collection's name."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("ANSIBLE_COLLECTIONS_PATH", str(Path(__file__).resolve().parent.parent / ".collections"))
