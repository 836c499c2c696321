"""`compose` on trained adapters of the demo's base, from the board to the files."""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from peft_jobs import SpecError, TrialSpec
from peft_jobs.spec.combination import CombinationSpec
from sweeps import build_sweep, open_sweep
from sweeps.cli.app import app
from sweeps.combination.compose import Asked, Composed, compose
from sweeps.combination.ingredients import gather
from sweeps.exporters.hub import parcel
from sweeps.run import launch

ANIMALS = ("zebra", "cat", "dog")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps on the demo: three LoRAs of several ranks, and one of another learning rate."""
    folder = tmp_path_factory.mktemp("combination")
    for split, count in (("train", 64), ("validation", 16), ("test", 12)):
        rows = (
            {"record": f"{split} {n}", "sentence": f"a {ANIMALS[n % 3]} sees {n % 5}"}
            for n in range(count)
        )
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sweep: dict[str, Any] = {
        "model": "demo",
        "task": {"type": "causal_lm", "prompt": "{record}\n", "response": "{sentence}"},
        "data": {
            **{split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")},
            "max_length": 64,
        },
        "adapter": {"lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        "training": {"learning_rate": 5e-3, "per_device_train_batch_size": 8},
        "space": {"parameters": {"adapter.r": {"choices": [2, 4, 8]}}},
        "sampler": "grid",
        "pruner": "none",
        "budget": {"n_trials": 3, "max_samples": 64},
        "resources": {"backend": "inline", "engine": "solo"},
        "tracking": {"enabled": False},
        "storage": str(folder / "runs"),
    }
    assert launch(build_sweep({"name": "one", **sweep})).status == "complete"
    other = {"training": {**sweep["training"], "learning_rate": 2e-3}, "name": "v1.other"}
    few = {"space": {"parameters": {"adapter.r": {"choices": [4]}}}}
    assert launch(build_sweep({**sweep, **other, **few})).status == "complete"
    return folder / "runs"


@pytest.fixture(scope="module")
def composed(storage: Path) -> Composed:
    """All three, and the other sweep's, written whatever the rows say."""
    labels = ("0", "1", "2", "v1.other:0")
    hows = (CombinationSpec(), CombinationSpec(type="svd", rank=6))
    sweep = open_sweep(storage, "one")
    return compose(sweep, Asked(adapters=labels, hows=hows, anyway=True), to=("peft", "merged"))


def test_the_adapters_alone_are_what_the_sweep_recorded(composed: Composed, storage: Path) -> None:
    board = open_sweep(storage, "one").leaderboard()
    recorded = {f"{row.number:04d}": row.value for row in board.rows}
    found = {name: one.value for one in composed.contest.alone for name in one.weights}
    assert found.keys() == {*recorded, "v1.other:0000"}
    for name, value in recorded.items():
        assert found[name] == pytest.approx(value, abs=1e-5)
    assert [one.value for one in composed.contest.alone] == sorted(found.values())


def test_what_is_written_is_what_was_chosen(composed: Composed) -> None:
    exported, best = composed.exported, composed.contest.best
    assert exported is not None
    assert exported.recorded == best.metrics
    for name, value in best.metrics.items():
        assert exported.validation[name] == pytest.approx(value, abs=1e-5)
        assert exported.merged is not None
        assert exported.merged[name] == pytest.approx(value, abs=1e-4)
    spec = TrialSpec.model_validate_json((exported.path / "trial.json").read_text())
    assert spec.adapter.r == json.loads((exported.path / "adapter_config.json").read_text())["r"]
    assert not spec.adapter.use_rslora
    record = json.loads((exported.path / "export.json").read_text())
    assert [part["sweep"] for part in record["parts"]] == ["one", "one", "one", "v1.other"]


def test_what_is_written_can_go_to_the_hub(composed: Composed) -> None:
    assert composed.exported is not None
    sent = parcel(composed.exported.path)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= {*sent.files}
    assert {"merged/", "export.json", "trial.json"} <= sent.kept.keys()


def test_the_test_rows_of_both_are_told(composed: Composed) -> None:
    assert composed.test is not None
    assert composed.exported is not None
    assert composed.exported.test == composed.test.combined
    assert composed.test.combined.keys() == composed.test.alone.keys()


def test_the_card_says_what_it_is_made_of_and_its_code_runs(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported, best = composed.exported, composed.contest.best
    assert exported is not None
    text = (exported.path / "README.md").read_text()
    card = ModelCard(text)
    assert "base_model" not in card.data.to_dict()  # that of the demo is not on the Hub
    assert "merge" in card.data.tags
    made = text.partition("## Made of")[2].partition("##")[0]
    assert len(re.findall(r"^\| trial \d{4} of ", made, re.MULTILINE)) == len(best.weights)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(exported.path)
    names: dict[str, Any] = {}
    exec(code, names)
    tokens = names["tokenizer"]("a cat sees", return_tensors="pt").input_ids
    merged = AutoModelForCausalLM.from_pretrained("merged").eval()
    logits, by_adapter = merged(tokens).logits, names["model"](tokens).logits
    torch.testing.assert_close(logits, by_adapter, rtol=0, atol=1e-4)


def test_a_second_call_measures_nothing(composed: Composed, storage: Path) -> None:
    assert composed.exported is not None
    record = composed.exported.path / "export.json"
    given = json.loads(record.read_text())
    record.write_text(json.dumps({**given, "recorded": {"validation/loss": 17.0}}))
    labels = ("0", "1", "2", "v1.other:0")
    hows = (CombinationSpec(), CombinationSpec(type="svd", rank=6))
    asked = Asked(adapters=labels, hows=hows)
    again = compose(open_sweep(storage, "one"), asked)
    record.write_text(json.dumps(given))
    assert again.exported is not None
    assert again.exported.recorded == {"validation/loss": 17.0}
    assert again.contest == composed.contest
    with pytest.raises(SpecError, match="holds something else"):
        compose(open_sweep(storage, "one"), Asked(adapters=labels))


def test_the_command_tells_the_table_and_the_judgement(composed: Composed, storage: Path) -> None:
    assert composed.exported is not None
    words = ["compose", "one", "--storage", str(storage), "--adapters", "0,1,2,v1.other:0"]
    told = CliRunner().invoke(app, [*words, "--type", "cat,svd", "--rank", "6"])
    assert told.exit_code == 0, told.output
    flat = " ".join(told.output.split())
    assert "uniform, cat" in flat
    assert "ccepted: it is" in flat
    assert "On the test rows:" in flat
    told = CliRunner().invoke(app, [*words, "--type", "cat,svd", "--rank", "6", "--json"])
    assert json.loads(told.stdout)["accepted"] is (composed.contest.accepted is not None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--adapters", "0"], "at least two"),
        (["--adapters", "0,0"], "0000 is named twice"),
        (["--adapters", "v1.other:0"], "name one adapter of one at least"),
        (["--adapters", "0,zero"], "an adapter is named as 7, or SWEEP:7"),
        (["--adapters", "0,9"], "has no trial 9"),
        (["--adapters", "0,nine:1"], "there is no sweep 'nine'"),
        (["--top", "7"], "has 3 ranked trials"),
        (["--top", "2", "--adapters", "0,1"], "give either --top or --adapters"),
        (["--type", "tie"], "did you mean 'ties'"),
        (["--type", "ties"], "ties needs density"),
        (["--type", "linear"], "adds up factors of one rank"),
        (["--weights", "1,2"], "need as many weights, got 2"),
        (["--weights", "1,two,3"], "must be numbers, got 'two'"),
        (["--rank", "4"], "--rank is for svd"),
        (["--density", "0.5"], "--density is for ties"),
        (["--to", "trl"], "trl trains a trial again"),
        (["--to", "tlr"], "unknown exporter 'tlr'"),
    ],
)
def test_what_cannot_be_is_said_at_once(options: list[str], reason: str, storage: Path) -> None:
    told = CliRunner().invoke(app, ["compose", "one", "--storage", str(storage), *options])
    assert told.exit_code == 2
    assert reason in " ".join(told.output.split())


def test_an_adapter_that_is_gone_is_named(storage: Path, tmp_path: Path) -> None:
    sweep = open_sweep(storage, "one")
    adapter = sweep.folder.trial(1) / "adapter"
    adapter.rename(tmp_path / "aside")
    try:
        with ExitStack() as stack, pytest.raises(SpecError, match="no adapter of trial 1 of one"):
            gather(sweep, ["0", "1"], lambda name: sweep, stack)
    finally:
        (tmp_path / "aside").rename(adapter)
