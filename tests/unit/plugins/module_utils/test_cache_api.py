# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import re
from typing import Any, Callable

import pytest
import yaml
from ansible_collections.community.general.plugins.filter.json_query import json_query

from ansible_collections.mirrorfleet.registry.plugins.modules import cache_info
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Answers,
    Registry,
    RunModule,
    Server,
    StartRegistry,
    answer,
    digest_of,
    image_of,
    index_of,
    layer_of,
)

Serve = Callable[[Answers], Server]

BASE = layer_of({"base": os.urandom(100_000)})
APP = image_of(BASE, layer_of({"app": b"app"}))
WEB = image_of(BASE, layer_of({"web": b"web"}))
ARM = image_of(layer_of({"app": b"arm"}), architecture="arm64")
INDEX = index_of({"linux/amd64": APP, "linux/arm64": ARM})
PASSWORD = "s3cret-p4ss"


def info(run_module: RunModule, url: str, **options: Any) -> dict[str, Any]:
    answered = run_module(cache_info.main, url=url, **options)
    assert answered.get("changed") is False, answered
    (report,) = answered["caches"]
    return dict(report)


@pytest.fixture
def filled(registry: Registry) -> Registry:
    registry.push("svc/app", "1", APP)
    registry.push("svc/app", "latest", APP)
    registry.push("svc/web", "1", WEB)
    registry.push_index("svc/multi", "2", {"linux/amd64": APP, "linux/arm64": ARM})
    return registry


def test_the_answer_is_the_stores_but_for_what_only_the_store_tells(filled: Registry, run_module: RunModule) -> None:
    def without_null(value: Any, pattern: Any) -> Any:
        """Where the API says null, the store's answer says nothing either."""
        if isinstance(value, dict):
            return {key: without_null(each, pattern[key]) for key, each in value.items() if pattern[key] is not None}
        return [without_null(*each) for each in zip(value, pattern, strict=True)] if isinstance(value, list) else value

    for options in ({}, {"details": True}, {"repository": "svc/[am]*", "details": True}, {"image": "svc/a*:1"}):
        by_api = info(run_module, filled.url, **options)
        (by_store,) = run_module(cache_info.main, caches=[{"name": filled.url, "path": str(filled.root)}], **options)["caches"]
        for key in ("name", "repositories", *([] if {"repository", "image"} & set(options) else ["bytes", "problems"])):
            assert without_null(by_store[key], by_api[key]) == without_null(by_api[key], by_api[key])
        assert set(by_api) <= set(by_store) and {key for key, value in by_api.items() if value is None} == {
            "path", "upload_bytes", "oldest_upload", "least_recently_used", "most_recently_used", "expiry", "disk", "drained", "proxy",
        }
        left_out = {"blobs"} if {"repository", "image"} & set(options) else set()
        counted = {key: value for key, value in by_api["counts"].items() if value is not None and key not in left_out}
        assert counted == {key: by_store["counts"][key] for key in counted} and set(by_api["counts"]) - set(counted) <= {"uploads", "blobs"}


def test_an_index_is_told_with_its_platforms(filled: Registry, run_module: RunModule) -> None:
    report = info(run_module, filled.url, repository="svc/multi", details=True)
    (tag,) = report["repositories"][0]["tags"]
    assert (tag["digest"], tag["size"], tag["platforms"], tag["complete"]) == (
        digest_of(INDEX), APP.size + ARM.size + len(INDEX), ["linux/amd64", "linux/arm64"], None,
    )
    assert [image["platform"] for image in tag["images"]] == ["linux/amd64", "linux/arm64"]


def test_what_is_not_there_is_a_problem(filled: Registry, run_module: RunModule) -> None:
    filled.blob_path(WEB.digest).unlink()
    filled.blob_path(ARM.digest).unlink()
    report = info(run_module, filled.url)
    assert report["counts"]["problems"] == len(report["problems"]) == 2
    assert sorted(problem["path"] for problem in report["problems"]) == [
        f"{filled.url}/v2/svc/multi/manifests/{ARM.digest}", f"{filled.url}/v2/svc/web/manifests/1",
    ]
    assert [(each["name"], [tag["platforms"] for tag in each["tags"]]) for each in report["repositories"]] == [
        ("svc/app", [None, None]), ("svc/multi", [["linux/amd64"]]), ("svc/web", []),
    ]


def test_no_blob_is_asked_for(filled: Registry, start_registry: StartRegistry, run_module: RunModule) -> None:
    """Not even a pull-through cache that is taken for a registry fetches a layer."""
    cache = start_registry(upstream=filled.url)
    (cache.v2 / "repositories/svc/app/_layers").mkdir(parents=True)
    assert [each["name"] for each in info(run_module, cache.url, details=True)["repositories"]] == ["svc/app"]
    fetched = [path.parent.name for path in cache.v2.glob("blobs/sha256/*/*/data")]
    assert set(fetched) <= {digest.partition(":")[2] for digest in (APP.digest, digest_of(INDEX))}


FAULTS = {
    "401": answer(401, f"no {PASSWORD}".encode(), WWW_Authenticate='Basic realm="lab"'), "403": answer(403), "404": answer(404),
    "429": answer(429, Retry_After="900"), "500": answer(500), "page": answer(200, b"<html>", Content_Type="text/html"), "short": answer(200, b"{}")[:-1],
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("call", ["_catalog", "tags/list", "manifests/1"])
def test_what_fails_is_told(serve: Serve, run_module: RunModule, name: str, call: str) -> None:
    answers = {
        "/v2/_catalog": b'{"repositories": ["svc/app", "svc/web"]}', "/v2/svc/app/tags/list": b'{"tags": ["1"]}', "/v2/svc/web/tags/list": b'{"tags": ["1"]}',
        "/v2/svc/app/manifests/1": APP.manifest, "/v2/svc/web/manifests/1": WEB.manifest,
    }

    def said(path: str) -> Any:
        path = path.partition("?")[0]
        if path.endswith(call) and "svc/web" not in path:
            return [FAULTS[name]]
        return answer(200, answers[path]) if path in answers else answer(404)

    server = serve(said)
    answered = run_module(cache_info.main, url=server.url, username="reader", password=PASSWORD)
    assert PASSWORD not in str({**answered, "invocation": None})
    if call == "_catalog":
        assert answered["failed"] and f"{server.url}/v2/_catalog" in answered["msg"]
        return
    (report,) = answered["caches"]
    assert [(each["name"], len(each["tags"])) for each in report["repositories"]] == [("svc/app", 0), ("svc/web", 1)]
    # Distribution goes on listing a repository whose tags are all gone.
    assert [problem["path"] for problem in report["problems"]] == ([] if (name, call) == ("404", "tags/list") else [f"{server.url}/v2/svc/app/{call}"])


def test_an_edge_is_refused(serve: Serve, run_module: RunModule) -> None:
    edge = serve(lambda path: answer(200, b"{}", Cache_Status="mirror; hit") if path == "/v2/" else answer(404))
    failed = run_module(cache_info.main, url=edge.url)
    assert failed["failed"] and "is the edge of a mirror host, which lists nothing" in failed["msg"] and len(edge.requests) == 1


@pytest.mark.parametrize(("options", "says"), [
    ({"url": "mirror:5000"}, "no URL of a registry"), ({"url": "http://a", "caches": []}, "mutually exclusive"),
    ({"username": "reader", "password": PASSWORD}, "missing parameter(s) required by 'username': url"),
    ({"url": "http://a", "username": "a"}, "required together"),
])
def test_bad_input_is_refused(run_module: RunModule, options: dict[str, Any], says: str) -> None:
    failed = run_module(cache_info.main, **options)
    assert failed["failed"] and says in failed["msg"] and PASSWORD not in failed["msg"]


def test_the_documented_query_works_as_written(filled: Registry, run_module: RunModule) -> None:
    text = yaml.safe_load(cache_info.EXAMPLES)[-1]["ansible.builtin.debug"]["msg"]
    query = re.search(r'central \| community\.general\.json_query\((".*")\)', text)
    assert query is not None
    central = run_module(cache_info.main, url=filled.url)
    assert json_query(central, json.loads(query[1])) == [
        {"name": "svc/app", "size": APP.size}, {"name": "svc/web", "size": WEB.size}, {"name": "svc/multi", "size": APP.size + ARM.size + len(INDEX)},
    ]
