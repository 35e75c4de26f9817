# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils import docker_host
from ansible_collections.mirrorfleet.registry.plugins.module_utils.daemon_json import UNSET, DaemonConfigError, Document, Record
from ansible_collections.mirrorfleet.registry.plugins.module_utils.docker_host import DockerHost, Result, command_of_unit, configure, flags, keys_set_by

MIRROR = "https://mirror.zagreb.example.com:5001"
DEBIAN = ["/usr/sbin/dockerd", "-H", "fd://", "--containerd=/run/containerd/containerd.sock"]

# What Docker 26.1.5 answered, cut to what is read.
INFO = json.loads("""{
    "Debug": false, "LoggingDriver": "json-file", "Labels": [], "ExperimentalBuild": false, "ServerVersion": "26.1.5+dfsg1",
    "DefaultRuntime": "runc", "LiveRestoreEnabled": false,
    "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"], "Mirrors": null,
        "IndexConfigs": {"docker.io": {"Name": "docker.io", "Mirrors": [], "Secure": true, "Official": true}}}
}""")


def running(info: Any = None, **values: Any) -> DockerHost:
    """A daemon that runs. It has no program, so nothing is validated."""
    return DockerHost(pid=1, started="boot/1/1", reloaded="", running_command=["/nowhere/dockerd"], info=info, **values)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-H", "fd://", "--containerd=/run/c.sock"], [("H", "fd://"), ("containerd", "/run/c.sock")]),
        (["-Hfd://", "-D", "-l", "warn"], [("H", "fd://"), ("D", ""), ("l", "warn")]),
        (["-DH", "fd://"], [("D", ""), ("H", "fd://")]),
        (["--debug", "--live-restore=false"], [("debug", ""), ("live-restore", "false")]),
        (["--registry-mirror", MIRROR, "--", "--debug"], [("registry-mirror", MIRROR)]),
    ],
)
def test_flags(words: list[str], expected: list[tuple[str, str]]) -> None:
    assert flags(["dockerd", *words]) == expected


def test_flags_are_known_by_their_keys() -> None:
    command = (
        "dockerd -H fd:// --registry-mirror=a --insecure-registry b --log-driver local --log-opt x=y --label l "
        "--dns 1.1.1.1 --dns-opt ndots:1 -s overlay2 -D --add-runtime x=/y"
    )
    assert keys_set_by(command.split()) == {
        "hosts": "-H",
        "registry-mirrors": "--registry-mirror",
        "insecure-registries": "--insecure-registry",
        "log-driver": "--log-driver",
        "log-opts": "--log-opt",
        "labels": "--label",
        "dns": "--dns",
        "dns-opts": "--dns-opt",
        "storage-driver": "-s",
        "debug": "-D",
    }


@pytest.mark.skipif(not shutil.which("dockerd"), reason="no dockerd here")
def test_every_flag_in_the_table_is_one_of_dockerds() -> None:
    """A misspelt flag in the table would let a conflict through."""
    told = os.popen("dockerd --help").read()
    newer = {"cdi-spec-dir", "host-gateway-ip", "feature", "http-proxy", "https-proxy", "no-proxy", "default-network-opt"}
    older = {"cluster-store-opt", "g"}
    for flag in set(docker_host._KEY_OF_FLAG) - newer - older:
        assert f"  -{flag}, --" in told if len(flag) == 1 else f"--{flag} " in told, flag


def test_the_units_command_has_its_variables(tmp_path: Path) -> None:
    settings = tmp_path / "docker"
    settings.write_text("# a comment\nDOCKER_OPTS=\"--dns 8.8.8.8 --log-driver=local\"\nOTHER=1\n")
    shown = (
        "MainPID=118\n"
        "ExecStart={ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS ${LEVEL} ; ignore_errors=no ; pid=0 }\n"
        "Environment=LEVEL=-D\n"
        f"EnvironmentFiles={settings} (ignore_errors=yes)\n"
    )
    assert command_of_unit(shown) == ["/usr/sbin/dockerd", "-H", "fd://", "--dns", "8.8.8.8", "--log-driver=local", "-D"]
    assert command_of_unit("") == []


@pytest.mark.parametrize(("where", "said"), [("running_command", "by the running dockerd"), ("unit_command", "by docker.service")])
def test_a_key_that_is_a_flag_too_is_refused(tmp_path: Path, where: str, said: str) -> None:
    path = tmp_path / "daemon.json"
    path.write_text("{}")
    host = DockerHost(**{where: [*DEBIAN, "--registry-mirror", "https://flag"]})
    with pytest.raises(DaemonConfigError, match=f"registry-mirrors is set {said}.* with --registry-mirror"):
        run(tmp_path, host, {"registry-mirrors": [MIRROR]})
    with pytest.raises(DaemonConfigError, match=r"hosts is set .* with -H"):
        run(tmp_path, host, {"hosts": ["tcp://127.0.0.1:2375"]})
    assert path.read_text() == "{}"
    assert run(tmp_path, host, {"debug": True, "registry-mirrors": []}).keys == ["debug"]


def test_another_configuration_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DaemonConfigError, match=r"--config-file=/etc/other.json is set"):
        run(tmp_path, DockerHost(unit_command=["dockerd", "--config-file", "/etc/other.json"]), {"debug": True})


def test_the_running_values_are_compared_as_docker_writes_them() -> None:
    host = running({
        **INFO,
        "Labels": ["b=2", "a=1"],
        "RegistryConfig": {
            "Mirrors": [MIRROR + "/", "http://x/"],
            "InsecureRegistryCIDRs": ["10.1.0.0/16", "::1/128", "127.0.0.0/8"],
            "IndexConfigs": {"docker.io": {"Secure": True}, "mirror:5000": {"Secure": False}},
        },
    })
    assert host.has("registry-mirrors", [MIRROR, "http://x", MIRROR])
    assert host.has("registry-mirrors", ["http://x", MIRROR]) is False
    assert host.has("registry-mirrors", UNSET) is False
    assert host.has("insecure-registries", ["http://mirror:5000", "10.1.2.3/16"])
    assert host.has("insecure-registries", ["mirror:5000"]) is False
    assert host.has("labels", ["a=1", "b=2"])
    assert host.has("log-driver", UNSET)
    assert host.has("log-driver", "local") is False
    assert host.has("shutdown-timeout", 15) is None
    assert running(None).has("debug", True) is None
    assert running(INFO).has("registry-mirrors", UNSET)


def test_what_waits_for_the_daemon() -> None:
    document = Document('{"registry-mirrors": ["https://a"], "log-driver": "local", "shutdown-timeout": 30, "dns": []}')
    keys = list(document.values())
    noted = {key: {"needs": needs, "daemon": "boot/1/1", "reloaded": ""} for key, needs in (("shutdown-timeout", "reload"), ("dns", "restart"))}
    everything = {"registry-mirrors": "reload", "log-driver": "restart", "shutdown-timeout": "reload", "dns": "restart"}
    assert running(INFO).waiting(document, keys, noted) == everything
    # Nobody wrote down the mirrors and the log driver: the daemon tells.
    assert running(INFO).waiting(document, keys, {}) == {"registry-mirrors": "reload", "log-driver": "restart"}
    # After a reload the daemon has what reloads; what systemd forgot (daemon-reload) is no reload.
    reloaded = running({**INFO, "RegistryConfig": {**INFO["RegistryConfig"], "Mirrors": ["https://a/"]}})
    reloaded.reloaded = "{ pid=704 }"
    assert reloaded.waiting(document, keys, noted) == {"log-driver": "restart", "dns": "restart"}
    for change in noted.values():
        change["reloaded"] = "{ pid=704 }"
    reloaded.reloaded = ""
    assert reloaded.waiting(document, keys, noted) == {"log-driver": "restart", "dns": "restart", "shutdown-timeout": "reload"}
    # After a restart there is nothing, and neither where no daemon runs.
    restarted = running({**reloaded.info, "LoggingDriver": "local"})
    restarted.started = "boot/2/2"
    assert restarted.waiting(document, keys, noted) == {}
    assert DockerHost().waiting(document, keys, noted) == {}


def run(tmp_path: Path, host: DockerHost, options: dict[str, Any], certificates: dict[str, str] | None = None, **more: Any) -> Result:
    return configure(
        host, str(tmp_path / "daemon.json"), str(tmp_path / "certs.d"), str(tmp_path / "state/record.json"), options, certificates or {}, **more
    )


def tree(tmp_path: Path) -> dict[str, str]:
    return {str(path.relative_to(tmp_path)): path.read_text() if path.is_file() else "" for path in tmp_path.rglob("*")}


@pytest.fixture(name="certificate", scope="session")
def _certificate(tmp_path_factory: Any) -> str:
    directory = tmp_path_factory.mktemp("ca")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=ca -keyout key -out ca"
    assert os.system(f"cd {directory} && {command} 2>/dev/null") == 0
    return str((directory / "ca").read_text())


@pytest.mark.parametrize("text", [None, "", "{}", "{ }\n", '{\n    "debug": true,\n    "n": 1.0\n}', '{"registry-mirrors":[ "https://theirs" ]}'])
def test_absent_leaves_no_trace(tmp_path: Path, text: str | None, certificate: str) -> None:
    path = tmp_path / "daemon.json"
    if text is not None:
        path.write_text(text)
        path.chmod(0o640)
    before = tree(tmp_path)
    options = {"registry-mirrors": [MIRROR], "log-driver": "local"}

    planned = run(tmp_path, DockerHost(), options, {"mirror:5000": certificate}, check=True)
    assert tree(tmp_path) == before
    done = run(tmp_path, DockerHost(), options, {"mirror:5000": certificate})
    assert done.diff == planned.diff
    assert done.as_dict()["changed"]
    assert done.keys == planned.keys == ["registry-mirrors", "log-driver"]
    assert Document(path.read_text()).get("registry-mirrors")[0] == MIRROR
    assert (tmp_path / "certs.d/mirror:5000/ca.crt").read_text() == certificate
    assert (tmp_path / "certs.d/mirror:5000/ca.crt").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "state/record.json").stat().st_mode & 0o777 == 0o600
    assert path.stat().st_mode & 0o777 == (0o644 if text is None else 0o640)
    if text is None:
        assert done.backup == ""
    else:
        assert Path(done.backup).read_text() == text

    written = tree(tmp_path)
    again = run(tmp_path, DockerHost(), options, {"mirror:5000": certificate})
    assert not again.as_dict()["changed"]
    assert tree(tmp_path) == written

    assert run(tmp_path, DockerHost(), {}, absent=True).as_dict()["changed"]
    assert tree(tmp_path) == before
    if text is not None:
        assert path.stat().st_mode & 0o777 == 0o640
    assert not run(tmp_path, DockerHost(), {}, absent=True).as_dict()["changed"]
    assert tree(tmp_path) == before


def test_a_certificate_that_was_there_comes_back(tmp_path: Path, certificate: str) -> None:
    file = tmp_path / "certs.d/mirror:5000/ca.crt"
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    run(tmp_path, DockerHost(), {}, {"mirror:5000": certificate, "mirror:5001": certificate})
    assert file.read_text() == certificate
    assert run(tmp_path, DockerHost(), {}, {"mirror:5000": certificate}).certificates == [str(tmp_path / "certs.d/mirror:5001/ca.crt")]
    assert not (tmp_path / "certs.d/mirror:5001").exists()
    run(tmp_path, DockerHost(), {}, absent=True)
    assert tree(tmp_path) == {"certs.d": "", "certs.d/mirror:5000": "", "certs.d/mirror:5000/ca.crt": "theirs"}


def test_a_running_daemon_is_cleared_before_the_key_goes(tmp_path: Path) -> None:
    run(tmp_path, running(INFO), {"registry-mirrors": [MIRROR]})
    has = {**INFO, "RegistryConfig": {**INFO["RegistryConfig"], "Mirrors": [MIRROR + "/"]}}
    first = run(tmp_path, running(has), {}, absent=True).as_dict()
    assert (first["changed"], first["needs"]) == (True, "reload")
    assert json.loads((tmp_path / "daemon.json").read_text()) == {"registry-mirrors": []}
    # Nobody reloads: it stays.
    again = run(tmp_path, running(has), {}, absent=True).as_dict()
    assert (again["changed"], again["needs"]) == (False, "reload")
    second = run(tmp_path, running(INFO), {}, absent=True).as_dict()
    assert (second["changed"], second["needs"]) == (True, "nothing")
    assert tree(tmp_path) == {}


def test_a_key_that_the_daemon_does_not_tell_is_cleared_too(tmp_path: Path) -> None:
    host = running(None)
    run(tmp_path, host, {"shutdown-timeout": 30})
    for _repeated in range(2):
        assert run(tmp_path, host, {}, absent=True).as_dict()["pending"]["reload"] == ["shutdown-timeout"]
        assert json.loads((tmp_path / "daemon.json").read_text()) == {"shutdown-timeout": 15}
    host.reloaded = "{ pid=704 }"
    run(tmp_path, host, {}, absent=True)
    assert tree(tmp_path) == {}


def test_an_interrupted_run_is_finished_by_the_next(tmp_path: Path) -> None:
    """What was written and not reloaded still waits when nothing is changed any more, whether the daemon tells it or not."""
    options = {"registry-mirrors": [MIRROR], "shutdown-timeout": 30, "dns": ["10.0.0.1"]}
    for info in (INFO, None):
        first = run(tmp_path, running(info), options)
        second = run(tmp_path, running(info), options).as_dict()
        assert not second["changed"]
        assert second["needs"] == "restart"
        assert second["pending"] == first.as_dict()["pending"] == {"reload": ["registry-mirrors", "shutdown-timeout"], "restart": ["dns"]}
        run(tmp_path, DockerHost(), {}, absent=True)


def test_a_removal_remembers_what_waits_for_a_restart(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_text("{}")
    old = running(INFO)
    run(tmp_path, old, {"dns": ["10.0.0.1"]})
    assert run(tmp_path, old, {}, absent=True).as_dict()["pending"]["restart"] == ["dns"]
    assert run(tmp_path, old, {}, absent=True).as_dict()["needs"] == "restart"
    new = running(INFO)
    new.started = "boot/2/2"
    assert run(tmp_path, new, {}, absent=True).as_dict()["needs"] == "nothing"
    assert tree(tmp_path) == {"daemon.json": "{}"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/docker.json").write_text('{"debug":true}')
    (tmp_path / "daemon.json").symlink_to("real/docker.json")
    run(tmp_path, DockerHost(), {"registry-mirrors": [MIRROR]})
    assert (tmp_path / "daemon.json").is_symlink()
    assert json.loads((tmp_path / "real/docker.json").read_text())["registry-mirrors"] == [MIRROR]
    run(tmp_path, DockerHost(), {}, absent=True)
    assert (tmp_path / "real/docker.json").read_text() == '{"debug":true}'
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["docker.json"]


def test_a_linked_certificate_is_not_written_through(tmp_path: Path, certificate: str) -> None:
    file = tmp_path / "certs.d/mirror:5000/ca.crt"
    file.parent.mkdir(parents=True)
    (tmp_path / "theirs").write_text("theirs")
    file.symlink_to(tmp_path / "theirs")
    with pytest.raises(DaemonConfigError, match="is a link to"):
        run(tmp_path, DockerHost(), {}, {"mirror:5000": certificate})
    assert file.read_text() == "theirs"


def test_a_change_in_between_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text("{}")
    with pytest.raises(DaemonConfigError, match="changed by somebody else"):
        docker_host._write(str(path), '{"debug":true}', '{"debug":false}', {}, Record(str(path)), str(tmp_path / "record.json"))
    assert path.read_text() == "{}"


@pytest.mark.parametrize("text", [b'{"debug": true,}', b"{// x\n}", b'\xff\xfe{\x00}\x00', b'{"registry-mirrors": "x"}', b'{"debug": true, "debug": false}'])
def test_a_broken_file_is_untouched(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "daemon.json"
    path.write_bytes(text)
    for absent in (False, True):
        if absent and b"mirrors" in text:
            continue
        with pytest.raises(DaemonConfigError, match="untouched"):
            run(tmp_path, DockerHost(), {"registry-mirrors": [MIRROR]}, absent=absent)
    assert path.read_bytes() == text
    assert [file.name for file in tmp_path.iterdir()] == ["daemon.json"]


@pytest.mark.skipif(not shutil.which("dockerd"), reason="no dockerd here")
def test_the_real_dockerd_is_asked(tmp_path: Path) -> None:
    host = DockerHost(unit_command=["dockerd", "-H", "fd://"])
    assert host.major is not None
    if "--validate" not in os.popen("dockerd --help").read():
        assert run(tmp_path, host, {"no-such-key": 1}).keys == ["no-such-key"]
        return
    with pytest.raises(DaemonConfigError, match="no-such-key"):
        run(tmp_path, host, {"no-such-key": 1})
    (tmp_path / "daemon.json").write_text('{"hosts": ["fd://"]}')
    with pytest.raises(DaemonConfigError, match=r"hosts.*It refuses the file as it is, too"):
        run(tmp_path, host, {"debug": True})


@pytest.mark.skipif(docker_host.docker_info() is None, reason="no Docker here")
def test_the_real_docker_is_seen() -> None:
    host = DockerHost.look()
    assert host.info is not None
    assert host.pid
    assert host.started.split("/")[1] == str(host.pid)
    assert all(host.has(key, UNSET) is not None for key in docker_host._READABLE)


def test_nobody_answers(tmp_path: Path) -> None:
    assert docker_host.docker_info(str(tmp_path / "none.sock")) is None
