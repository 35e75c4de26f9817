# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Clients that pull images in turn, each by itself, for as long as a file is there; then one line of JSON says how that went.

usage: pull_on.py FILE URL CLIENTS IMAGE …
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from puller import PullError, Registry, pull


def main(going: Path, url: str, clients: int, images: list[str]) -> None:
    pulls, retries, errors, slowest = 0, 0, list[str](), 0.0
    lock = threading.Lock()

    def client(number: int) -> None:
        nonlocal pulls, retries, slowest
        while going.exists():
            image = images[number % len(images)]
            number += 1
            registry, began = Registry(url), time.monotonic()
            error = ""
            try:
                pull(registry, image)
            except (PullError, OSError, ValueError, RuntimeError) as failure:
                error = f"{time.strftime('%T')} {image}: {type(failure).__name__}: {failure}"
            with lock:
                pulls, retries, slowest = pulls + 1, retries + registry.report.retries, max(slowest, time.monotonic() - began)
                errors.extend([error] if error else [])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"pulls": pulls, "retries": retries, "slowest": round(slowest, 1), "failures": len(errors), "errors": errors[:20]}))


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
