"""The pages that people read: the generated one is current, links resolve, named files exist."""

import re
from pathlib import Path

import pytest

from infra.docs.make_sweep_file import PAGE, anchor, page
from tests.support.repository import REPOSITORY as ROOT

PACKAGES = ("search_spaces", "peft_jobs", "sweeps")
PAGES = sorted(
    {
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / ".github" / "CONTRIBUTING.md",
        *(ROOT / package / "README.md" for package in PACKAGES),
        *(ROOT / "infra").rglob("*.md"),
    }
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(rf"`((?:{'|'.join(PACKAGES)}|infra|tests)/[^`\s]*)`")
BARE = re.compile(r"`(\w+\.(?:py|sh))`")
"""A module that a page names without its folder."""
BELOW = re.compile(r"`(\w+(?:/[\w.]*)+)`")
"""What a package's README names, seen from the package."""
PLACEHOLDER = re.compile(r"NAME|[*<>{}…]|\.\.\.|(^|/)(test_)?x\.\w+$")
"""`peft_jobs/methods/x.py`, `tests/**/test_*_contract.py`, `infra/...`: no single file is meant."""


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {anchor(LINK.sub(lambda link: link[0].partition("]")[0], text)) for text in headings}


def test_there_are_pages() -> None:
    assert len(PAGES) >= 12


def test_the_reference_of_the_sweep_file_is_made_from_the_schema() -> None:
    told = "run: .venv/bin/python infra/docs/make_sweep_file.py"
    assert PAGE.read_text("utf-8") == page(), told


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    dead = []
    for link in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):  # another site's
            continue
        file, _, fragment = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (fragment and fragment not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(path: Path) -> None:
    names = {name.partition(":")[0] for name in NAMED.findall(prose(path))}
    missing = [n for n in sorted(names) if not (ROOT / n).exists() and not PLACEHOLDER.search(n)]
    assert missing == []


def test_bare_names_of_modules_exist() -> None:
    known = {path.name for folder in (*PACKAGES, "infra", "tests") for path in sources(folder)}
    assert len(known) > 200
    named = {(page.name, name) for page in PAGES for name in BARE.findall(prose(page))}
    missing = [(page, n) for page, n in named if n not in known and not PLACEHOLDER.search(n)]
    assert missing == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_of_a_package_names_what_is_there(package: str) -> None:
    folder = ROOT / package
    text = prose(folder / "README.md")
    named = {name for name in BELOW.findall(text) if not PLACEHOLDER.search(name)}
    named |= {name for name in BARE.findall(text) if not PLACEHOLDER.search(name)}
    assert len(named) >= 8
    assert [name for name in sorted(named) if not (folder / name).exists()] == []
    folders = {p.name for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"}
    modules = {p.name for p in folder.glob("*.py") if not p.name.startswith("__")}
    parts = {part for name in named for part in name.split("/")}
    assert (folders | modules) - parts == set()


def sources(folder: str) -> list[Path]:
    return [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.sh")]


def test_a_dead_name_would_be_seen() -> None:
    assert NAMED.findall("in `sweeps/nowhere.py` and `a/b.py`") == ["sweeps/nowhere.py"]
    assert not PLACEHOLDER.search("sweeps/nowhere.py")
    assert PLACEHOLDER.search("peft_jobs/methods/x.py")
    assert PLACEHOLDER.search("runs/NAME/trials")
