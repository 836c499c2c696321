"""The code behind a person's functions: what counts, and what is looked at without importing."""

from pathlib import Path

import pytest

from sweeps.records.own_code import code_fingerprints

FILES = {
    "proj/__init__.py": "raise RuntimeError('nothing is imported to look')\n",
    "proj/metrics.py": "from . import parts\nfrom proj.deep.more import x\nimport json, numpy\n",
    "proj/parts.py": "VALUE = 1\n",
    "proj/deep/__init__.py": "",
    "proj/deep/more.py": "from ..other import y as x\n",
    "proj/other.py": "y = 2\n",
    "proj/unrelated.py": "z = 3\n",
    "beside.py": "import proj.parts as p\n",
}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "counts"),
    [
        ("proj/metrics.py", FILES["proj/metrics.py"] + "\n# a word\n", False),
        ("proj/metrics.py", FILES["proj/metrics.py"] + "\nw = 1\n", True),
        ("proj/__init__.py", "", True),
        ("proj/parts.py", "VALUE = 2\n", True),
        ("proj/deep/more.py", "from ..other import y as x\nq = 1\n", True),
        ("proj/other.py", "y = 3\n", True),
        ("proj/unrelated.py", "z = 4\n", False),
        ("beside.py", "pass\n", False),
        ("proj/parts.py", "VALUE = = 2\n", True),
    ],
)
def test_what_a_function_needs_counts_and_nothing_else(
    code: Path, name: str, text: str, counts: bool
) -> None:
    before = code_fingerprints({"proj.metrics:own"})
    assert before.keys() == {"proj.metrics:own"}
    (code / name).write_text(text)
    assert (code_fingerprints({"proj.metrics:own"}) != before) == counts


def test_a_module_alone_needs_what_it_imports(code: Path) -> None:
    before = code_fingerprints({"beside:f"})
    (code / "proj" / "parts.py").write_text("VALUE = 9\n")
    assert code_fingerprints({"beside:f"}) != before


def test_installed_code_and_code_that_is_elsewhere_are_left_out(code: Path) -> None:
    elsewhere = {"json:loads", "numpy:mean", "sweeps.run:launch", "nowhere_at_all:f", "proj.no:f"}
    assert code_fingerprints(elsewhere) == {}
