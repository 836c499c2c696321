"""Every method as a trial of the solo engine: trained, cut off, resumed, saved, scored again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.engines.solo.adapter_export import merge_adapter, score_adapter
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import ADAPTERS
from tests.support.method_examples import EXAMPLES, Example

FIRST = {example.method: example for example in reversed(EXAMPLES)}
CAUSAL = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
CLASSES = {"type": "sequence_classification", "text": "{q}", "text_pair": "{a}", "label": "class"}
COMMON = {
    "data.validation": 0.2,
    "training.learning_rate": 5e-3,
    "training.max_steps": 6,
    "training.per_device_train_batch_size": 4,
    "training.logging_steps": 1,
    "seed": 3,
}
VARIANTS = {
    "lora+": {"adapter.loraplus_lr_ratio": 8.0},
    "dora": {"adapter.use_dora": True},
    "eva": {"adapter.init_lora_weights": "eva"},
    "corda": {"adapter.init_lora_weights": "corda"},
    "pissa": {"adapter.init_lora_weights": "pissa"},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    """Leaves a checkpoint at every step."""
    return SoloEngine(str(tmp_path_factory.mktemp("cache")), threads=1, checkpoint_seconds=0)


@pytest.fixture
def make(trial: Any, rows_path: Path, tiny_bert_path: Path) -> Any:
    """(method's parameters, more) -> a spec on the tiny Llama, or on BERT for classification."""

    def build(params: dict[str, Any], bert: bool = False) -> TrialSpec:
        params = {**COMMON, "data.train": {"path": str(rows_path)}, "task": CAUSAL, **params}
        if bert:
            params |= {"task": CLASSES, "model": {"name_or_path": str(tiny_bert_path)}}
        return trial(params)  # type: ignore[no-any-return]

    return build


def parameters(example: Example) -> dict[str, Any]:
    """Of a method, with the modules that any architecture has."""
    names = ("target_modules", "modules_to_save", "rank_pattern", "alpha_pattern")
    left_out = {f"adapter.{name}" for name in names}
    return {name: value for name, value in example.params.items() if name not in left_out}


CASES = {method: parameters(FIRST[method]) for method in ADAPTERS} | VARIANTS


def some(cases: Any, *quick: str) -> list[Any]:
    """The cases, all but the quick ones marked slow."""
    return [pytest.param(c, marks=[] if c in quick else pytest.mark.slow) for c in cases]


def adapter(run: Any, attempt: int = 1) -> bytes:
    folder = run.folder / "attempts" / str(attempt) / "adapter"
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_bottleneck_trains_on_a_quantized_base(
    engine: SoloEngine, listen: Any, make: Any, tmp_path: Path, scheme: str
) -> None:
    spec = make({**CASES["bottleneck"], "quantization.scheme": scheme})
    run = listen(engine, tmp_path / "trial")
    result = run.run(spec)
    assert (result.state, result.step) == ("COMPLETE", 6), result.traceback
    folder, cache = run.folder / "attempts/1/adapter", tmp_path / "cache"
    scored, _ = score_adapter(spec.to_json(), folder, cache, test=False)
    measured = {name: result.metrics[name] for name in scored}
    assert scored == pytest.approx(measured, rel=1e-4)


@pytest.mark.parametrize(
    "case", some(CASES, "adalora", "p_tuning", "bottleneck", "full", "pissa", "lora+")
)
def test_a_trial_goes_on_from_its_middle_and_scores_the_same_from_its_files(
    engine: SoloEngine, listen: Any, make: Any, tmp_path: Path, case: str
) -> None:
    spec = make(CASES[case])
    first = listen(engine, tmp_path / "trial")
    whole = first.run(spec)
    assert whole.error is None, whole.traceback
    assert "changed the resident base" not in (first.folder / "attempts/1/log.txt").read_text()
    losses = [report.metrics["train/loss"] for report in first.reports]
    assert len(set(losses)) == len(losses) == 6

    again = listen(engine, first.folder)
    result = again.run(spec, attempt=2, checkpoint=first.checkpoints()[2])
    assert result.error is None, result.traceback
    assert result.provenance["resumed_from"] == 3
    assert result.metrics == whole.metrics
    assert [report.metrics["train/loss"] for report in again.reports] == losses[2:]
    assert adapter(again, 2) == adapter(first)

    folder, cache = first.folder / "attempts/1/adapter", tmp_path / "cache"
    scored, _ = score_adapter(spec.to_json(), folder, cache, test=False)
    measured = {name: whole.metrics[name] for name in scored}
    assert scored == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize(
    "case", [name for name in CASES if ADAPTERS.get(name, ADAPTERS["lora"]).MERGES]
)
def test_a_merged_model_scores_like_its_adapter(
    engine: SoloEngine, listen: Any, make: Any, tmp_path: Path, case: str
) -> None:
    spec = make(CASES[case])
    run = listen(engine, tmp_path / "trial")
    whole = run.run(spec)
    folder = run.folder / "attempts/1/adapter"
    merged = merge_adapter(spec.to_json(), folder, tmp_path / "merged", tmp_path / "cache")
    assert merged["validation/loss"] == pytest.approx(whole.metrics["validation/loss"], abs=1e-4)


@pytest.mark.parametrize("case", some(CASES, "prefix_tuning", "bottleneck"))
def test_a_classifier_trains_with_its_head_and_scores_the_same_from_its_files(
    engine: SoloEngine, listen: Any, make: Any, tmp_path: Path, case: str
) -> None:
    layers = {"adapter.target_modules": "attention"} if case == "corda" else {}
    spec = make(CASES[case] | layers, bert=True)
    run = listen(engine, tmp_path / "trial")
    whole = run.run(spec)
    assert whole.error is None, whole.traceback
    folder, cache = run.folder / "attempts/1/adapter", tmp_path / "cache"
    scored, _ = score_adapter(spec.to_json(), folder, cache, test=False)
    assert scored["validation/loss"] == pytest.approx(whole.metrics["validation/loss"], rel=1e-5)


RATES = {"prompt_tuning": 0.3, "p_tuning_v2": 0.1, "vera": 0.1, "tinylora": 0.05, "full": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_loss_falls_on_real_data(
    listen: Any, trial: Any, shared: Path, stories_path: Path, tmp_path: Path, case: str
) -> None:
    spec = trial(
        {
            **COMMON,
            **CASES[case],
            "model": {"name_or_path": str(stories_path)},
            "task": {"type": "causal_lm", "prompt": "{mr}\n", "response": "{ref}"},
            "data.train": {"path": str(shared / "data" / "nlg" / "e2e_dev.csv")},
            "data.validation_subset": 16,
            "data.max_length": 256,
            "training.learning_rate": RATES.get(case, 1e-2),
            "training.max_steps": 20,
        }
    )
    run = listen(SoloEngine(str(tmp_path / "cache"), threads=1), tmp_path / "trial")
    result = run.run(spec)
    assert result.error is None, result.traceback
    losses = [report.metrics["train/loss"] for report in run.reports]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_lora_plus_makes_pefts_own_groups() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    from peft_jobs.methods.lora import learning_rates

    def model() -> Any:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        return get_peft_model(net, LoraConfig(r=2, target_modules=["0"], bias="all"))

    theirs = model()
    reference = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=0.1, loraplus_lr_ratio=8)
    ours = model()
    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    learning_rates(ours, optimizer, 8)
    found = []
    for net, made in ((theirs, reference), (ours, optimizer)):
        names = {p: name for name, p in net.named_parameters()}
        found.append({names[p]: g["lr"] for g in made.param_groups for p in g["params"]})
    assert found[0] == found[1]
    assert set(found[1].values()) == {0.1, 0.8}
