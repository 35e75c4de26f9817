# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark's README says is what its results say, and its goals are judged from the figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
MODULES = ("images", "programs", "pull", "render", "report", "scenarios", "setups", "wan")


@pytest.fixture
def pull(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pull as module

    yield module
    # Their names are too plain to stay.
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_tables_are_those_of_the_results(pull: ModuleType) -> None:
    document = json.loads((BENCHMARKS / "results" / "latest.json").read_text())
    readme = (BENCHMARKS / "README.md").read_text()
    assert pull.report.with_tables(readme, document) == readme
    document["cold"][0]["amplification"] = 7.654
    assert "| 7.654 |" in pull.report.with_tables(readme, document)


def test_scenarios_are_chosen_by_their_beginnings(pull: ModuleType) -> None:
    names = [*pull.plan(False), *pull.WARM_SCENARIOS]
    assert pull.chosen(["warm", "mirrors-2"], names) == ["mirrors-2", "warm-blobs", "warm-manifests"]
    assert pull.chosen(["cold-1"], names) == ["cold-1"] and pull.chosen(["cold"], names) == ["cold-1", "cold-10", "cold-50"]
    assert pull.chosen([], names) == names
    with pytest.raises(pull.BenchmarkError, match="--only hot: there is no such scenario; choose of cold-1"):
        pull.chosen(["warm", "hot"], names)


def test_a_comparison_is_made_round_by_round(pull: ModuleType) -> None:
    def warm(setup: str, each: list[float]) -> Any:
        return pull.report.Warm("manifest by digest", setup, False, 8, 100.0, 0.0, 0.0, 0.0, each)

    # The machine was slow for both in the first round; what a set-up did in one is not held against the other in another.
    rows = [warm("ours", [11, 110, 120]), warm("classic", [10, 100, 130])]
    assert pull.report.goals([], rows) == [("warm manifest by digest: requests a second against distribution alone", ">= 1", "1.10", True)]
    rows = [warm("ours", [9, 90, 200]), warm("classic", [10, 100, 100])]
    assert pull.report.goals([], rows)[0][2:] == ("0.90", False)


@pytest.mark.parametrize(("setup", "met"), [("ours", False), ("ours-2", True), ("ours-redirect", True)])
def test_several_mirror_hosts_may_cost_a_little_more(pull: ModuleType, setup: str, met: bool) -> None:
    row = pull.report.Cold("any", setup, "big", 50, 0.0, 0.0, amplification=1.015, distinct_bytes=220_000_000)
    assert pull.report.goals([row], [])[0][3] is met
