# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""On real directories, with the real haproxy and nginx as validators. No systemd is needed: what it says of a unit is data here."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.service_config import (
    KINDS,
    Directory,
    File,
    Layout,
    Result,
    ServiceConfig,
    UnitState,
    Validation,
    Wanted,
    check_platform,
    mask,
    missing_packages,
    needed_action,
    platform,
    unit_file_names,
    unit_states,
    wanted_from,
)

NOTHING: dict[str, list[str]] = {kind: [] for kind in KINDS}


def tree(*roots: Path, times: bool = False) -> dict[str, Any]:
    """Everything below the roots: kind, owner, group, mode, content, and the times if asked."""
    found = {}
    for root in roots:
        for path in [root, *root.rglob("*")]:
            status = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            moment = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino) if times else None
            found[str(path)] = (status.st_uid, status.st_gid, status.st_mode, content, moment)
    return found


class Host:
    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.etc = self.root / "etc"
        self.etc.mkdir(parents=True)
        # Like /run: its times are of no interest, what it holds is.
        self.run = directory / "run"
        self.run.mkdir()
        self.layout = Layout(str(self.root / "state"), str(self.run / "mirrorfleet"), str(self.root / "units"))

    def service(self, name: str = "front", check: bool = False) -> ServiceConfig:
        return ServiceConfig(name, check, self.layout)

    def present(self, wanted: Wanted, name: str = "front", check: bool = False) -> Result:
        return self.service(name, check).present(wanted)

    def absent(self, name: str = "front", check: bool = False) -> Result:
        return self.service(name, check).absent()

    def tree(self, times: bool = False) -> dict[str, Any]:
        return tree(self.root, times=times)

    def path(self, name: str) -> str:
        return str(self.etc / name)

    def wanted(self, *files: File, **more: Any) -> Wanted:
        return Wanted(directories=(Directory(self.path("front"), "daemon", "daemon", 0o750),), files=files, **more)


@pytest.fixture
def host() -> Iterator[Host]:
    # Validators run as another user, whom pytest's own directories keep out.
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        yield Host(Path(root))


def first(host: Host) -> Wanted:
    return host.wanted(
        File(host.path("front/a.cfg"), b"a\n", group="daemon", mode=0o640, secret=True),
        File(host.path("front/maps/b.map"), b"b\n"),
        File(host.path("foreign.cfg"), b"ours\n", mode=0o600),
    )


def second(host: Host) -> Wanted:
    return host.wanted(File(host.path("front/a.cfg"), b"a, changed\n"), File(host.path("front/c.cfg"), b"c\n"))


def put_foreign_file(host: Host) -> None:
    path = host.etc / "foreign.cfg"
    path.write_text("foreign\n")
    os.chown(path, 1, 1)
    path.chmod(0o604)


def test_a_first_run_writes_a_second_changes_nothing(host: Host) -> None:
    result = host.present(first(host))
    assert result.changed
    assert result.files == [host.path("front/a.cfg"), host.path("front/maps/b.map"), host.path("foreign.cfg")]
    assert result.directories == [host.path("front"), host.path("front/maps")]
    after = host.tree()
    assert after[host.path("front")][:3] == (1, 1, 0o40750)
    assert after[host.path("front/a.cfg")][:4] == (0, 1, 0o100640, b"a\n")
    assert after[host.path("front/maps")][:3] == (0, 0, 0o40755)

    before = host.tree(times=True)
    for check in (True, False):
        again = host.present(first(host), check=check)
        assert again == Result()
        assert host.tree(times=True) == before


def test_the_record_is_for_root_alone(host: Host) -> None:
    host.present(first(host))
    after = host.tree()
    assert after[f"{host.layout.state}/records"][2] == 0o40700
    assert after[f"{host.layout.state}/records/front.json"][2] == 0o100600


def test_check_mode_says_what_a_run_then_does_and_touches_nothing(host: Host) -> None:
    put_foreign_file(host)
    for wanted in (first(host), second(host)):
        before = host.tree(times=True)
        expected = host.present(wanted, check=True)
        assert host.tree(times=True) == before
        assert expected.changed
        assert host.present(wanted) == expected
    before = host.tree(times=True)
    expected = host.absent(check=True)
    assert host.tree(times=True) == before
    assert host.absent() == expected


def test_what_is_no_longer_wanted_goes_and_only_that(host: Host) -> None:
    host.present(first(host))
    (host.etc / "front" / "operator.cfg").write_text("keep me\n")
    result = host.present(second(host))
    assert sorted(result.removed) == sorted([host.path("front/maps/b.map"), host.path("front/maps"), host.path("foreign.cfg")])
    assert sorted(os.listdir(host.etc)) == ["front"]
    assert sorted(os.listdir(host.etc / "front")) == ["a.cfg", "c.cfg", "operator.cfg"]
    assert host.present(second(host)) == Result()


def test_what_is_edited_or_removed_by_hand_is_put_right(host: Host) -> None:
    host.present(first(host))
    right = host.tree()
    (host.etc / "front" / "a.cfg").write_text("edited")
    (host.etc / "front" / "maps" / "b.map").unlink()
    (host.etc / "foreign.cfg").chmod(0o666)
    (host.etc / "front").chmod(0o777)
    result = host.present(first(host))
    assert (len(result.files), result.directories) == (3, [host.path("front")])
    assert host.tree() == right


def test_a_file_that_became_a_link_is_a_file_again(host: Host) -> None:
    host.present(first(host))
    outside = host.root / "outside"
    outside.write_text("untouched")
    path = host.etc / "front" / "a.cfg"
    path.unlink()
    path.symlink_to(outside)
    host.present(first(host))
    assert path.read_bytes() == b"a\n" and not path.is_symlink()
    assert outside.read_text() == "untouched"


def test_absent_leaves_what_was_there_before(host: Host) -> None:
    put_foreign_file(host)
    (host.etc / "front").mkdir(mode=0o711)
    (host.etc / "front" / "operator.cfg").write_text("keep me\n")
    before = host.tree()
    host.present(first(host))
    assert len(list(host.etc.glob("foreign.cfg.*.mirrorfleet~"))) == 1
    assert (host.etc / "foreign.cfg").read_bytes() == b"ours\n"
    result = host.absent()
    assert result.changed and host.path("foreign.cfg") in result.removed
    assert host.tree() == before
    assert host.absent() == Result()


def test_a_foreign_file_comes_back_when_ours_is_no_longer_wanted(host: Host) -> None:
    put_foreign_file(host)
    foreign = host.tree()[host.path("foreign.cfg")]
    host.present(first(host))
    host.present(second(host))
    assert host.tree()[host.path("foreign.cfg")] == foreign
    host.absent()
    assert host.tree()[host.path("foreign.cfg")] == foreign


def test_a_file_that_is_already_as_wanted_stays_foreign(host: Host) -> None:
    path = host.etc / "same.cfg"
    path.write_text("same\n")
    path.chmod(0o644)
    before = host.tree()
    assert not host.present(Wanted(files=(File(str(path), b"same\n"),))).changed
    host.absent()
    assert host.tree() == before


def test_a_directory_with_foreign_content_stays_and_is_named(host: Host) -> None:
    host.present(first(host))
    (host.etc / "front" / "store").mkdir()
    result = host.absent()
    assert result.kept == [host.path("front")]
    assert os.listdir(host.etc / "front") == ["store"]
    assert not os.path.exists(host.layout.state)


def test_a_directory_no_longer_wanted_stays_ours_until_it_is_empty(host: Host) -> None:
    data = host.etc / "data"
    wanted = host.wanted(File(host.path("front/a.cfg"), b"a"))
    host.present(replace(wanted, directories=(*wanted.directories, Directory(str(data)))))
    (data / "blob").write_text("stored by the service")
    for _twice in range(2):
        assert not host.present(wanted).changed
    (data / "blob").unlink()
    assert host.present(wanted).removed == [str(data)]
    assert not data.exists()


def test_two_services_share_a_directory_and_the_last_removes_it(host: Host) -> None:
    base = host.etc / "shared"
    host.present(Wanted(files=(File(str(base / "front.cfg"), b""),)), "front")
    host.present(Wanted(files=(File(str(base / "edge.cfg"), b""),)), "edge")
    host.absent("front")
    assert os.listdir(base) == ["edge.cfg"]
    host.absent("edge")
    assert not base.exists() and not os.path.exists(host.layout.state)


def test_a_file_has_one_owner(host: Host) -> None:
    host.present(first(host), "front")
    before = host.tree(times=True)
    with pytest.raises(RegistryFleetError, match=r"a\.cfg belongs to front on this host"):
        host.present(second(host), "edge")
    assert host.tree(times=True) == before


# --- runs that are killed


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Run `act` in a child that kills itself with SIGKILL before its step-th change of the file system; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = step
        changes = ("os.mkdir", "os.rmdir", "os.rename", "os.remove", "os.link", "os.chmod", "os.chown")

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in changes or writes:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            act()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


# Every step of a run is tried; a run that did less than this would not have been tried at all.
FEWEST_STEPS = 10


@pytest.mark.parametrize("then", ["the same again", "something else", "absent"])
def test_a_run_killed_at_any_step_is_finished_by_the_next(tmp_path: Path, then: str) -> None:
    step = 0
    while True:
        step += 1
        root = tmp_path / str(step)
        root.mkdir()
        host = Host(root)
        put_foreign_file(host)
        original = host.tree()
        killed = killed_at(step, lambda: host.present(first(host)))  # noqa: B023
        if then == "the same again":
            host.present(first(host))
            assert (host.etc / "foreign.cfg").read_bytes() == b"ours\n"
            assert (host.etc / "front/a.cfg").read_bytes() == b"a\n"
        elif then == "something else":
            host.present(second(host))
            assert (host.etc / "foreign.cfg").read_bytes() == b"foreign\n"
            assert sorted(os.listdir(host.etc / "front")) == ["a.cfg", "c.cfg"]
        host.absent()
        left = {path for path in host.tree() if path not in original}
        # Before it is in the record, a second name of the foreign file is all that can be left.
        assert host.tree()[host.path("foreign.cfg")] == original[host.path("foreign.cfg")], f"killed at step {step}"
        assert all(path.endswith(".mirrorfleet~") for path in left if not path.startswith(host.layout.state)), f"killed at step {step}"
        assert not any(path.endswith(".json") for path in left), f"killed at step {step}"
        if not killed:
            break
    assert step > FEWEST_STEPS
    assert not left


def test_an_update_killed_at_any_step_loses_nothing(tmp_path: Path) -> None:
    step = 0
    while True:
        step += 1
        root = tmp_path / str(step)
        root.mkdir()
        host = Host(root)
        put_foreign_file(host)
        original = host.tree()
        host.present(first(host))
        killed = killed_at(step, lambda: host.present(second(host)))  # noqa: B023
        host.present(second(host))
        assert sorted(os.listdir(host.etc / "front")) == ["a.cfg", "c.cfg"], f"killed at step {step}"
        host.absent()
        left = set(host.tree()) - set(original)
        assert host.tree()[host.path("foreign.cfg")] == original[host.path("foreign.cfg")], f"killed at step {step}"
        assert all(path.endswith(".mirrorfleet~") for path in left), f"killed at step {step}"
        if not killed:
            break
    assert step > FEWEST_STEPS and not left


def test_a_removal_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    step = 0
    while True:
        step += 1
        root = tmp_path / str(step)
        root.mkdir()
        host = Host(root)
        put_foreign_file(host)
        original = host.tree()
        host.present(first(host))
        killed = killed_at(step, host.absent)
        host.absent()
        left = {path: value for path, value in host.tree().items() if path not in original}
        assert host.tree()[host.path("foreign.cfg")] == original[host.path("foreign.cfg")], f"killed at step {step}"
        assert all(path.endswith(".mirrorfleet~") or path == host.layout.state or path.startswith(host.layout.state + "/") for path in left), f"{step}: {left}"
        if not killed:
            break
    assert step > FEWEST_STEPS / 2 and not left


# --- validators


def test_haproxy_refuses_and_nothing_is_changed(host: Host) -> None:
    good = b"defaults\n    mode http\n    timeout client 5s\n    timeout server 5s\n    timeout connect 5s\nfrontend f\n    bind 127.0.0.1:1\n"
    haproxy = Validation(host.path("front"), ("haproxy", "-c", "-f", "{directory}/haproxy.cfg"), "daemon")

    def wanted(content: bytes) -> Wanted:
        return host.wanted(File(host.path("front/haproxy.cfg"), content, "root", "daemon", 0o640), validate=(haproxy,))

    before = host.tree()
    with pytest.raises(RegistryFleetError) as refused:
        host.present(wanted(b"frontend f\n    bindd 127.0.0.1:1\n"))
    assert "unknown keyword 'bindd'" in str(refused.value)
    assert f"{host.path('front/haproxy.cfg')}:2" in str(refused.value), "the operator reads the path that the file would have"
    assert host.tree() == before

    host.present(wanted(good))
    before = host.tree(times=True)
    for check in (True, False):
        with pytest.raises(RegistryFleetError, match="bindd"):
            host.present(wanted(b"frontend f\n    bindd 127.0.0.1:1\n"), check=check)
        assert host.tree(times=True) == before
    assert host.present(wanted(good)) == Result()


def test_nginx_checks_as_the_user_and_needs_the_directories(host: Host) -> None:
    logs = host.etc / "logs"
    configuration = f"pid {logs}/nginx.pid;\nerror_log {logs}/error.log;\nevents {{}}\nhttp {{ access_log {logs}/access.log; }}\n"
    wanted = Wanted(
        directories=(Directory(host.path("front")), Directory(str(logs), "daemon", "daemon", 0o750)),
        files=(File(host.path("front/nginx.conf"), configuration.encode()),),
        validate=(Validation(host.path("front"), ("nginx", "-t", "-q", "-c", "{directory}/nginx.conf"), "daemon"),),
    )
    host.present(wanted)
    assert (logs / "access.log").stat().st_uid == 1, "a log made by a check would keep the service from starting if it were root's"


def test_the_copy_keeps_owners_and_modes_and_goes_away(host: Host) -> None:
    listing = host.root / "listing"
    listing.touch()
    listing.chmod(0o666)
    script = f"cd {{directory}} && find . -printf '%P %u %g %m\\n' | sort > {listing} && echo {{uid}} {{gid}} >> {listing} && false"
    wanted = replace(first(host), validate=(Validation(host.path("front"), ("sh", "-c", script), "daemon"),))
    with pytest.raises(RegistryFleetError):
        host.present(wanted)
    assert listing.read_text().splitlines() == [" daemon daemon 750", "a.cfg root daemon 640", "maps root root 755", "maps/b.map root root 644", "1 1"]
    assert os.listdir(host.run) == []


def test_a_refused_first_run_leaves_no_trace_and_a_log_of_the_validator_stays_known(host: Host) -> None:
    before = host.tree()
    with pytest.raises(RegistryFleetError):
        host.present(replace(first(host), validate=(Validation(host.path("front"), ("false",)),)))
    assert host.tree() == before
    log = host.path("front/log")
    with pytest.raises(RegistryFleetError):
        host.present(replace(first(host), validate=(Validation(host.path("front"), ("sh", "-c", f"echo > {log}; false")),)))
    os.unlink(log)
    host.absent()
    assert host.tree() == before


def test_check_mode_on_a_bare_host_does_not_miss_what_is_yet_to_come(host: Host) -> None:
    wanted = Wanted(
        requires={"packages": ["no-such-package"], "users": ["no-such-user"], "images": []},
        directories=(Directory(host.path("front"), "no-such-user", "no-such-user"),),
        files=(File(host.path("front/a"), b"a\n", "no-such-user"),),
        validate=(Validation(host.path("front"), ("no-such-command",), "no-such-user"),),
    )
    before = host.tree(times=True)
    result = host.present(wanted, check=True)
    assert result.missing == {"packages": ["no-such-package"], "users": ["no-such-user"], "images": []}
    assert result.files == [host.path("front/a")]
    assert host.tree(times=True) == before


def test_a_validator_that_is_not_there_is_an_error(host: Host) -> None:
    wanted = replace(first(host), validate=(Validation(host.path("front"), ("no-such-command",), "daemon"),))
    with pytest.raises(RegistryFleetError, match="no command no-such-command"):
        host.present(wanted)


# --- what must be installed


def test_nothing_is_written_while_something_is_missing_and_it_is_the_services_to_remove(host: Host) -> None:
    wanted = replace(first(host), requires={"packages": ["base-files", "no-such-package"], "users": ["daemon", "no-such-user"], "images": []})
    result = host.present(wanted)
    assert result == Result(missing={"packages": ["no-such-package"], "users": ["no-such-user"], "images": []})
    assert not (host.etc / "front").exists()

    host.present(replace(first(host), requires={"packages": ["base-files"], "users": ["daemon"]}))
    removal = host.absent()
    assert removal.installed == {"packages": ["no-such-package"], "users": ["no-such-user"], "images": []}
    assert host.absent() == Result()


def test_what_another_service_requires_too_is_left_to_that_one(host: Host) -> None:
    missing = {"packages": ["no-such-package", "no-such-other"], "users": [], "images": []}
    host.present(Wanted(requires=missing), "front")
    host.service("edge")
    edge = Wanted(requires={"packages": ["no-such-package"]}, files=(File(host.path("edge.cfg"), b""),))
    host.present(edge, "edge", check=True)
    # As if it had been installed in between: the second service does not find it missing.
    record = json.dumps({"requires": {**NOTHING, "packages": ["no-such-package"]}, "files": {host.path("x"): {"backup": None, "secret": False}}})
    Path(host.layout.state, "records", "edge.json").write_text(record)
    assert host.absent("front").installed["packages"] == ["no-such-other"]
    assert host.absent("edge").installed["packages"] == ["no-such-package"]


def test_packages_are_those_of_dpkg() -> None:
    assert missing_packages(["base-files", "no-such-package", "dpkg"]) == ["no-such-package"]
    assert missing_packages([]) == []


def test_platforms() -> None:
    found = platform()
    check_platform([], found)
    check_platform(["debian 11", found], found)
    check_platform([found.split()[0]], found)
    with pytest.raises(RegistryFleetError, match=r"This host is debian 1, and .* on debian 12, ubuntu 24\.04"):
        check_platform(["debian 12", "ubuntu 24.04"], "debian 1")


# --- units

WANTED = b"restart 1\nreload 1\n"


@pytest.mark.parametrize(
    ("active", "file", "running", "action"),
    [
        ("inactive", "disabled", None, "start"),
        ("inactive", "enabled", WANTED, "start"),
        ("failed", "enabled", WANTED, "start"),
        ("activating", "enabled", WANTED, "start"),
        ("activating", "enabled", b"restart 0\nreload 1\n", "restart"),
        ("active", "enabled", WANTED, None),
        ("reloading", "enabled", WANTED, None),
        ("active", "enabled", None, "restart"),
        ("active", "enabled", b"", "restart"),
        ("active", "enabled", b"restart 0\nreload 1\n", "restart"),
        ("active", "enabled", b"restart 0\nreload 0\n", "restart"),
        ("active", "enabled", b"restart 1\nreload 0\n", "reload"),
        ("active", "enabled", b"restart 1\n", "reload"),
        ("active", "disabled", b"restart 1\nreload 0\n", "reload"),
        ("active", "disabled", WANTED, "start"),
        ("active", "enabled-runtime", WANTED, "start"),
    ],
)
def test_a_unit_gets_the_least_that_brings_it_there(active: str, file: str, running: bytes | None, action: str | None) -> None:
    assert needed_action(UnitState("loaded", active, file, False), WANTED, running) == action


def test_the_files_that_define_a_unit() -> None:
    assert unit_file_names("mirrorfleet-front.service") == ["mirrorfleet-front.service"]
    assert unit_file_names("mirrorfleet-cache@docker.hub.service") == ["mirrorfleet-cache@docker.hub.service", "mirrorfleet-cache@.service"]


def test_without_systemd_only_units_are_an_error(host: Host) -> None:
    assert unit_states([]) == {}
    if not os.path.isdir("/run/systemd/system"):
        before = host.tree()
        with pytest.raises(RegistryFleetError, match="systemd does not run on this host"):
            host.present(replace(first(host), units=("mirrorfleet-front.service",)))
        assert host.tree() == before


# --- arguments and secrets


def test_contradictions_are_errors_before_anything_is_touched(host: Host) -> None:
    one = File(host.path("a"), b"a")
    for wanted, message in (
        (Wanted(files=(one, one)), "wanted twice"),
        (Wanted(files=(one,), directories=(Directory(one.path),)), "wanted twice"),
        (Wanted(files=(File("relative", b""),)), "absolute"),
        (Wanted(files=(File("/etc/../a", b""),)), "normalised"),
        (Wanted(files=(replace(one, units=("x.service",)),)), "x.service, which are not among"),
        (Wanted(files=(replace(one, owner="no-such-user"),)), "user no-such-user, which this host does not know"),
        (Wanted(files=(replace(one, group="no-such-group"),)), "group no-such-group, which this host does not know"),
        (Wanted(files=(one,), validate=(Validation("/elsewhere", ("true",)),)), "no file is wanted there"),
        (Wanted(files=(File(str(host.etc), b""),)), "is a directory"),
        (Wanted(files=(File(f"{__file__}/a", b""),)), "is no directory"),
    ):
        before = host.tree()
        with pytest.raises(RegistryFleetError, match=message):
            host.present(wanted)
        assert host.tree() == before
    with pytest.raises(RegistryFleetError, match="name is '../x'"):
        host.service("../x")
    with pytest.raises(RegistryFleetError, match="The mode of /a is '8'"):
        wanted_from({"platforms": [], "requires": {}, "directories": [{"path": "/a", "mode": "8"}], "files": [], "units": [], "validate": [], "secrets": []})


def test_a_record_that_cannot_be_read_is_an_error(host: Host) -> None:
    host.present(first(host))
    Path(host.layout.state, "records", "front.json").write_text("{")
    before = host.tree(times=True)
    for act in (lambda: host.present(second(host)), host.absent):
        with pytest.raises(RegistryFleetError, match=r"front\.json lists what is ours"):
            act()
    assert host.tree(times=True) == before


def test_no_secret_in_results_nor_in_what_others_can_read(host: Host) -> None:
    def wanted(password: str, secret: bool = True) -> Wanted:
        return host.wanted(File(host.path("front/a.cfg"), f"user u\npassword {password}\n".encode(), secret=secret))

    shown = str(host.present(wanted("Hunter-2")))
    shown += str(host.present(wanted("Hunter-3")))
    shown += str(host.present(wanted("public", secret=False)))  # what was secret before stays one
    host.present(wanted("Hunter-4"))
    shown += str(host.absent())
    assert "Hunter" not in shown


def test_a_validator_that_repeats_a_secret_is_masked(host: Host) -> None:
    secret = File(host.path("front/a.cfg"), b'server x\nauth "Basic dXNlcjpodW50ZXIy"\npassword lowercase\n', secret=True)
    cat = Validation(host.path("front"), ("sh", "-c", "cat {directory}/*; echo line 2: dXNlcjpodW50ZXIy lowercase; false"))
    for secrets in ((), ("dXNlcjpodW50ZXIy", "lowercase")):
        with pytest.raises(RegistryFleetError) as refused:
            host.present(host.wanted(secret, validate=(cat,), secrets=secrets))
        assert "dXNl" not in str(refused.value) and "line 2:" in str(refused.value)
    assert "lowercase" not in str(refused.value)
    assert mask("nothing secret here", host.wanted(File("/a", b"nothing secret here 123456"))) == "nothing secret here"
