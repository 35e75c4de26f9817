# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils import files
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

DAEMON = 1  # a user and group of every Debian


def test_write_sets_content_owner_and_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "file"
    old = os.umask(0o077)
    try:
        files.write(str(path), b"content", DAEMON, DAEMON, 0o664)
    finally:
        os.umask(old)
    assert files.look(str(path)) == (b"content", (DAEMON, DAEMON, 0o664))
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {b"a" * 300_000, b"b" * 400_000}
    files.write(str(path), b"a" * 300_000)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _round in range(20):
        for content in contents:
            files.write(str(path), content)
    done.set()
    reader.join()
    assert seen <= contents


def test_what_a_killed_run_left_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    other = tmp_path / "other"
    other.write_text("not to be touched")
    # The worst that can be left: a link that the next write must not follow.
    os.symlink(other, files.temporary(str(path)))
    files.write(str(path), b"content")
    assert path.read_bytes() == b"content" and not path.is_symlink()
    assert other.read_text() == "not to be touched"
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("target")
    link.symlink_to(target)
    seen = files.look(str(link))
    assert seen is not None and seen.content is None
    files.write(str(link), b"content")
    assert not link.is_symlink() and target.read_text() == "target"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OverflowError):
        files.write(str(path), b"new", uid=-5)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_look_at_nothing_and_at_a_directory(tmp_path: Path) -> None:
    assert files.look(str(tmp_path / "no" / "file")) is None
    with pytest.raises(RegistryFleetError, match="is a directory"):
        files.look(str(tmp_path))


def test_what_is_put_aside_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "[file]"  # with characters that mean something in a pattern
    path.write_text("foreign")
    os.chown(path, DAEMON, DAEMON)
    path.chmod(0o604)
    before = files.look(str(path))

    backup = files.put_aside(str(path))
    assert files.put_aside(str(path)) == backup, "a second run after a crash makes no second backup"
    files.write(str(path), b"ours")
    assert files.look(backup) == before

    for _twice in range(2):
        files.bring_back(str(path), backup)
        assert files.look(str(path)) == before
    files.discard(backup)
    assert files.look(str(path)) == before and os.listdir(tmp_path) == ["[file]"]


def test_a_link_comes_back_as_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/nowhere")
    backup = files.put_aside(str(link))
    files.write(str(link), b"ours")
    files.bring_back(str(link), backup)
    assert os.readlink(link) == "/nowhere"


def test_names_of_users_and_groups() -> None:
    assert (files.user_id("root"), files.group_id("root"), files.primary_group("root")) == (0, 0, 0)
    assert (files.user_id("4711"), files.group_id("4712")) == (4711, 4712)
    assert (files.user_id("no-such-one"), files.group_id("no-such-one"), files.primary_group("no-such-one")) == (None, None, None)


def test_a_diff_shows_what_changes_and_no_secret() -> None:
    assert files.difference("/a", b"old\n", b"new\n")["before"] == "old\n"
    assert files.difference("/a", None, b"new\n")["before"] == ""
    for before, after in ((b"hunter2", b"hunter3"), (None, b"hunter3"), (b"hunter2", None)):
        shown = files.difference("/a", before, after, secret=True)
        assert "hunter" not in str(shown) and shown["before"] != shown["after"]


def test_owner_group_and_mode_in_words() -> None:
    assert files.describe(files.Attributes(0, 4711, 0o640)) == "owner root, group 4711, mode 0640\n"
    assert "to be created" in files.describe(files.Attributes(None, 0, 0o640))
