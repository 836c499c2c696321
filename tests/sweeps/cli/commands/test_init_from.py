"""`init --from`: other tools' files become valid sweep files, and what they lose is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from sweeps import SweepSpec, load_sweep

Cli = Callable[..., Result]
WANDB = """
program: train.py
method: bayes
metric: {name: eval/loss, goal: minimize}
run_cap: 30
parameters:
  lr: {distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}
  lora_r: {values: [8, 16, 32]}
  dropout: {min: 0.0, max: 0.2}
  warmup_steps: {min: 0, max: 20}
  weight_decay: {distribution: q_uniform, min: 0, max: 0.1, q: 0.01}
  max_grad_norm: {distribution: inv_log_uniform_values, min: 0.1, max: 10}
  adam_epsilon: {distribution: log_uniform, min: -20.72326583694641, max: -13.815510557964274}
  beta: {distribution: normal, mu: 0, sigma: 1}
  epochs: {values: [1, 2]}
  num_train_epochs: {value: 3}
  batch_size: {value: 4}
  micro_batch_size: {value: 8}
  max_steps: {value: 100}
  optimizer: {values: [adamw, sgd]}
  load_in_4bit: {values: [true, false]}
  training: {parameters: {lr_scheduler_type: {values: [cosine, linear], probabilities: [0.9, 0.1]}}}
early_terminate: {type: hyperband, min_iter: 3, eta: 2}
"""
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: true
datasets:
  - {path: teknium/GPT4-LLM-Cleaned, type: alpaca}
  - {path: other, type: alpaca}
val_set_size: 0.05
output_dir: ./outputs/out
adapter: qlora
lora_r: 32
lora_alpha: 64
lora_dropout: 0.05
lora_target_linear: true
sequence_len: 2048
sample_packing: true
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
gradient_checkpointing: true
flash_attention: true
warmup_steps: 10
saves_per_epoch: 1
train_on_inputs: false
fsdp:
special_tokens: {pad_token: "<|end_of_text|>"}
"""
LLAMA_FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
quantization_bit: 4
dataset: mine
dataset_dir: sets
template: llama3
cutoff_len: 1024
per_device_train_batch_size: 1
learning_rate: 1.0e-4
num_train_epochs: 3.0
warmup_ratio: 0.1
val_size: 0.2
ddp_timeout: 180000000
"""


@pytest.fixture
def given(cli: Cli, folder: Path) -> Callable[..., tuple[SweepSpec, dict[str, Any], str]]:
    """Texts of files, further words -> the sweep, its file's mapping, and what was told."""

    def run(*texts: str, words: tuple[str, ...] = ()) -> tuple[SweepSpec, dict[str, Any], str]:
        options: list[str] = []
        for number, text in enumerate(texts):
            (folder / f"theirs-{number}.yaml").write_text(text)
            options += ["--from", f"theirs-{number}.yaml"]
        result = cli("init", *options, *words, "--out", "ours.yaml", "--force")
        assert result.exit_code == 0, result.output
        assert cli("validate", "--fast", "ours.yaml").exit_code == 0
        file = folder / "ours.yaml"
        return load_sweep(file), yaml.safe_load(file.read_text()), " ".join(result.output.split())

    return run


def test_a_sweep_of_wandb(given: Any) -> None:
    spec, tree, told = given(WANDB)
    assert tree["space"]["parameters"] == {
        "training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "adapter.r": {"choices": [8, 16, 32]},
        "adapter.lora_dropout": {"low": 0.0, "high": 0.2},
        "training.warmup_steps": {"low": 0, "high": 20},
        "training.weight_decay": {"low": 0.0, "high": 0.1, "step": 0.01},
        "training.max_grad_norm": {"low": 0.1, "high": 10, "log": True},
        "training.adam_epsilon": {
            "low": pytest.approx(1e-9),
            "high": pytest.approx(1e-6),
            "log": True,
        },
        "quantization.scheme": {"choices": ["nf4", "none"]},
        "training.lr_scheduler_type": {"choices": ["cosine", "linear"]},
    }
    assert spec.trial.training.per_device_train_batch_size == 4
    assert (spec.budget.n_trials, spec.budget.num_train_epochs) == (30, 3)
    assert spec.sampler.type == "tpe"
    assert (spec.pruner.type, spec.pruner.arguments) == (
        "successive_halving",
        {"reduction_factor": 2},
    )
    assert (spec.objective.metric, spec.objective.direction) == ("validation/loss", "minimize")
    for line in (
        "program is not taken over: trials are trained by the product",
        "beta is not taken over: normal has no ends",
        "epochs is not taken over: all trials of a sweep are of one length",
        "optimizer is not taken over: training.optim: must be",
        "micro_batch_size is not taken over: batch_size says the same",
        "max_steps is not taken over: num_train_epochs says how long a trial is",
        "training.lr_scheduler_type.probabilities is not taken over",
        "early_terminate.min_iter is not taken over",
        "method bayes is W&B's Gaussian process",
        "data.train is the embedded demo: give --data",
    ):
        assert line in told


def test_what_is_told_stands_in_the_file(given: Any, folder: Path) -> None:
    given(WANDB)
    text = " ".join((folder / "ours.yaml").read_text().replace("#", " ").split())
    assert "beta is not taken over: normal has no ends" in text


@pytest.mark.parametrize(
    ("text", "sampler", "n_trials", "pruner"),
    [
        (
            "method: grid\nparameters: {lr: {values: [1, 2]}, r: {values: [1, 2, 3]}}",
            "grid",
            6,
            "none",
        ),
        ("method: random\nparameters: {lr: {min: 0.1, max: 0.2}}", "random", 12, "none"),
    ],
)
def test_methods_of_wandb(text: str, sampler: str, n_trials: int, pruner: str, given: Any) -> None:
    spec, _, told = given(text)
    assert (spec.sampler.type, spec.budget.n_trials, spec.pruner.type) == (
        sampler,
        n_trials,
        pruner,
    )
    assert f"budget.n_trials is {n_trials}" in told


@pytest.mark.parametrize(
    ("metric", "ours"),
    [
        ("{name: val_loss}", "validation/loss"),
        ("{name: eval.perplexity, goal: minimize}", "validation/perplexity"),
        ("{name: train/loss}", None),
        ("{name: accuracy, goal: maximize}", None),  # not of a causal model's
    ],
)
def test_the_objective_of_wandb(metric: str, ours: str | None, given: Any) -> None:
    spec, _, told = given(f"method: random\nmetric: {metric}\nparameters: {{lr: {{value: 0.1}}}}")
    assert spec.objective.metric == (ours or "validation/loss")
    assert ("metric is not taken over" in told) is (ours is None)


def test_a_configuration_of_axolotl(given: Any) -> None:
    spec, tree, told = given(AXOLOTL)
    trial = spec.trial
    assert trial.model.name_or_path == "NousResearch/Llama-3.2-1B"
    assert trial.model.attn_implementation == "flash_attention_2"
    assert trial.quantization.scheme == "nf4"
    assert (trial.task.messages, trial.data.format) == ("messages", "alpaca")
    assert (trial.data.train.path, trial.data.validation) == ("teknium/GPT4-LLM-Cleaned", 0.05)
    assert (trial.data.max_length, trial.data.packing) == (2048, True)
    training = trial.training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (2, 4)
    assert (training.optim, training.lr_scheduler_type) == ("adamw_8bit", "cosine")
    assert (training.warmup_steps, training.bf16, training.gradient_checkpointing) == (
        10,
        "auto",
        True,
    )
    assert spec.budget.num_train_epochs == 2
    # Nothing is sampled there: a preset is, whose first trial is theirs.
    assert tree["space"]["preset"] == "qlora"
    assert spec.space.points_to_evaluate == (
        {"adapter.r": 32, "adapter.lora_dropout": 0.05, "training.learning_rate": 0.0002},
    )
    assert tree["space"]["parameters"]["adapter.lora_alpha"] == 64
    for line in (
        "datasets[1] is not taken over: a sweep trains on one source (other)",
        "output_dir is not taken over: results lie below",
        "saves_per_epoch is not taken over: trials are measured and saved at rungs",
        "special_tokens is not taken over: the tokenizer is the base's own",
    ):
        assert line in told
    assert "wandb_project" not in told
    assert "train_on_inputs" not in told


def test_a_sweep_of_axolotl_follows_its_configuration(given: Any) -> None:
    grid = "learning_rate: [0.0003, 0.0006]\nlora_r: [8, 32, 64]\nweight_decay: [0.1]\n"
    paired = "_: [{lora_r: 8, lora_alpha: 16}]\n"
    spec, tree, told = given(grid + paired, AXOLOTL)  # in whatever order they are given
    assert tree["space"]["parameters"] == {
        "training.learning_rate": {"choices": [0.0003, 0.0006]},
        "adapter.r": {"choices": [8, 32, 64]},
    }
    assert spec.trial.training.weight_decay == 0.1
    assert spec.trial.adapter.lora_alpha == 64
    assert (spec.sampler.type, spec.pruner.type, spec.budget.n_trials) == ("grid", "none", 6)
    assert "_ is not taken over: values that go together (lora_r, lora_alpha)" in told


@pytest.mark.parametrize(
    ("entry", "task", "data"),
    [
        ("{path: a.jsonl, type: completion, field: body}", {"text": "{body}"}, {}),
        ("{path: a.jsonl, type: chat_template}", {"messages": "messages"}, {}),
        (
            "{path: a.jsonl, type: chat_template, field_messages: turns, "
            "message_property_mappings: {role: from, content: value}}",
            {"messages": "turns"},
            {"format": "sharegpt"},
        ),
        (
            "{path: a.jsonl, type: chat_template, message_property_mappings: {role: who, content: "
            "content}}",
            {"messages": "messages"},
            {"keys": {"role": "who"}},
        ),
        (
            "{path: a.jsonl, type: {field_instruction: q, field_output: a, "
            "format: 'Q: {instruction}'}}",
            {"prompt": "Q: {q}", "response": "{a}"},
            {},
        ),
        ("{path: json, data_files: [b.jsonl], type: chat_template}", {"messages": "messages"}, {}),
    ],
)
def test_forms_of_axolotl_s_data(
    entry: str, task: dict[str, Any], data: dict[str, Any], given: Any, folder: Path
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text("{}")
    _, tree, _ = given(f"base_model: demo\ndatasets: [{entry}]\nadapter: lora\n")
    assert tree["task"] == {"type": "causal_lm", **task}
    train = "b.jsonl" if "data_files" in entry else "a.jsonl"
    assert tree["data"] == {"max_length": 192, "train": train, "validation": 0.1, **data}


def test_an_unknown_prompt_of_axolotl_s_is_told(given: Any) -> None:
    _, tree, told = given("base_model: demo\ndatasets: [{path: a.jsonl, type: gpteacher}]\n")
    assert tree["data"]["train"] == "demo"
    assert "datasets[0].type is not taken over: 'gpteacher' is a prompt of Axolotl's" in told
    assert tree["adapter"]["method"] == "full"


def test_a_configuration_of_llama_factory(given: Any, folder: Path) -> None:
    (folder / "sets").mkdir()
    info = '{"mine": {"file_name": "rows.json", "columns": {"prompt": "q", "response": "output"}}}'
    (folder / "sets" / "dataset_info.json").write_text(info)
    (folder / "sets" / "rows.json").write_text("[]")
    spec, tree, told = given(LLAMA_FACTORY)
    trial = spec.trial
    assert tree["data"]["train"] == "sets/rows.json"
    assert (trial.data.format, trial.data.keys) == ("alpaca", {"instruction": "q"})
    assert (trial.data.validation, trial.data.max_length) == (0.2, 1024)
    assert (trial.quantization.scheme, trial.training.warmup_steps) == ("nf4", 0.1)
    assert spec.budget.num_train_epochs == 3
    assert tree["space"]["parameters"] == {
        "adapter.target_modules": {"value": ["q_proj", "v_proj"]}
    }
    assert spec.space.points_to_evaluate == ({"adapter.r": 16, "training.learning_rate": 0.0001},)
    assert "template is not taken over: conversations take the tokenizer's own" in told
    assert "ddp_timeout is not taken over: a sweep file has nothing of this kind" in told


def test_base_and_data_of_the_command_stay(given: Any, folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    words = ("--model", "mine/base", "--data", "rows.jsonl")
    spec, tree, told = given(AXOLOTL, words=words)
    assert spec.trial.model.name_or_path == "mine/base"
    assert tree["data"]["train"] == "rows.jsonl"
    assert spec.trial.task.prompt == "{prompt}\n"
    assert "base_model is not taken over: another one is given" in told
    assert "datasets is not taken over: the data are those of --data" in told


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--from", "nowhere.yaml"], "no such file: nowhere.yaml"),
        (["--from", "shopping.yaml"], "is of no known tool; known: sweeps of W&B"),
        (["--from", "w.yaml", "--preset", "lora"], "give either --from"),
    ],
)
def test_what_cannot_be_taken_over(words: list[str], reason: str, cli: Cli, folder: Path) -> None:
    (folder / "shopping.yaml").write_text("milk: 2\n")
    (folder / "w.yaml").write_text("method: random\nparameters: {lr: {value: 0.1}}\n")
    result = cli("init", *words)
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.split())
