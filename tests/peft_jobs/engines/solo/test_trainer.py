"""The training loop: order, loss, clock, schedules and reports, against a loop written by hand."""

import gc
import json
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peft_jobs.base.loading import load_base
from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.engines.solo.trainer import TrialTrainer, train
from peft_jobs.errors import Diverged
from peft_jobs.host.job import Job
from peft_jobs.host.result import Progress
from peft_jobs.methods import METHODS
from peft_jobs.methods.method import clock_of
from peft_jobs.phases import Phases
from peft_jobs.randomness import epoch_order
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import TASKS
from peft_jobs.training.checkpoints import Saver, find_start, restored
from peft_jobs.training.counts import Counts
from peft_jobs.training.loop import Loop
from peft_jobs.training.oom_ladder import OomLadder
from peft_jobs.training.training_state import parse

TASK = TASKS["causal_lm"]
WORDS = ("the", "a", "red", "green", "cat", "dog", "bird", "sees", "likes")


@pytest.fixture(scope="module")
def base(tiny_llama_path: Path) -> Any:
    spec = trial(tiny_llama_path)
    return load_base(spec.model, spec.quantization, spec.task)


@pytest.fixture(scope="module")
def rows(base: Any) -> Any:
    """24 examples of uneven lengths."""
    from datasets import Dataset

    encode = TASK.encoder(base.tokenizer, trial(Path("unused")).task, 64, ())
    texts = [
        {
            "q": " ".join(WORDS[(i + j) % 9] for j in range(1 + i % 4)),
            "a": " ".join(WORDS[i * j % 9] for j in range(1 + i % 5)),
        }
        for i in range(24)
    ]
    return Dataset.from_list([encode(text) for text in texts])


def trial(path: Path, params: dict[str, Any] | None = None, **training: Any) -> TrialSpec:
    spec = TrialSpec.model_validate(
        {
            "model": str(path),
            "adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2},
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data": {"train": "unused.jsonl"},
            "training": {
                "learning_rate": 1e-2,
                "max_steps": 6,
                "per_device_train_batch_size": 4,
                "logging_steps": 1,
                **training,
            },
            "seed": 5,
        }
    )
    return spec.with_params(params or {})


class Run:
    """One training run on the resident base, with what it told."""

    def __init__(self, base: Any, rows: Any, spec: TrialSpec, tmp_path: Path) -> None:
        self.told: list[Progress] = []
        self.evaluated_at: list[int] = []
        self.counts = Counts()
        self.job = Job(0, 1, spec, tmp_path, None, threading.Condition())
        self.cancel_at_rung: str | None = None
        self.checkpoint_seconds: float | None = None
        self.base, self.rows, self.spec = base, rows, spec

    def __call__(self) -> "Run":
        model = METHODS["lora"].attach(self.base, self.spec)
        try:
            train(model, self.loop(model))
            self.weights = {
                name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
            }
        finally:
            METHODS["lora"].detach(model)
        return self

    def loop(self, model: Any) -> Loop:
        def evaluate() -> dict[str, float]:
            self.evaluated_at.append(self.counts.step)
            return {"validation/loss": 10.0 - self.counts.step}

        def report(progress: Progress) -> None:
            self.told.append(progress)
            if progress.rung is not None and self.cancel_at_rung is not None:
                self.job.cancelled = self.cancel_at_rung

        return Loop(
            spec=self.spec,
            task=TASK,
            train_dataset=self.rows,
            pad_token_id=self.base.tokenizer.pad_token_id,
            device=self.base.device,
            clock=clock_of(model),
            evaluate=evaluate,
            report=report,
            job=self.job,
            phases=Phases(),
            counts=self.counts,
            saver=Saver(self.job, self.checkpoint_seconds),
            ladder=OomLadder(self.spec, self.base.device),
        )

    @property
    def losses(self) -> list[float]:
        return [progress.metrics["train/loss"] for progress in self.told]

    @property
    def learning_rates(self) -> list[float]:
        return [progress.metrics["train/learning_rate"] for progress in self.told]


def by_hand(base: Any, rows: Any, spec: TrialSpec) -> list[float]:
    """The losses of the same trial in a plain loop: AdamW, linear decay, clipping."""
    training, model = spec.training, METHODS["lora"].attach(base, spec)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
    )
    steps = training.total_steps(len(rows))
    epochs = 1 + steps * training.samples_per_step // len(rows)
    order = [i for epoch in range(epochs) for i in epoch_order(spec.seed, epoch, len(rows))]
    losses = []
    model.train()
    for step in range(steps):
        chosen = [rows[int(i)] for i in order[: training.samples_per_step]]
        order = order[training.samples_per_step :]
        num_tokens = sum(sum(label != -100 for label in row["labels"]) for row in chosen)
        total = 0.0
        size = training.per_device_train_batch_size
        for micro in (chosen[i : i + size] for i in range(0, len(chosen), size)):
            clock_of(model).micro_step += 1
            batch = TASK.collate(micro, base.tokenizer.pad_token_id)
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
            )
            (loss / num_tokens).backward()
            total += loss.item() / num_tokens
        if training.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    METHODS["lora"].detach(model)
    return losses


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"gradient_accumulation_steps": 3, "weight_decay": 0.3, "max_grad_norm": 0.05},
        {"max_grad_norm": 0, "adam_beta1": 0.5, "adam_beta2": 0.9, "max_steps": 9},
    ],
)
def test_the_trainer_is_the_loop_one_would_write(
    base: Any, rows: Any, tmp_path: Path, training: dict[str, Any]
) -> None:
    spec = trial(tmp_path, **training)
    run = Run(base, rows, spec, tmp_path)()
    assert run.losses == pytest.approx(by_hand(base, rows, spec), rel=2e-5)
    assert len(run.losses) == spec.training.total_steps(len(rows))
    assert len(set(run.losses)) > 1


def test_accumulation_equals_one_big_batch(base: Any, rows: Any, tmp_path: Path) -> None:
    found = []
    for batch, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        spec = trial(
            tmp_path,
            {"adapter.lora_dropout": 0.0},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        found.append(Run(base, rows, spec, tmp_path)())
    for run in found[1:]:
        assert run.losses == pytest.approx(found[0].losses, rel=1e-4)
        assert (run.counts.samples, run.counts.tokens) == (48, found[0].counts.tokens)


def test_every_epoch_sees_every_row_once_and_batches_cross_epochs() -> None:
    order = list(SampleOrder(seed=1, num_rows=10, num_samples=25))
    assert len(order) == len(SampleOrder(1, 10, 25)) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order[20:] == epoch_order(1, 2, 10).tolist()[:5]


def test_counts_are_samples_and_supervised_tokens(base: Any, rows: Any, tmp_path: Path) -> None:
    spec = trial(tmp_path, max_steps=None, num_train_epochs=1, per_device_train_batch_size=5)
    run = Run(base, rows, spec, tmp_path)()
    assert (run.counts.step, run.counts.samples) == (5, 25)
    first = epoch_order(spec.seed, 0, 24).tolist() + epoch_order(spec.seed, 1, 24).tolist()[:1]
    tokens = sum(sum(label != -100 for label in rows[i]["labels"]) for i in first)
    assert run.counts.tokens == run.told[-1].tokens == tokens


def test_the_same_trial_on_the_same_base_is_bit_identical(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    spec = trial(tmp_path)
    first = Run(base, rows, spec, tmp_path)()
    other = Run(base, rows, trial(tmp_path, {"adapter.r": 16, "seed": 9}), tmp_path)()
    again = Run(base, rows, spec, tmp_path)()
    assert again.losses == first.losses != other.losses
    assert all(torch.equal(again.weights[name], first.weights[name]) for name in first.weights)


def test_gradient_checkpointing_gives_the_same_losses_with_dropout(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    plain = Run(base, rows, trial(tmp_path), tmp_path)()
    recomputed = Run(base, rows, trial(tmp_path, gradient_checkpointing=True), tmp_path)()
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-6)
    assert not base.model.is_activation_checkpointing


def test_bf16_trains_under_autocast(base: Any, rows: Any, tmp_path: Path) -> None:
    dtypes: list[set[torch.dtype]] = []
    """Of the logits, by run."""
    base.model.lm_head.register_forward_hook(
        lambda _head, _args, logits: dtypes[-1].add(logits.dtype)
    )
    runs = []
    for bf16 in (False, True):
        dtypes.append(set())
        runs.append(Run(base, rows, trial(tmp_path, bf16=bf16), tmp_path)())
    base.model.lm_head._forward_hooks.clear()  # detaching has put a copy in
    assert dtypes == [{torch.float32}, {torch.bfloat16}]
    exact, rounded = runs
    assert rounded.losses == pytest.approx(exact.losses, rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in rounded.weights.values())


@pytest.mark.parametrize(
    ("scheduler", "warmup", "expected"),
    [
        ("linear", 0.5, [0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        ("linear", 2, [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4]),
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant_with_warmup", 2, [0, 1 / 2, 1, 1, 1, 1]),
        ("cosine", 0, [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
    ],
)
def test_schedules(
    base: Any, rows: Any, tmp_path: Path, scheduler: str, warmup: float, expected: list[float]
) -> None:
    spec = trial(tmp_path, lr_scheduler_type=scheduler, warmup_steps=warmup)
    run = Run(base, rows, spec, tmp_path)()
    assert run.learning_rates == pytest.approx([1e-2 * share for share in expected], abs=1e-8)


def test_reports_come_every_logging_steps_and_at_the_end(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    every = Run(base, rows, trial(tmp_path, max_steps=7), tmp_path)()
    some = Run(base, rows, trial(tmp_path, max_steps=7, logging_steps=3), tmp_path)()
    assert [progress.step for progress in some.told] == [1, 3, 6, 7]
    assert some.losses[0] == every.losses[0]
    assert some.losses[1] == pytest.approx(sum(every.losses[:3]) / 3)
    assert some.losses[3] == every.losses[6]


def test_rungs_are_evaluated_at_the_first_step_that_reaches_them(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    spec = trial(tmp_path, {"evaluation.rungs": [3, 4, 10, 1000]}, logging_steps=100)
    run = Run(base, rows, spec, tmp_path)()
    rungs = [(p.rung, p.step, p.metrics.get("validation/loss")) for p in run.told]
    assert rungs == [(3, 1, 9.0), (4, 1, 9.0), (10, 3, 7.0), (None, 6, None)]
    assert run.evaluated_at == [1, 3, 6]
    assert run.counts.metrics["validation/loss"] == 4.0


def test_a_rung_at_the_end_is_not_evaluated_twice(base: Any, rows: Any, tmp_path: Path) -> None:
    run = Run(base, rows, trial(tmp_path, {"evaluation.rungs": [8, 24]}), tmp_path)()
    assert run.evaluated_at == [2, 6]
    assert [progress.rung for progress in run.told] == [None, 8, None, None, None, 24]


def test_a_cancelled_trial_stops_without_another_step_or_evaluation(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    run = Run(base, rows, trial(tmp_path, {"evaluation.rungs": [8]}), tmp_path)
    run.cancel_at_rung = "weak"
    run()
    assert (run.counts.step, run.evaluated_at) == (2, [2])


def test_a_loss_that_is_no_number_ends_the_trial_at_once(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    huge = {"adapter.lora_alpha": 1e12, "training.learning_rate": 1e12}
    spec = trial(tmp_path, huge, max_steps=50, max_loss=None)
    run = Run(base, rows, spec, tmp_path)
    with pytest.raises(Diverged, match=r"train/loss is (nan|inf) at step [23]"):
        run()
    assert run.counts.step <= 3
    assert json.dumps(run.losses, allow_nan=False)


def test_a_loss_above_the_limit_ends_the_trial_at_once(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    free = Run(base, rows, trial(tmp_path, max_loss=None), tmp_path)()
    limit = (max(free.losses) + min(free.losses)) / 2
    step = 1 + next(i for i, loss in enumerate(free.losses) if loss > limit)
    stopped = Run(base, rows, trial(tmp_path, max_loss=limit), tmp_path)
    with pytest.raises(Diverged, match=rf"at step {step}, above training\.max_loss = "):
        stopped()
    assert stopped.losses == free.losses[: step - 1]
    # Here the validation loss is 10 - step.
    spec = trial(tmp_path, {"evaluation.rungs": [8]}, max_loss=7.5)
    with pytest.raises(Diverged, match=r"validation/loss is 8 at step 2, above"):
        Run(base, rows, spec, tmp_path)()


def optimizer_dtypes(base: Any, rows: Any, spec: TrialSpec, folder: Path) -> dict[str, torch.dtype]:
    """Of the state of each parameter, after the first step."""
    run = Run(base, rows, spec, folder)
    run.checkpoint_seconds = 0
    run()
    (path,) = folder.glob("checkpoints/step-00000001/tensors.safetensors")
    tensors = parse(path.read_bytes())
    return {name: value.dtype for name, value in tensors.items() if name.endswith("/state1")}


def test_an_8bit_optimizer_is_the_same_after_a_trial_that_trains_embeddings(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    large = {"adapter.r": 64, "training.optim": "adamw_8bit"}  # of 4096 elements or more
    small, whole = {"training.max_steps": 2}, {"adapter.modules_to_save": ["embed_tokens"]}
    spec = trial(tmp_path, large | small)
    before = optimizer_dtypes(base, rows, spec, tmp_path / "before")
    both = trial(tmp_path, large | small | whole)
    embedding = optimizer_dtypes(base, rows, both, tmp_path / "both")
    after = optimizer_dtypes(base, rows, spec, tmp_path / "after")
    assert after == before
    assert torch.uint8 in before.values()
    assert [d for n, d in embedding.items() if "embed_tokens" in n] == [torch.float32]


@pytest.mark.parametrize("diverges", [False, True])
def test_an_8bit_optimizer_does_not_keep_the_base(
    tiny_llama_path: Path, rows: Any, tmp_path: Path, diverges: bool
) -> None:
    spec = trial(tiny_llama_path, optim="adamw_8bit", max_loss=1e-6 if diverges else None)

    def ended() -> weakref.ref[Any]:
        base = load_base(spec.model, spec.quantization, spec.task)
        try:
            Run(base, rows, spec, tmp_path)()
        except Diverged:
            assert diverges
        return weakref.ref(base.model.get_input_embeddings())

    embedding = ended()
    gc.collect()
    assert embedding() is None


def test_a_trial_goes_on_with_the_scale_of_its_gradients(
    base: Any, rows: Any, tmp_path: Path
) -> None:
    """float16's scaler at the work of a trial in float32: a CPU does not train in float16."""
    spec = trial(tmp_path, max_grad_norm=0)

    def scaled(checkpoint: Path | None = None) -> dict[str, Any]:
        run = Run(base, rows, spec, tmp_path / "attempts/1")
        run.checkpoint_seconds = 0
        model = METHODS["lora"].attach(base, spec)
        try:
            start = restored(model, find_start(run.job, checkpoint))
            run.counts.go_back(None if start is None else start.state)
            trainer = TrialTrainer(model, replace(run.loop(model), start=start))
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=2)
            trainer.train()
        finally:
            METHODS["lora"].detach(model)
        state: dict[str, Any] = trainer.accelerator.scaler.state_dict()
        return state

    whole = scaled()
    assert (whole["scale"], whole["_growth_tracker"]) == (8 * 65536, 0)  # 6 steps, 3 times doubled
    checkpoints = sorted(tmp_path.glob("attempts/1/checkpoints/*"))
    assert len(checkpoints) == 5
    assert [scaled(path) for path in checkpoints] == [whole] * 5


def test_nothing_is_printed(
    base: Any, rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(base, rows, trial(tmp_path), tmp_path)()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "loss" not in printed.err
    assert not list(tmp_path.iterdir())


def test_phases_count_nested_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 1.0, 6.0, 7.5))  # train begins, evaluate begins and ends, train ends
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr("peft_jobs.phases.time", clock)
    phases = Phases("load")
    with phases.phase("train"), phases.phase("evaluate"):
        pass
    assert phases.seconds == {"load": 0.0, "evaluate": 5.0, "train": 2.5}
    assert list(times) == []
