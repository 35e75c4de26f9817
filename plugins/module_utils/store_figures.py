# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the guard keeps of a cache from run to run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import load

STATE = "guard.json"
# Hourly figures of a week.
SAMPLES = 168
COUNTERS = ("evicted_images", "evicted_bytes", "scrubbed_blobs", "scrubbed_bytes", "scrub_findings", "purged_uploads")
_DAY = 86400.0


@dataclass
class Figures:
    """What is known of one cache: .mirrorfleet/guard.json. samples: [seconds since 1970, bytes of its file system in use], the oldest first.

    scrub_owed: bytes of this hour's share that are still to be read
    """

    samples: list[list[float]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    store_bytes: int = 0
    scrubbed_at: float = 0.0
    scrub_owed: int = 0
    turned_at: float = 0.0

    @classmethod
    def of(cls, root: str) -> Figures:
        """What was kept; what can't be understood begins anew."""
        state = load(root, STATE)
        try:
            return cls(
                [[float(at), float(used)] for at, used in state["samples"]][-SAMPLES:],
                {name: int(state["counters"].get(name, 0)) for name in COUNTERS},
                int(state["store_bytes"]),
                float(state["scrubbed_at"]),
                max(0, int(state.get("scrub_owed", 0))),
                float(state["turned_at"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return cls()

    def days_until_full(self, free: int) -> float | None:
        """At the rate since the oldest sample; None where that is not known yet, or nothing grows."""
        if len(self.samples) < 2:
            return None
        (first, used_first), (last, used_last) = self.samples[0], self.samples[-1]
        grown = used_last - used_first
        return round(free / grown * (last - first) / _DAY, 1) if grown > 0 and last > first else None
