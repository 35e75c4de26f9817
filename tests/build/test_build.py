# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The collection as its users get it: built from this checkout, installed elsewhere, and used from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
NAME = "mirrorfleet.registry"
PLUGINS = sorted(path for kind in ("modules", "filter", "lookup") for path in ROOT.glob(f"plugins/{kind}/*.py"))
ROLES = sorted(path.parent.parent.name for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
PLAYBOOKS = sorted(path.stem for path in ROOT.glob("playbooks/*.yml"))


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What the command says on standard output, when it succeeds.

    It runs in a folder of collections, and knows neither this checkout nor its ansible.cfg.
    """
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(folder)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    run([BIN / "ansible-galaxy", "collection", "build", "--output-path", folder, ROOT], folder)
    (built,) = folder.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def installed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of collections into which the archive was installed."""
    folder = tmp_path_factory.mktemp("installed")
    run([BIN / "ansible-galaxy", "collection", "install", "--offline", "--no-deps", "--collections-path", folder, archive], folder)
    return folder


def test_the_archive_holds_what_git_knows(installed: Path) -> None:
    """Neither a file of this machine (.venv, .lab, caches) nor one short."""
    listing = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
    left_out = (".ci/", ".collections/", ".config/", ".gitignore", "galaxy.yml", "inventories/lab", "lab/", "molecule/", "tests/")
    wanted = {name for name in listing if not name.startswith(left_out) and (ROOT / name).is_file()}
    collection = installed / "ansible_collections" / "mirrorfleet" / "registry"
    found = {str(path.relative_to(collection)) for path in collection.rglob("*") if path.is_file()}
    assert found - {"MANIFEST.json", "FILES.json"} == wanted


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.stem)
def test_a_plugin_is_documented(plugin: Path, installed: Path) -> None:
    kind = "module" if plugin.parent.name == "modules" else plugin.parent.name
    name = f"{NAME}.{plugin.stem}"
    text = run([BIN / "ansible-doc", "--json", "--type", kind, name], installed)
    assert json.loads(text)[name]["doc"]["short_description"]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_documented(role: str, installed: Path) -> None:
    name = f"{NAME}.{role}"
    text = run([BIN / "ansible-doc", "--json", "--type", "role", name], installed)
    assert json.loads(text)[name]["entry_points"]["main"]["short_description"]


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_is_found_by_its_name(playbook: str, installed: Path) -> None:
    command = [BIN / "ansible-playbook", "--inventory", "localhost,", "--syntax-check", f"{NAME}.{playbook}"]
    run(command, installed)


def test_galaxy_accepts_the_archive(archive: Path, tmp_path: Path) -> None:
    """By the program that Galaxy runs on an upload, in its own virtual environment; it exits with 0 whatever it finds."""
    importer = ROOT / ".venv" / "galaxy-importer" / "bin"
    path = f"{importer}:{os.environ['PATH']}"
    result = subprocess.run(
        [importer / "python", "-m", "galaxy_importer.main", archive],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "GALAXY_IMPORTER_CHECK_REQUIRED_TAGS": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    (ROOT / ".lab" / "logs" / "galaxy-importer.log").write_text(output)
    assert "Importer processing completed successfully" in output, output
    assert "ERROR" not in output, output
