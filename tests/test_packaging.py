"""Files that users run and no test does: requirements, locks, image, workflows, citation."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import densenet_flax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def requirements(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def workflow(path):
    document = yaml.safe_load(path.read_text())
    return document.pop(True), document  # YAML 1.1 reads the key `on` as true


def dockerfile():
    """The words of each step."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    "lock, jax", [("requirements.lock", "0.12"), ("requirements-oldest.lock", "0.10")]
)
def test_a_lock_is_within_the_ranges(lock, jax):
    exact = {
        canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements(lock)
    }
    for requirement in requirements("requirements.txt"):
        assert requirement.specifier.contains(exact[canonicalize_name(requirement.name)]), (
            requirement
        )
    assert exact["jax"].startswith(f"{jax}.") and exact["jaxlib"] == exact["jax"]


def test_every_python_that_is_promised_is_tested():
    supported = SpecifierSet(PROJECT["requires-python"])
    minors = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported]
    promised = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert promised == minors
    _, document = workflow(ROOT / ".github/workflows/test.yml")
    tested = document["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert {minors[0], minors[-1]} <= set(tested) <= set(minors)
    assert {"run": "bash .ci/run"} in document["jobs"]["test"]["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_pinned_and_may_only_read(path):
    _, document = workflow(path)
    assert document["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (\S+)(.*)", path.read_text())
    for action, comment in used:
        if not action.startswith("./"):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v[\d.]+", comment), f"{action}: say which version that is"


def test_only_a_tag_publishes_and_without_a_password():
    triggers, document = workflow(ROOT / ".github/workflows/release.yml")
    assert triggers == {"push": {"tags": ["v*"]}}
    jobs = document["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish", "docs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == ["test", "build"]
    pages = {"contents": "read", "pages": "write", "id-token": "write"}
    assert jobs["docs"]["permissions"] == pages and jobs["docs"]["needs"] == "test"
    assert all("secrets." not in path.read_text() for path in WORKFLOWS)


def test_the_links_of_the_readme_on_pypi_lead_to_the_tag(tmp_path):
    _, document = workflow(ROOT / ".github/workflows/release.yml")
    steps = document["jobs"]["build"]["steps"]
    (script,) = (step["run"] for step in steps if "README" in step.get("name", ""))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    home = "https://host.example/owner/name"
    env = {"GITHUB_SERVER_URL": "https://host.example", "GITHUB_REPOSITORY": "owner/name"}
    env |= {"GITHUB_REF_NAME": "v1.2.3", "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=env, check=True)
    links = re.findall(r"\]\(([^)]+)\)", (tmp_path / "README.md").read_text())
    before = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    for link, path in zip(links, before, strict=True):
        kind = "raw" if path.startswith("docs/pictures/") else "blob"
        assert link == (path if ":" in path else f"{home}/{kind}/v1.2.3/{path}")
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["urls"] == {"Repository": home}


def test_the_image_is_built_from_files_that_its_context_holds(tmp_path):
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for word, *names in dockerfile() if word == "COPY" for name in names[:-1]]
    assert set(copied) == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    for name in copied:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    # What pip asks the build backend for before it installs, and what the container starts.
    code = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_editable('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    metadata = next(tmp_path.glob("*.dist-info/METADATA")).read_text()
    assert f"\nVersion: {densenet_flax.__version__}\n" in metadata
    assert ["ENTRYPOINT", '["python",', '"main.py"]'] in dockerfile() and "main.py" in copied


@pytest.mark.parametrize("extra, target", [("", "."), ("cuda13", ".[cuda13]"), ("tpu", ".[tpu]")])
def test_the_image_is_installed_with_the_extra_that_is_asked_for(extra, target):
    installs = [
        " ".join(words) for word, *words in dockerfile() if word == "RUN" and "pip" in words
    ]
    script = 'python() { for word; do echo "$word"; done; }\n' + "\n".join(installs)
    said = subprocess.run(
        ["sh", "-c", script], env={"EXTRA": extra}, check=True, capture_output=True, text=True
    )
    words = said.stdout.splitlines()
    assert words.count("requirements.lock") == 2 and words[-1] == target
    assert not extra or extra in PROJECT["optional-dependencies"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == densenet_flax.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
