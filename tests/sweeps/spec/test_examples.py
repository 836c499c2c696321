"""The sweep files beside the code: all can be read, and say what they are for."""

from pathlib import Path

import pytest
import yaml

import sweeps
from peft_jobs.spec import TASK_SPECS, file_format
from sweeps import load_sweep

FOLDER = Path(sweeps.__file__).parent / "examples"
EXAMPLES = sorted(FOLDER.rglob("*.yaml"))
NAMES = [path.stem for path in EXAMPLES]


def test_the_promised_ones_are_there() -> None:
    assert {"demo", "laptop", "qlora-24gb", "cluster", "classification"} <= set(NAMES)
    assert {section.STARTER for section in TASK_SPECS.values()} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_it_can_be_launched(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in yaml.safe_load(path.read_text())["data"].values():
        if isinstance(source, str) and file_format(source):
            (tmp_path / source).write_text("")
    spec = load_sweep(path)
    assert spec.name == path.stem
    assert spec.budget.n_trials >= 12


@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_it_opens_with_a_sentence_on_what_it_is_for(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith((".", "?")) or ": " in first


@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_it_holds_no_credentials(path: Path) -> None:
    for line in path.read_text().splitlines():
        if "://" in line and "@" in line:
            assert line.startswith("#")
            assert "USER:PASSWORD@" in line


def test_the_demo_needs_no_network() -> None:
    spec = load_sweep(FOLDER / "demo.yaml")
    data = spec.trial.data
    assert {spec.trial.model.name_or_path, data.train.path} == {"demo"}
    assert spec.trial.quantization.scheme == "nf4"
    assert spec.trial.quantization.bnb_4bit_use_double_quant
    assert spec.budget.n_trials >= 16
    sampled = {"r", "lora_alpha", "lora_dropout", "target_modules", "learning_rate"}
    assert sampled == {name.rpartition(".")[2] for name in spec.space.parameters}  # type: ignore[union-attr]
