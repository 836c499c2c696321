"""The pages that people read: the generated one is current, links resolve, named files exist."""

import re
from pathlib import Path

import pytest

from infra.docs.make_sweep_file import PAGE, anchor, page

ROOT = Path(__file__).parents[2]
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


def test_a_dead_name_would_be_seen() -> None:
    assert NAMED.findall("in `sweeps/nowhere.py` and `a/b.py`") == ["sweeps/nowhere.py"]
    assert not PLACEHOLDER.search("sweeps/nowhere.py")
    assert PLACEHOLDER.search("peft_jobs/methods/x.py")
    assert PLACEHOLDER.search("runs/NAME/trials")
