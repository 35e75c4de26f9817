# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the documents say exists: links, headings, playbooks, roles, plugins, make targets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/**/*.md", "roles/*/*.md") for path in ROOT.glob(pattern))
PLUGINS = {path.stem for path in ROOT.glob("plugins/*/*.py")}
ROLES = {path.name for path in ROOT.glob("roles/*")}
PLAYBOOKS = {path.stem for path in ROOT.glob("playbooks/*.yml")}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(document: Path) -> set[str]:
    """The names of a document's headings as links use them, by GitHub's rule: lower case, hyphens, no punctuation."""
    headings = re.findall(r"^#+ +(.+?)\s*$", without_code(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(document: Path) -> str:
    """The text without its blocks of code, where a # begins a comment and brackets are no link."""
    return re.sub(r"^( *)```.*?^\1```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)", without_code(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _hash, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@each_document
def test_files_that_are_named_exist(document: Path) -> None:
    folders = "benchmarks|docs|inventories|lab|molecule|playbooks|plugins|roles|tests"
    # Neither preceded by the path that something else has, nor holding a placeholder.
    names = re.findall(rf"(?<![\w./<>~-])((?:{folders})/[\w./-]*\w)(?![\w<>{{}}*/])", document.read_text())
    assert not [name for name in names if not (ROOT / name).exists()]


@each_document
def test_names_in_the_collection_exist(document: Path) -> None:
    names = re.findall(r"\bmirrorfleet\.registry\.(\w+)", document.read_text())
    assert not set(names) - PLUGINS - ROLES - PLAYBOOKS


@each_document
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert not set(re.findall(r"(?:`|^ *\0 *)make ([\w-]+)", document.read_text(), re.MULTILINE)) - targets


def test_the_readme_names_every_playbook_role_and_module() -> None:
    text = (ROOT / "README.md").read_text()
    modules = {path.stem for path in ROOT.glob("plugins/modules/*.py")}
    # What only other roles import is none of an operator's business.
    tasks = "".join(path.read_text() for path in ROOT.glob("roles/*/tasks/*.yml"))
    roles = {role for role in ROLES if f"name: mirrorfleet.registry.{role}\n" not in tasks}
    assert not {name for name in modules | roles | PLAYBOOKS if not re.search(rf"\b{name}\b", text)}


def test_antsibull_accepts_the_documentation() -> None:
    command = ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "--skip-rstcheck", str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
