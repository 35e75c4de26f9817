# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils import daemon_json
from ansible_collections.mirrorfleet.registry.plugins.module_utils.daemon_json import (
    RESTART,
    UNSET,
    DaemonConfigError,
    Document,
    Owned,
    Record,
    merge,
    needed,
    redact,
    same,
    secrets_in,
)

MIRROR = "https://mirror.zagreb.example.com:5001"

SPACE = st.text(" \t\n", max_size=3)
NUMBERS = st.sampled_from(["0", "-0", "1.0", "1e3", "1E+3", "10", "0.10", "12345678901234567890"])
STRINGS = st.text(max_size=6).map(json.dumps) | st.sampled_from(['"\\u00fc"', '"a\\/b"', '"ü"', '"}"', '","'])
VALUES = st.recursive(
    NUMBERS | STRINGS | st.sampled_from(["true", "false", "null"]),
    lambda inner: st.tuples(SPACE, st.lists(inner, max_size=3)).map(lambda p: "[" + p[0] + ("," + p[0]).join(p[1]) + "]")
    | st.dictionaries(STRINGS, inner, max_size=3).map(lambda d: "{" + ", ".join(f"{k}:{v}" for k, v in d.items()) + "}"),
    max_leaves=6,
)
# Keys of our own and others, as an operator may have spelled them.
KEYS = st.sampled_from(["debug", "registry-mirrors", "log-driver", "max-concurrent-downloads", "hosts", "x", "", "ü", 'quo"te'])


@st.composite
def texts(draw: Any) -> str:
    """Objects in every spelling that JSON allows."""
    members = draw(st.dictionaries(KEYS, VALUES, max_size=5))
    if "registry-mirrors" in members:
        members["registry-mirrors"] = json.dumps(draw(st.lists(st.sampled_from(["https://a", "http://b/", MIRROR]), unique=True, max_size=3)))
    style = draw(st.sampled_from(["lines", "one line", "any"]))
    parts = []
    for key, value in members.items():
        if style == "lines":
            parts.append(f"\n    {json.dumps(key)}: {value}")
        elif style == "one line":
            parts.append(f"{json.dumps(key)}: {value}" if not parts else f" {json.dumps(key)}: {value}")
        else:
            parts.append(f"{draw(SPACE)}{json.dumps(key)}{draw(SPACE)}:{draw(SPACE)}{value}{draw(SPACE)}")
    end = "\n" if style == "lines" and parts else draw(SPACE) if style == "any" else ""
    return draw(SPACE) + "{" + ",".join(parts) + end + "}" + draw(SPACE)


def bytes_of_members(document: Document) -> dict[str, Any]:
    return {member.key: document.raw(member.key) for member in document.members}


@given(texts())
def test_reads_what_json_reads(text: str) -> None:
    assert same(Document(text).values(), json.loads(text))


@given(texts(), KEYS, st.one_of(st.booleans(), st.integers(), st.lists(st.text(max_size=4)), st.dictionaries(st.text(max_size=3), st.booleans())))
def test_set_changes_one_member_and_nothing_else(text: str, key: str, value: Any) -> None:
    document = Document(text)
    before = bytes_of_members(document)
    document.set(key, value)
    assert json.loads(document.text or "") == {**json.loads(text), key: value}
    after = bytes_of_members(document)
    assert list(after) == [*before, *([key] if key not in before else [])]
    assert all(after[other] == raw for other, raw in before.items() if other != key)
    if before:
        # Around the member every byte stays: what comes before it and what comes after.
        first = Document(text).members[-1] if key not in before else next(m for m in Document(text).members if m.key == key)
        assert document.text is not None
        assert document.text.startswith(text[:first.end] if key not in before else text[:first.value_start])
        assert document.text.endswith(text[first.end:])


@given(texts(), KEYS)
def test_a_new_member_can_be_taken_out_to_the_byte(text: str, key: str) -> None:
    document = Document(text)
    if key in document or not document.members:
        return
    document.set(key, [MIRROR])
    document.delete(key)
    assert document.text == text


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "registry-mirrors": st.lists(st.sampled_from([MIRROR, "https://c:1", "http://b"]), max_size=3),
        "debug": st.booleans(),
        "log-driver": st.sampled_from(["local", "journald"]),
        "x": st.integers(),
    },
)


@given(texts(), OPTIONS)
def test_merge_is_idempotent_and_can_be_undone_to_the_byte(text: str, options: dict[str, Any]) -> None:
    document = Document(text)
    before = json.loads(text)
    owned = merge(document, {}, options, False, lambda key: True)
    merged = document.text
    result = json.loads(merged or "")
    for key, value in options.items():
        if key == "registry-mirrors":
            theirs = before.get(key, [])
            assert {element.rstrip("/") for element in value} <= {element.rstrip("/") for element in result.get(key, [])}
            assert [element for element in result.get(key, []) if element in theirs] == theirs
        else:
            assert same(result[key], value)
    assert all(same(result[key], value) for key, value in before.items() if key not in options)

    assert merge(document, owned, options, False, lambda key: True) == owned
    assert document.text == merged

    assert merge(document, owned, {}, True, lambda key: True) == {}
    assert document.text == text or (not before and json.loads(document.text or "") == {})


@given(texts(), OPTIONS, OPTIONS)
def test_what_is_no_longer_wanted_is_put_back(text: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    document = Document(text)
    owned = merge(document, {}, first, False, lambda key: True)
    owned = merge(document, owned, second, False, lambda key: True)
    direct = Document(text)
    merge(direct, {}, second, False, lambda key: True)
    assert document.values() == direct.values()
    merge(document, owned, {}, True, lambda key: True)
    assert document.values() == json.loads(text)


def test_layouts_are_kept() -> None:
    lines = '{\n\t"debug": true,\n\t"dns": ["10.0.0.1"]\n}\n'
    document = Document(lines)
    document.set("registry-mirrors", [MIRROR])
    document.set("dns", ["10.0.0.2"])
    assert document.text == f'{{\n\t"debug": true,\n\t"dns": ["10.0.0.2"],\n\t"registry-mirrors": [\n\t\t"{MIRROR}"\n\t]\n}}\n'

    for text, after in (
        ('{"debug":true}', '{"debug":true,"x":1}'),
        ('{"debug": true}\n', '{"debug": true, "x": 1}\n'),
        ('{ "debug" : true }', '{ "debug" : true, "x" : 1 }'),
        ('{\r\n "debug": true\r\n}\r\n', '{\r\n "debug": true,\r\n "x": 1\r\n}\r\n'),
        ("{}", '{\n  "x": 1\n}'),
        ("", '{\n  "x": 1\n}\n'),
        (None, '{\n  "x": 1\n}\n'),
        ('\ufeff{"debug":true}', '\ufeff{"debug":true,"x":1}'),
    ):
        document = Document(text)
        document.set("x", 1)
        assert document.text == after


@pytest.mark.parametrize(
    ("text", "line", "column", "why"),
    [
        ('{\n  // the mirror\n  "debug": true\n}', 2, 3, "comments"),
        ('{\n  "debug": true, # on\n "x": 1}', 2, 18, "comments"),
        ('{\n  "debug": true,\n}', 3, 1, "a comma before the closing bracket"),
        ('{"hosts": [1,]}', 1, 14, "a comma before the closing bracket"),
        ('{"debug": true', 1, 15, "closing brace"),
        ('{"debug" true}', 1, 10, "colon"),
        ("{'debug': true}", 1, 2, "double quotes"),
        ('{"debug": True}', 1, 11, "Expecting value"),
        ('{"debug": NaN}', 1, 11, "no JSON reader"),
        ('{"debug": true}\n}', 2, 1, "text after"),
        ('{"debug": true,\n "debug": false}', 2, 2, '"debug" is there twice'),
        ("[1]", 1, 1, "one object"),
        ("{" + '"a":' + "[" * 100000, 1, 6, "no JSON reader"),
    ],
)
def test_invalid_json_is_told_with_its_place(text: str, line: int, column: int, why: str) -> None:
    with pytest.raises(DaemonConfigError) as caught:
        Document(text, "/etc/docker/daemon.json")
    message = str(caught.value)
    assert f"/etc/docker/daemon.json is not valid JSON at line {line}, column {column}:" in message
    assert why in message


def test_operators_elements_stay_and_ours_are_first() -> None:
    text = '{"registry-mirrors": ["https://theirs/"], "insecure-registries": ["10.0.0.0/8"]}'
    document = Document(text)
    owned = merge(document, {}, {"registry-mirrors": [MIRROR], "insecure-registries": ["mirror:5000"]}, False, lambda key: False)
    assert document.values() == {"registry-mirrors": [MIRROR, "https://theirs/"], "insecure-registries": ["10.0.0.0/8", "mirror:5000"]}
    assert owned["registry-mirrors"] == Owned('["https://theirs/"]', [MIRROR])
    # An element the operator adds meanwhile stays when ours goes.
    document.set("registry-mirrors", ["https://new", MIRROR, "https://theirs/"])
    merge(document, owned, {}, True, lambda key: False)
    assert document.values() == {"registry-mirrors": ["https://new", "https://theirs/"], "insecure-registries": ["10.0.0.0/8"]}


def test_an_element_that_was_there_is_not_ours() -> None:
    document = Document(json.dumps({"registry-mirrors": [MIRROR + "/"]}))
    assert merge(document, {}, {"registry-mirrors": [MIRROR]}, False, lambda key: False) == {}
    assert document.values() == {"registry-mirrors": [MIRROR + "/"]}


def test_a_reload_clears_before_the_key_goes() -> None:
    document = Document('{"x": 1}')
    options = {"registry-mirrors": [MIRROR], "debug": True, "shutdown-timeout": 60, "log-driver": "local", "max-concurrent-downloads": 9}
    owned = merge(document, {}, options, False, lambda key: False)
    # The daemon still has ours: it is cleared with what a reload looks at, the rest goes at once.
    owned = merge(document, owned, {}, False, lambda key: False)
    cleared = {"x": 1, "registry-mirrors": [], "debug": False, "shutdown-timeout": 15}
    assert document.values() == cleared
    # Present is done with that, also when the daemon has forgotten.
    assert merge(document, owned, {}, False, lambda key: True) == owned
    assert document.values() == cleared
    # Absent takes it out as soon as the daemon has forgotten, and not before.
    assert merge(document, owned, {}, True, lambda key: False) == owned
    assert document.values() == cleared
    assert merge(document, owned, {}, True, lambda key: True) == {}
    assert document.text == '{"x": 1}'


def test_what_the_operator_changed_by_hand_is_theirs() -> None:
    document = Document('{"log-driver": "journald"}')
    owned = merge(document, {}, {"log-driver": "local", "debug": True}, False, lambda key: False)
    document.set("log-driver", "syslog")
    document.delete("debug")
    assert merge(document, owned, {}, True, lambda key: False) == {}
    assert document.values() == {"log-driver": "syslog"}


def test_a_list_key_that_is_no_list_is_an_error() -> None:
    with pytest.raises(DaemonConfigError, match="list of strings"):
        merge(Document('{"registry-mirrors": "https://a"}'), {}, {"registry-mirrors": [MIRROR]}, False, lambda key: False)


@pytest.mark.parametrize(
    ("key", "before", "after", "needs"),
    [
        ("registry-mirrors", [], ["https://a"], "reload"),
        ("registry-mirrors", ["https://a"], UNSET, "restart"),
        ("max-concurrent-downloads", 9, UNSET, "reload"),
        ("default-ipc-mode", "shareable", UNSET, "restart"),
        ("default-ipc-mode", UNSET, "private", "reload"),
        ("log-driver", UNSET, "local", "restart"),
        ("features", UNSET, {"buildkit": True}, "reload"),
        ("features", {"buildkit": True}, {"buildkit": True, "containerd-snapshotter": True}, "restart"),
        ("features", {"containerd-snapshotter": True}, UNSET, "restart"),
    ],
)
def test_needed(key: str, before: Any, after: Any, needs: str) -> None:
    assert needed(key, before, after) == needs
    assert daemon_json.RELOADED["default-ipc-mode"] is RESTART


@pytest.mark.parametrize(
    ("mirror", "major", "why"),
    [
        ("mirror:5000", None, "begin with"),
        ("ftp://mirror", None, "begin with"),
        ("https:mirror", None, "begin with"),
        ("https://", None, "host"),
        ("https:///v2", None, "host"),
        ("https://mirror:99999", None, "host"),
        ("https://mirror:port", None, "host"),
        ("https://mir ror", None, "host"),
        ("https://mirror?a=b", None, "query"),
        ("https://mirror/#", None, "fragment"),
        ("https://mirror/hub", 24, "path"),
    ],
)
def test_a_mirror_that_docker_refuses(mirror: str, major: int | None, why: str) -> None:
    with pytest.raises(DaemonConfigError, match=why):
        daemon_json.check_mirror(mirror, major)


def test_a_mirrors_password_is_not_shown() -> None:
    with pytest.raises(DaemonConfigError) as caught:
        daemon_json.check_mirror("https://reader:hunter2@mirror:5001", None)
    assert "hunter2" not in str(caught.value)
    assert "…@mirror:5001" in str(caught.value)


@pytest.mark.parametrize("mirror", [MIRROR, MIRROR + "/", "http://10.0.0.1:5001", "https://[fd00::1]:5001", "https://mirror"])
def test_a_mirror_that_docker_takes(mirror: str) -> None:
    daemon_json.check_mirror(mirror, 20)
    daemon_json.check_mirror(mirror.rstrip("/") + "/hub", 25)


@pytest.mark.parametrize(
    "options",
    [
        {"insecure-registries": ["http://mirror:5000"]},
        {"insecure-registries": ["-mirror"]},
        {"insecure-registries": ["10.0.0.0/33"]},
        {"insecure-registries": "mirror:5000"},
        {"authorization-plugins": ["a"]},
        {"debug": None},
    ],
)
def test_options_that_break_a_daemon(options: dict[str, Any]) -> None:
    with pytest.raises(DaemonConfigError, match=next(iter(options))):
        daemon_json.check_options(options, 26)
    daemon_json.check_options({"insecure-registries": ["mirror:5000", "10.0.0.0/8", "fd00::/8", "[fd00::1]:5000", "mirror"]}, 26)


def test_only_certificates_are_taken(tmp_path: Any) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=ca", "-keyout", "key", "-out", "ca"],
        cwd=tmp_path, check=True, capture_output=True,
    )
    certificate = (tmp_path / "ca").read_text()
    daemon_json.check_certificates({"mirror:5000": certificate})
    for registry, text in (("mirror:5000", ""), ("mirror:5000", "x"), ("mirror:5000", certificate + (tmp_path / "key").read_text()), ("../x", certificate)):
        with pytest.raises(DaemonConfigError):
            daemon_json.check_certificates({registry: text})


def test_secrets_are_not_shown() -> None:
    text = '{"proxies": {"http-proxy": "http://me:hunter2@proxy:3128"}, "log-opts": {"splunk-token": "hun\\"ter3", "tag": "x"}}'
    shown = redact(text)
    assert "hunter2" not in shown
    assert "ter3" not in shown
    assert json.loads(shown)["log-opts"]["tag"] == "x"
    assert secrets_in(json.loads(text)) == ["http://me:hunter2@proxy:3128", 'hun"ter3']
    assert redact(None) == ""


def test_backups_keep_owner_and_mode_and_are_bounded(tmp_path: Any) -> None:
    path = tmp_path / "daemon.json"
    assert daemon_json.back_up(str(path)) == ""
    (tmp_path / "daemon.json.mine~").write_text("operator's")
    made = []
    for number in range(7):
        path.unlink(missing_ok=True)
        path.write_text(str(number))
        path.chmod(0o640)
        made.append(daemon_json.back_up(str(path)))
    assert daemon_json.backups(str(path)) == made[-5:]
    assert [Path(backup).read_text() for backup in made[-5:]] == ["2", "3", "4", "5", "6"]
    assert os.stat(made[-1]).st_mode & 0o777 == 0o640
    assert (tmp_path / "daemon.json.mine~").exists()


def test_a_record_is_read_as_it_was_written(tmp_path: Any) -> None:
    path = tmp_path / "record.json"
    record = Record(
        "/etc/docker/daemon.json",
        {"debug": Owned(None, True), "registry-mirrors": Owned("[ ]", [MIRROR])},
        {"mirror:5000": Owned(None, "PEM\n")},
        ["/etc/docker/certs.d"],
        {"debug": {"needs": "reload", "daemon": "a/1/2", "reloaded": ""}},
        None,
    )
    path.write_text(record.dump())
    assert Record.load(str(path), "/etc/docker/daemon.json") == record
    with pytest.raises(DaemonConfigError, match=r"is about /etc/docker/daemon.json, not /etc/other.json"):
        Record.load(str(path), "/etc/other.json")
    path.write_text("{}")
    with pytest.raises(DaemonConfigError, match="damaged"):
        Record.load(str(path), "/etc/docker/daemon.json")
    assert not Record.load(str(tmp_path / "none"), "/etc/docker/daemon.json").holds
