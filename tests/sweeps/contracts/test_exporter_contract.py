"""What every exporter must do: write into an empty folder, measure it, and repeat nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import SpecError, TrialSpec
from sweeps import Exported, build_sweep, export_trial
from sweeps.exporters import EXPORTERS, Draft
from sweeps.exporters.exporter import Form
from sweeps.run import launch

SWEEP: dict[str, Any] = {
    "name": "one",
    "model": "demo",
    "task": {"type": "causal_lm", "prompt": "{record}\n", "response": "{sentence}"},
    "data": {"train": "demo", "validation": "demo", "max_length": 64, "validation_subset": 16},
    "space": {"parameters": {"training.learning_rate": {"low": 1e-3, "high": 2e-3}}},
    "budget": {"n_trials": 1, "max_samples": 32, "num_rungs": 1},
    "resources": {"backend": "inline"},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one trial that was trained."""
    storage = tmp_path_factory.mktemp("storage")
    assert launch(build_sweep({**SWEEP, "storage": str(storage)})).status == "complete"
    return storage


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", EXPORTERS)
def test_it_writes_into_an_empty_folder_and_changes_nothing_again(
    name: str, storage: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    exported = export_trial(storage, "one", out=out, to=(name,))
    assert isinstance(exported, Exported)
    assert exported.validation == pytest.approx(exported.recorded, rel=1e-5)
    written = files(out)
    assert {"adapter_config.json", "trial.json", "export.json", "README.md"} <= written.keys()
    record = json.loads(written["export.json"])
    assert {"sweep", "trial", "recorded", "validation", "test", "merged"} <= record.keys()
    form = EXPORTERS[name].form(TrialSpec.model_validate_json(written["trial.json"]), record)
    if form is not None:
        if form.metrics:
            assert form.metrics == pytest.approx(exported.recorded, rel=1e-3)
        else:
            assert exported.differences[name]
        assert form.text in written["README.md"].decode()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert export_trial(storage, "one", out=out, to=(name,)) == exported
    assert export_trial(storage, "one", out=out) == exported
    assert files(out) == written
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_an_unknown_name_is_answered_with_the_known_ones(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        export_trial(storage, "one", out=tmp_path / "out", to=("peft", "mergd"))
    known = ", ".join(sorted(EXPORTERS))
    told = f"unknown exporter 'mergd'; did you mean 'merged'? known: {known}"
    assert str(raised.value) == told
    assert not (tmp_path / "out").exists()


class Listing:
    """An exporter that writes the names of the adapter's files."""

    def check(self, spec: TrialSpec) -> None:
        if spec.seed == 13:
            raise SpecError("not this one")

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        return ()

    def write(self, draft: Draft) -> dict[str, Any]:
        if "listing" in draft.record:
            return {}
        names = sorted(path.name for path in draft.path.iterdir())
        (draft.path / "listing.json").write_text(json.dumps(names))
        return {"listing": {"validation/files": float(len(names))}}

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        found = record.get("listing")
        return found and Form("listed", found, "`listing.json` names the files.")


def test_one_entry_is_all_that_a_new_form_takes(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORTERS, "listing", Listing())
    exported = export_trial(storage, "one", out=tmp_path / "out", to=("listing",))
    assert "adapter_config.json" in json.loads((exported.path / "listing.json").read_text())
    card = (exported.path / "README.md").read_text()
    assert "| adapter, loaded again | listed |" in card
    assert "`listing.json` names the files." in card
    before = files(exported.path)
    assert export_trial(storage, "one", out=tmp_path / "out", to=("listing",)) == exported
    assert files(exported.path) == before
