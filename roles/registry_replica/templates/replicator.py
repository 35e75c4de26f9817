# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Runs the replicator from the library beside this file, whatever else is installed."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from ansible_collections.mirrorfleet.registry.plugins.module_utils.replicator import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
