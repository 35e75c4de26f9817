# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Reading what HAProxy's runtime socket says. A real HAProxy answers in tests/unit/roles/test_haproxy_front.py."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.haproxy import CLASSES, ask, servers, start_time, uptime, wan_bytes_by_upstream

NUMBERS = ["lastchg", "bout", "bin", "stot", "scur", "econ", "eresp", "wretr", "chkfail", "check_code", "check_duration", *(f"hrsp_{each}" for each in CLASSES)]
TEXTS = ["status", "check_status", "check_desc", "last_chk"]

# What "show stat" can hold in a text column: anything on one line.
text = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")))
count = st.integers(0, 2**63)


def table(columns: list[str], *rows: dict[str, object]) -> str:
    """A table as HAProxy writes it: the header after "# ", a comma at the end of each line, quotes where needed, an empty line last."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["pxname", "svname", *columns, ""], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return "# " + stream.getvalue() + "\n"


@given(st.permutations(NUMBERS + TEXTS), st.lists(st.tuples(st.fixed_dictionaries({}, optional=dict.fromkeys(NUMBERS, count)),
                                                            st.fixed_dictionaries({}, optional=dict.fromkeys(TEXTS, text)))))
def test_columns_are_found_by_name(columns: list[str], rows: list[tuple[dict[str, int], dict[str, str]]]) -> None:
    found = servers(table(columns, *({"pxname": f"u{number}", "svname": "upstream", **ints, **texts} for number, (ints, texts) in enumerate(rows))))
    assert [each["name"] for each in found] == [f"u{number}" for number in range(len(rows))]
    for (ints, texts), each in zip(rows, found):
        assert each["wan_bytes"] == ints.get("bout", 0)
        assert each["sent_bytes"] == ints.get("bin", 0)
        assert each["errors"]["connections"] == ints.get("econ", 0)
        assert each["responses"] == {name: ints.get(f"hrsp_{name}", 0) for name in CLASSES}
        assert each["status"] == (texts.get("status") or "unknown")
        if each["check"] is not None:
            assert each["check"]["status"] == (ints.get("check_code") or None)
            assert texts.get("last_chk", "") in each["check"]["text"]


@given(st.text())
def test_anything_else_is_refused_or_read(answer: str) -> None:
    for read in (servers, uptime):
        with contextlib.suppress(RegistryFleetError):
            read(answer)


def test_when_it_started() -> None:
    """2.6 tells how long ago, 3.0 when."""
    assert start_time("Name: HAProxy\nUptime_sec: 23\nStart_time_sec: 1795278732\n", 1795278756.9) == 1795278732
    assert start_time("Name: HAProxy\nUptime_sec: 23\n", 1795278756.9) == 1795278732
    with pytest.raises(RegistryFleetError, match="no Uptime_sec"):
        start_time("Start_time_sec: x", 1795278756.9)


def test_wan_bytes_are_an_upstreams() -> None:
    names = ("a-b", "a-b_tags", "a-b_token", "a-b_redirect_2", "a-b_sources", "a")
    rows = ({"pxname": name, "svname": "sibling-x" if "sources" in name else "upstream", "bout": 10**number} for number, name in enumerate(names))
    assert wan_bytes_by_upstream(servers(table(["bout"], *rows))) == {"a-b": 1111, "a": 100000}


@pytest.mark.parametrize("status, healthy", [
    ("UP", True), ("UP 1/2", True), ("no check", True), ("DOWN", False), ("DOWN 1/2", False), ("MAINT (resolution)", False), ("", False),
])
def test_health(status: str, healthy: bool) -> None:
    assert servers(table(["status"], {"pxname": "a", "svname": "upstream", "status": status}))[0]["healthy"] is healthy


def test_only_servers_count() -> None:
    rows = ({"pxname": "a", "svname": name, "bout": 1} for name in ("FRONTEND", "upstream", "BACKEND"))
    assert [each["source"] for each in servers(table(["bout"], *rows))] == ["upstream"]


def test_a_check_that_is_under_way_shows_the_one_before() -> None:
    row = {"pxname": "a", "svname": "upstream", "check_status": "* L7STS", "check_code": 502, "last_chk": "Bad Gateway", "check_duration": 7}
    check = servers(table(["check_status", "check_code", "check_duration", "check_desc", "last_chk"], row))[0]["check"]
    assert check == {"result": "L7STS", "status": 502, "milliseconds": 7, "text": "Bad Gateway"}


def test_a_broken_number_is_an_error() -> None:
    with pytest.raises(RegistryFleetError, match="has 'x' as bout"):
        servers(table(["bout"], {"pxname": "a", "svname": "upstream", "bout": "x"}))


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(RegistryFleetError, match=r"admin\.sock: .*Is mirrorfleet-front\.service running"):
        ask(str(tmp_path / "admin.sock"), "show info")
