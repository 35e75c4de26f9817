# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""A Bearer upstream, as the Docker Hub is one, from end to end: the roles' configurations, distribution behind Varnish and HAProxy, a registry that
asks for tokens. Only the token server is a small one of our own: distribution brings none."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from typing import Any, Callable

from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.plugins.modules import mirror_pull
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Authority,
    Registry,
    RunModule,
    StartRegistry,
    answer,
    free_port,
    image_of,
    layer_of,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render, cache_configuration, cache_file, upstream_port
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_fetch_coalescer import variables_in, varnish
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_haproxy_front import haproxy

PASSWORD = "hub-Pass-1"
BASIC = base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
IMAGE = image_of(layer_of({"app": b"the application" * 1000}))


def test_a_pull_from_a_bearer_upstream(
    render: Render, tmp_path: Path, base: Path, start_registry: StartRegistry, serve: Callable[..., Any], authority: Authority, run_module: RunModule,
) -> None:
    tokens = serve(lambda path: authority.token(path) if BASIC in tokens.requests[-1] else answer(401, b"who are you"))
    hub = start_registry(auth={"token": {"realm": f"{tokens.url}/token", "service": "lab", "issuer": "lab", "rootcertbundle": str(authority.certificate)}})
    granted = authority.token("/?scope=repository:svc/app:pull,push").partition(b"\r\n\r\n")[2]
    hub.headers = {"Authorization": f"Bearer {json.loads(granted)['token']}"}
    hub.push("svc/app", "1", IMAGE)

    port, stats_port = upstream_port(), free_port()
    ports = {use: port + offset for use, offset in PORT_OFFSETS.items()}
    variables = {
        "mirror_upstreams": [{
            "name": "hub", "url": hub.url, "port": port, "canary": "svc/app:1", "auth": "bearer", "token_realm": f"{tokens.url}/token",
            "token_service": "lab", "username": "reader", "password": PASSWORD,
        }],
        "haproxy_front_stats_bind": f"127.0.0.1:{stats_port}",
        "__haproxy_front_run": str(tmp_path),
        "pull_through_cache_storage": str(tmp_path / "store"),
        **variables_in(base),
    }
    (front_files,), (coalescer_files,), (cache_files,) = (render(role, variables) for role in ("haproxy_front", "fetch_coalescer", "pull_through_cache"))
    assert not [each["path"] for each in front_files if BASIC in each["content"] or PASSWORD in each["content"]]
    # A file that holds a secret says so.
    assert (cache_file(cache_files, "hub")["secret"], cache_file(cache_files, "hub")["mode"]) == (True, "0400")
    cache = Registry(ports["cache"], ports["debug"], tmp_path / "store" / "hub")
    with contextlib.ExitStack() as running:
        front = running.enter_context(haproxy(front_files, tmp_path, {"hub": ports["front"]}, stats_port))
        running.enter_context(varnish(coalescer_files, "hub", base / "hub"))
        (tmp_path / "store").mkdir()
        running.callback(cache.stop)
        cache.start(cache_configuration(cache_files, "hub"))
        pulled = run_module(mirror_pull.main, image="svc/app:1", url=cache.url)
        assert pulled["digest"] == IMAGE.digest, pulled
        assert tokens.requests and all(BASIC in request for request in tokens.requests)
        assert BASIC not in front.log() and PASSWORD not in front.log()

        cache.until_stored(IMAGE.digest, *IMAGE.blobs)

        # What is cached is served, and a cache starts, without upstream and token server.
        hub.stop()
        tokens.shutdown()
        cache.stop()
        cache.start()
        alone = run_module(mirror_pull.main, image=f"svc/app@{IMAGE.digest}", url=cache.url)
        assert alone.get("digest") == IMAGE.digest, alone
