# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""image_info between a real upstream and the real edges and caches of two data centers: it tells what they hold and fills nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_pull import pull_image
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.plugins.modules import image_info
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Image,
    Registry,
    RunModule,
    ansible,
    digest_of,
    free_port,
    image_of,
    index_of,
    layer_of,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render, cache_configuration, upstream_port
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_haproxy_front import Front, haproxy
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_mirror_edge import Edge, directories, listen, start_nginx

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"
NAMES = ("zagreb", "frankfurt")
PASSWORD = "s3cret-p4ss"
BASE = layer_of({"base": os.urandom(200_000)})

Running = Tuple[Registry, Dict[str, Registry], Dict[str, Edge], Dict[str, Front]]


@dataclass
class Fleet:
    hub: Registry
    caches: dict[str, Registry]
    edges: dict[str, Edge]
    fronts: dict[str, Front]
    run_module: RunModule

    def push(self, repository: str, *layers: bytes, tag: str = "1") -> Image:
        image = image_of(BASE, *layers)
        self.hub.push(repository, tag, image)
        return image

    def pull(self, name: str, image: str, platform: str = "linux/amd64") -> None:
        """Through the edge, and wait until the store has it."""
        with RegistryClient(self.edges[name].url) as client:
            pulled = pull_image(client, image, platform)
        self.caches[name].until_stored(pulled["digest"], *(blob["digest"] for blob in pulled["blobs"]))

        def is_quiet() -> bool:
            """Distribution writes its links last."""
            before = self.stores()
            time.sleep(0.3)
            return self.stores() == before

        until(is_quiet)

    def info(self, *images: str, **options: Any) -> list[dict[str, Any]]:
        """The answer; nothing is fetched for it."""
        before = self.stores()
        caches = [{"name": name, "url": edge.url} for name, edge in self.edges.items()]
        given = {"upstream": {"url": self.hub.url}, "caches": caches, "platforms": ["linux/amd64"], **options}
        answered = self.run_module(image_info.main, images=list(images), **given)
        assert answered.get("changed") is False, answered
        assert self.stores() == before
        return list(answered["images"])

    def stores(self) -> dict[str, set[Path]]:
        return {name: set(cache.v2.rglob("*")) for name, cache in self.caches.items()}


@pytest.fixture(scope="module")
def running(render: Render, base: Path) -> Iterator[Running]:
    hub = Registry(free_port(), free_port(), base / "upstream")
    ports = {name: upstream_port() for name in NAMES}
    variables = {name: {
        **directories(base / name / "edge"), "mirror_edge_tls": "none", "mirror_edge_bind": "127.0.0.1",
        "mirror_upstreams": [{"name": "hub", "url": hub.url, "port": port, "canary": "a:1"}],
        "haproxy_front_stats_bind": f"127.0.0.1:{free_port()}", "__haproxy_front_run": str(base / name / "front"),
    } for name, port in ports.items()}
    rendered = render("mirror_edge", *variables.values())
    front_files = render("haproxy_front", *variables.values())
    (cache_files,) = render("pull_through_cache", {"mirror_upstreams": variables[NAMES[0]]["mirror_upstreams"], "pull_through_cache_storage": str(base)})
    caches: dict[str, Registry] = {}
    edges: dict[str, Edge] = {}
    fronts: dict[str, Front] = {}
    running = contextlib.ExitStack()
    try:
        hub.start()
        for (name, port), files, front in zip(ports.items(), rendered, front_files):
            (base / name / "store").mkdir(parents=True)
            caches[name] = Registry(port + PORT_OFFSETS["cache"], port + PORT_OFFSETS["debug"], base / name / "store/hub")
            configuration = cache_configuration(cache_files, "hub")
            configuration["storage"]["filesystem"]["rootdirectory"] = str(caches[name].root)
            configuration["proxy"]["remoteurl"] = hub.url
            configuration["http"].update(addr=f"127.0.0.1:{caches[name].port}", debug={"addr": f"127.0.0.1:{caches[name].debug_port}"})
            caches[name].start(configuration)
            (base / name / "edge").mkdir()
            edges[name] = start_nginx(base / name / "edge", files, "127.0.0.1", {"hub": port})
            listen(edges[name])
            (base / name / "front").mkdir()
            fronts[name] = running.enter_context(haproxy(front, base / name / "front", {"hub": port + PORT_OFFSETS["front"]}, 0))
        yield hub, caches, edges, fronts
    finally:
        running.close()
        for edge in edges.values():
            edge.process.send_signal(signal.SIGTERM)
            edge.process.wait(5)
        for registry in (*caches.values(), hub):
            registry.stop()


@pytest.fixture
def fleet(running: Running, run_module: RunModule) -> Fleet:
    return Fleet(*running, run_module)


def states(image: dict[str, Any]) -> dict[str, str]:
    return {cache["name"]: cache["in_cache"] for cache in image["caches"]}


def test_each_data_center_is_told_of(fleet: Fleet) -> None:
    image = fleet.push("told/app", layer_of({"app": b"told"}))
    fleet.pull("zagreb", "told/app:1")
    (told,) = fleet.info("told/app:1", details=True)
    assert (told["image"], told["digest"], told["media_type"], told["size"], told["unknown"]) == ("told/app:1", image.digest, image.media_type, image.size, "")
    layers = [{"digest": digest, "size": len(blob)} for digest, blob in list(image.blobs.items())[1:]]
    assert told["platforms"] == [{"platform": "linux/amd64", "digest": image.digest, "size": image.size, "layers": layers}]
    zagreb, frankfurt = told["caches"]
    assert zagreb == {
        "name": "zagreb", "in_cache": "complete", "digest": image.digest, "drift": False, "platforms": ["linux/amd64"], "bytes": image.size,
        "bytes_missing": 0, "missing": [], "unknown": "",
    }
    assert {key: frankfurt[key] for key in ("in_cache", "digest", "drift", "platforms", "unknown")} == {
        "in_cache": "absent", "digest": None, "drift": False, "platforms": [], "unknown": "",
    }
    assert frankfurt["bytes"] + frankfurt["bytes_missing"] == image.size
    by_digest, tagless = fleet.info(f"told/app@{image.digest}", "told/app@" + digest_of(b"none"))
    assert states(by_digest) == {"zagreb": "complete", "frankfurt": "absent"}
    assert [cache["digest"] for cache in by_digest["caches"]] == [image.digest, None]
    assert (tagless["digest"], states(tagless)) == (None, {"zagreb": "absent", "frankfurt": "absent"}) and "404" in tagless["unknown"]


def test_what_is_missing_is_counted(fleet: Fleet) -> None:
    """A blob that came for another image counts as there, as the edge sends it to whoever asks."""
    layer = layer_of({"app": b"counted"})
    image = fleet.push("counted/app", layer)
    other = fleet.push("counted/other", layer_of({"other": b"counted"}))
    fleet.pull("zagreb", "counted/app:1")
    fleet.pull("frankfurt", "counted/other:1")
    fleet.caches["zagreb"].blob_path(digest_of(layer)).unlink()
    (told,) = fleet.info("counted/app:1", details=True)
    zagreb, frankfurt = told["caches"]
    assert (zagreb["in_cache"], zagreb["bytes_missing"], zagreb["platforms"]) == ("partial", len(layer), [])
    assert zagreb["missing"] == [{"digest": digest_of(layer), "size": len(layer)}]
    assert (frankfurt["in_cache"], frankfurt["bytes"]) == ("absent", len(BASE))
    # A file that is there in part is not there.
    path = fleet.caches["frankfurt"].blob_path(list(other.blobs)[2])
    os.truncate(path, 3)
    (told,) = fleet.info("counted/other:1")
    assert states(told) == {"zagreb": "absent", "frankfurt": "partial"} and image.digest


def test_an_index_is_there_by_its_platforms(fleet: Fleet) -> None:
    amd, arm = image_of(BASE, layer_of({"app": b"amd"})), image_of(layer_of({"app": b"arm"}), architecture="arm64")
    document = json.loads(index_of({"linux/amd64": amd, "linux/arm64": arm}))
    for image in (amd, arm):
        fleet.hub.push("multi/app", image.digest, image)
    # As BuildKit adds it.
    attestation = image_of(layer_of({"provenance": b"{}"}))
    fleet.hub.push("multi/app", attestation.digest, attestation)
    document["manifests"].append({
        "mediaType": attestation.media_type, "digest": attestation.digest, "size": len(attestation.manifest),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": amd.digest},
    })
    body = json.dumps(document).encode()
    fleet.hub.push_manifest("multi/app", "1", body, document["mediaType"])
    fleet.pull("zagreb", "multi/app:1")
    fleet.caches["zagreb"].until_stored(amd.digest)
    for platforms, zagreb, there in (
        (["linux/amd64"], "complete", ["linux/amd64"]), (["linux/arm64"], "partial", []), (["linux/arm64", "linux/amd64"], "partial", ["linux/amd64"]),
        (["all"], "partial", ["linux/amd64"]),
    ):
        (told,) = fleet.info("multi/app:1", platforms=platforms)
        assert states(told) == {"zagreb": zagreb, "frankfurt": "absent"}
        assert told["caches"][0]["platforms"] == there
        assert [each["platform"] for each in told["platforms"]] == ["linux/amd64", "linux/arm64"]
        assert told["digest"] == digest_of(body)
        assert {each["platform"] for each in told["platforms"] if each["size"]} == set(platforms if platforms != ["all"] else ["linux/amd64", "linux/arm64"])
        (attached,) = told["artifacts"]
        assert (attached["kind"], attached["digest"], attached["found_by"]) == ("attestation", attestation.digest, "index")
        assert told["platforms_missing"] == []
    (told,) = fleet.info("multi/app:1", platforms=["linux/s390x", "linux/amd64"])
    assert told["platforms_missing"] == ["linux/s390x"] and states(told) == {"zagreb": "complete", "frankfurt": "absent"}
    (told,) = fleet.info("multi/app:1", platforms=["linux/s390x"])
    assert told["digest"] is None and told["platforms_missing"] == ["linux/s390x"]
    assert "not made for linux/s390x, but for linux/amd64, linux/arm64" in told["unknown"]


def test_a_tag_that_moved_is_drift(fleet: Fleet) -> None:
    old = fleet.push("moved/app", layer_of({"app": b"old"}))
    fleet.pull("zagreb", "moved/app:1")
    new = fleet.push("moved/app", layer_of({"app": b"new"}))
    (told,) = fleet.info("moved/app:1")
    zagreb, frankfurt = told["caches"]
    assert (told["digest"], zagreb["digest"], zagreb["drift"], zagreb["in_cache"]) == (new.digest, old.digest, True, "absent")
    assert (frankfurt["digest"], frankfurt["drift"]) == (None, False)
    fleet.pull("zagreb", "moved/app:1")
    (told,) = fleet.info("moved/app:1")
    assert (told["caches"][0]["drift"], states(told)["zagreb"]) == (False, "complete")


def test_without_the_upstream_each_cache_tells_of_its_own(fleet: Fleet) -> None:
    image = fleet.push("alone/app", layer_of({"app": b"alone"}))
    fleet.pull("zagreb", "alone/app:1")
    absent = f"http://127.0.0.1:{free_port()}"
    for upstream, why in ((None, "no upstream was given"), ({"url": absent}, "connection refused")):
        for name in ("alone/app:1", f"alone/app@{image.digest}"):
            (told,) = fleet.info(name, upstream=upstream, retries=0)
            assert (told["digest"], told["artifacts"]) == (None, None) and why in told["unknown"] and told["artifacts_unknown"]
            zagreb, frankfurt = told["caches"]
            assert (zagreb["in_cache"], zagreb["digest"], zagreb["drift"], zagreb["bytes"]) == ("complete", image.digest, None, image.size)
            assert (frankfurt["in_cache"], frankfurt["digest"], frankfurt["bytes"]) == ("absent", None, None)


def test_a_cache_that_cannot_be_asked_is_unknown_and_left_alone(fleet: Fleet) -> None:
    """Distribution itself would fetch what it is asked for."""
    image = fleet.push("lone/app", layer_of({"app": b"lone"}))
    caches = [{"name": "gone", "url": f"http://127.0.0.1:{free_port()}"}, {"name": "bare", "url": fleet.caches["zagreb"].url}]
    (told,) = fleet.info("lone/app:1", caches=caches, retries=0)
    assert states(told) == {"gone": "unknown", "bare": "unknown"}
    assert "connection refused" in told["caches"][0]["unknown"] and "does not say that it understands only-if-cached" in told["caches"][1]["unknown"]
    # A registry that stores what is pushed to it may be asked.
    (told,) = fleet.info("lone/app:1", "lone/app:2", caches=[{"name": "store", "url": fleet.hub.url, "may_fill": True}])[:1]
    assert (states(told), told["caches"][0]["digest"]) == ({"store": "complete"}, image.digest)


def test_the_documented_queries_work_as_written(fleet: Fleet, tmp_path: Path) -> None:
    signed = fleet.push("query/app", layer_of({"app": b"signed"}), tag="2")
    fleet.push("query/web", layer_of({"app": b"unsigned"}), tag="7")
    signature = image_of(layer_of({"signature": b"s"}))
    fleet.hub.push("query/app", signed.digest.replace(":", "-") + ".sig", signature)
    fleet.pull("zagreb", "query/app:2")
    fleet.pull("frankfurt", "query/web:7")
    moved = fleet.push("query/web", layer_of({"app": b"moved"}), tag="7")
    app, web = images = fleet.info("query/app:2", "query/web:7")
    ask, *documented = yaml.safe_load(image_info.EXAMPLES)
    for number, task in enumerate(documented):
        task["register"] = f"shown{number}"
    kept = {"ansible.builtin.copy": {"content": "{{ [shown0, shown1, shown2, shown3] | to_json }}", "dest": str(tmp_path / "shown.json"), "mode": "0600"}}
    play = {"hosts": "localhost", "gather_facts": False, "vars": {ask["register"]: {"images": images}}, "tasks": [*documented, kept]}
    (tmp_path / "play.json").write_text(json.dumps([play]))
    done = ansible(
        "ansible-playbook", "-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}", "play.json", directory=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lacking, bytes_missing, drifted, unsigned = json.loads((tmp_path / "shown.json").read_text())
    assert lacking["msg"] == [{"image": "query/app:2", "lacking": ["frankfurt"]}, {"image": "query/web:7", "lacking": ["zagreb", "frankfurt"]}]
    sums = [sum(image["caches"][number]["bytes_missing"] for image in (app, web)) for number in range(2)]
    assert [each["msg"] for each in bytes_missing["results"]] == [f"{name}: {count}" for name, count in zip(NAMES, sums)] and 0 < sums[0] < sums[1]
    assert drifted["msg"] == [{"image": "query/web:7", "digest": moved.digest, "drifted": [["frankfurt", web["caches"][1]["digest"]]]}]
    assert unsigned["msg"] == ["query/web:7"]


class TestDiff:
    """playbooks/diff.yml, with a mirror host in each data center, and one whose edge is gone."""

    def inventory(self, fleet: Fleet, behind: str = "") -> dict[str, Any]:
        def data_center(host: str, port: int) -> dict[str, Any]:
            upstream = {"name": "hub", "url": fleet.hub.url, "port": port, "canary": "a:1", "username": "reader", "password": PASSWORD}
            variables = {"mirror_name": "127.0.0.1", "mirror_edge_tls": "none", **({"mirror_parent": "dc_zagreb"} if host == behind else {})}
            return {"hosts": {host: {"mirror_upstreams": [upstream]}}, "vars": variables}

        ports = {**{name: edge.ports["hub"] for name, edge in fleet.edges.items()}, "gone": upstream_port()}
        hosts = {f"mirror-{name}": {} for name in ports}
        return {
            "all": {"vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}},
            "mirrors": {"hosts": hosts}, **{f"dc_{name}": data_center(f"mirror-{name}", port) for name, port in ports.items()},
        }

    def run(self, fleet: Fleet, directory: Path, *arguments: str, behind: str = "") -> tuple[int, str]:
        (directory / "inventory.json").write_text(json.dumps(self.inventory(fleet, behind)))
        before = fleet.stores()
        done = ansible("ansible-playbook", "-i", "inventory.json", str(PLAYBOOKS / "diff.yml"), *arguments, directory=directory, PWD=str(directory))
        assert fleet.stores() == before and PASSWORD not in done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr

    def test_what_is_where_is_one_table(self, fleet: Fleet, tmp_path: Path) -> None:
        app = fleet.push("diff/app", layer_of({"app": b"diff"}), tag="2")
        fleet.push("diff/web", layer_of({"app": b"old"}), tag="7")
        fleet.pull("zagreb", "diff/app:2")
        fleet.pull("zagreb", "diff/web:7")
        web = fleet.push("diff/web", layer_of({"app": b"new"}), tag="7")
        domain = fleet.hub.url.partition("//")[2]
        (tmp_path / "released.txt").write_text(f"# of this week\nhub diff/app:2   # the service\n\n  - {domain}/diff/web:7\n- hub diff/none:1")
        code, said = self.run(fleet, tmp_path, "-e", "images_file=released.txt", "-e", '{"images_platforms": ["linux/amd64"]}', "-vvv")
        assert code == 0, said
        lines = [re.sub(" +", " ", line) for line in re.findall(r'^ +"(.*)",?$', said, re.MULTILINE)]
        table = lines[lines.index("image upstream zagreb frankfurt gone "):][:6]
        assert table[:4] == [
            "image upstream zagreb frankfurt gone ", f"hub diff/app:2 {app.digest[:19]} complete absent unknown ",
            f"hub diff/web:7 {web.digest[:19]} drift absent unknown ", "hub diff/none:1 ? absent absent unknown ",
        ]
        missing = sum(len(blob) for digest, blob in web.blobs.items() if blob != BASE) + len(web.manifest)
        assert table[4] == f"zagreb: 1 of 3 complete, {missing / 1e6:.1f} MB would come over the WAN"
        assert "gone: GET http://127.0.0.1" in said and "connection refused" in said and "404 Not Found" in said

    def test_it_fails_when_it_is_asked_to(self, fleet: Fleet, tmp_path: Path) -> None:
        fleet.push("diff/fail", layer_of({"app": b"fail"}))
        fleet.pull("zagreb", "diff/fail:1")
        images = ["-e", '{"images": ["diff/fail:1"], "images_upstream": "hub", "diff_fail": true, "images_platforms": ["linux/amd64"]}']
        code, said = self.run(fleet, tmp_path, *images, "--limit", "dc_zagreb", "--check")
        assert code == 0 and "mirror-frankfurt" not in said, said
        code, said = self.run(fleet, tmp_path, *images)
        assert code != 0 and "hub diff/fail:1 is absent in frankfurt; hub diff/fail:1 is unknown in gone. Bring it there" in " ".join(said.split())

    def test_the_upstream_is_asked_as_the_cache_asks_it(self, fleet: Fleet, tmp_path: Path) -> None:
        """And past a front that would ask other mirror hosts first, which would keep what they are asked for."""
        for name, layer in (("way", b"one"), ("past", b"two")):
            fleet.push(f"diff/{name}", layer_of({"app": layer}))
        asked: dict[str, dict[str, list[str]]] = {}
        for name, behind in (("way", ""), ("past", "mirror-frankfurt")):
            images = ["-e", json.dumps({"images": [f"hub diff/{name}:1"], "images_platforms": ["linux/amd64"]})]
            code, said = self.run(fleet, tmp_path, *images, "--limit", "dc_zagreb:dc_frankfurt", behind=behind)
            assert code == 0 and re.search(rf"hub diff/{name}:1 +sha256:[0-9a-f]+ +absent +absent", said), said
            asked[name] = {
                host: [line["path"] for line in front.log_lines() if line["path"].startswith(f"/v2/diff/{name}/manifests/")]
                for host, front in fleet.fronts.items()
            }
        assert asked == {
            "way": dict.fromkeys(NAMES, ["/v2/diff/way/manifests/1"]), "past": {"zagreb": ["/v2/diff/past/manifests/1"], "frankfurt": []},
        }

    @pytest.mark.parametrize(("given", "says"), [
        ({}, "There are no images. Write -e images_file=FILE"), ({"images": []}, "There are no images."), ({"images": "hub a:1"}, "There are no images."),
        ({"images": ["hub a:1"], "images_file": "absent.txt"}, "images_file: there is no file"),
        ({"images": ["hub a:1", "a:1"]}, "a:1: no upstream serves docker.io."),
        ({"images": ["a:1"], "images_upstream": "nobody"}, "nobody a:1: there is no upstream 'nobody'. The upstreams are: hub (127.0.0.1:"),
        ({"images": ["hub A:1"]}, "'A:1' is no image reference"), ({"images": ["hub a:1"], "images_platforms": ["amd64"]}, "'amd64' is no platform"),
    ])
    def test_bad_input_is_named(self, fleet: Fleet, tmp_path: Path, given: dict[str, Any], says: str) -> None:
        code, said = self.run(fleet, tmp_path, "-e", json.dumps(given))
        assert code != 0 and says in " ".join(said.split())
