"""All files of infra/: they parse, hold no secret, pin what they start, and open no port."""

import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.documents import INFRA, ROOT, documents, found, leaves

TOOLS = Path(sys.executable).parent
YAML = found("*.yaml")
SCRIPTS = found("*.sh", "*.sbatch")
DOCKERFILES = found("Dockerfile")
# A password, token or key with a value; references (${...}, a secret's name) are none.
SECRET = re.compile(
    r"(password|passwd|token|secret|(access|session)_key|api_key)['\"]?\s*[:=]\s*['\"]?(?!\$|//|\w+\.)\w{6}",
    re.IGNORECASE,
)


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_every_document_parses(path: Path) -> None:
    assert documents(path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_and_shellcheck_have_nothing_to_say(path: Path) -> None:
    assert run("bash", "-n", path).stderr == ""
    assert run(TOOLS / "shellcheck", "--shell=bash", "--external-sources", path).stdout == ""


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    assert run(TOOLS / "hadolint", path).stdout == ""


def test_what_the_image_copies_is_there_and_let_through() -> None:
    for dockerfile in DOCKERFILES:
        lines = re.findall(r"^COPY (.+) \S+$", dockerfile.read_text(), re.MULTILINE)
        sources = [source for line in lines for source in line.split()]
        ignored = dockerfile.with_name("Dockerfile.dockerignore").read_text().splitlines()
        assert sources
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


@pytest.mark.parametrize("path", found("*"), ids=lambda path: str(path.relative_to(INFRA)))
def test_no_file_holds_a_secret(path: Path) -> None:
    if path.is_file() and path.name != ".env":
        hits = [line for line in path.read_text().splitlines() if SECRET.search(line)]
        assert hits == []


def test_a_secret_would_be_found() -> None:
    for line in ("POSTGRES_PASSWORD=hunter2", "  RAY_AUTH_TOKEN: abcdef123", 'token = "abcdef12"'):
        assert SECRET.search(line)
    assert not SECRET.search("POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?run make_env.sh}")


def test_every_image_has_a_tag_that_stays() -> None:
    images = [
        str(value)
        for path in YAML
        for document in documents(path)
        for name, value in leaves(document)
        if name.rpartition(".")[2] == "image"
    ]
    images += re.findall(r"^ARG PYTHON_TAG=(\S+)$", DOCKERFILES[0].read_text(), re.MULTILINE)
    assert len(images) > 5
    for image in images:
        tag = re.sub(r"^\$\{\w+:-(.+)\}$", r"\1", image).rpartition(":")[2]
        assert re.match(r"\d+\.\d+", tag), f"{image} is not pinned"


def test_the_versions_in_the_files_are_the_pinned_ones() -> None:
    pins = dict(
        line.split("==") for line in (INFRA / "constraints.txt").read_text().split() if "==" in line
    )
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    for path in found("kuberay/*.yaml", "compose/*.yaml"):
        text = path.read_text()
        assert set(re.findall(r"^ *rayVersion: \"(.+)\"", text, re.MULTILINE)) <= {pins["ray"]}
        assert set(re.findall(r"peft-sweeps:([\d.]+)", text)) <= {project[1]}


def test_the_pinned_set_meets_every_bound() -> None:
    """Whether the bounds themselves do is tried by `infra/minimum_versions.sh`."""
    pins = [Requirement(line) for line in (INFRA / "constraints.txt").read_text().split()]
    pinned = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [Requirement(one) for one in chain(project["dependencies"], *extras)]
    assert len(wanted) > 30
    for one in wanted:
        if one.name != project["name"]:
            assert one.specifier.contains(pinned[canonicalize_name(one.name)]), str(one)


def test_the_env_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    for name in ("make_env.sh", ".env.example"):
        shutil.copy(INFRA / "compose" / name, tmp_path)
    assert run("bash", tmp_path / "make_env.sh").returncode == 0
    made = tmp_path / ".env"
    assert made.stat().st_mode & 0o777 == 0o600
    values = dict(
        line.split("=", 1) for line in made.read_text().splitlines() if line[:1].isupper()
    )
    assert len(set(values.values())) == len(values) >= 6
    assert all(len(value) >= 32 and value.isalnum() for value in values.values())
    before = made.read_text()
    again = run("bash", tmp_path / "make_env.sh")
    assert again.returncode == 2
    assert made.read_text() == before
