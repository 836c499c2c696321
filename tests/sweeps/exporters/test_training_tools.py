"""What trains again what was exported: TRL runs it; Axolotl and LLaMA-Factory read it."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from datasets import load_from_disk
from peft import LoraConfig
from transformers import TrainingArguments
from typer.testing import CliRunner

from peft_jobs import SpecError, TrialSpec
from peft_jobs.base.tokenizer import load_tokenizer
from peft_jobs.data.tokenized import load_data
from peft_jobs.engines.solo import trainer as solo
from peft_jobs.randomness import epoch_order, initial_lora_A
from sweeps import Exported, build_sweep, export_trial, open_sweep
from sweeps.cli.app import app
from sweeps.exporters import EXPORTERS
from sweeps.run import launch
from tests.support.repository import REPOSITORY, SHARED

NLG = SHARED / "data" / "nlg"
STORIES = SHARED / "models" / "stories260k"
OTHERS = os.environ.get("OTHER_TRAINERS", "")
TOOLS = ("trl", "axolotl", "llama-factory")
RECORDS = {"type": "causal_lm", "prompt": "{record}\n", "response": "{sentence}"}
TRAINING = {
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.2,
    "weight_decay": 0.03,
    "adam_beta2": 0.98,
    "max_grad_norm": 0.5,
}
ADAPTER = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Sections of a sweep of one trial on the demo -> its export for all training tools."""

    def run(samples: int = 96, to: tuple[str, ...] = TOOLS, **sections: Any) -> Exported:
        folder = tmp_path_factory.mktemp("export")
        sweep = {
            "name": "one",
            "model": "demo",
            "task": RECORDS,
            "data": {
                "train": "demo",
                "validation": "demo",
                "max_length": 64,
                "validation_subset": 32,
            },
            "adapter": ADAPTER,
            "training": TRAINING,
            "space": {"parameters": {"training.adam_beta1": {"choices": [0.85, 0.9]}}},
            "sampler": "random",
            "pruner": "none",
            "budget": {"n_trials": 1, "max_samples": samples},
            "resources": {"backend": "inline", "engine": "solo"},
            "tracking": {"enabled": False},
            "seed": 3,
            "storage": str(folder / "runs"),
            **sections,
        }
        assert launch(build_sweep(sweep)).status == "complete"
        return export_trial(folder / "runs", "one", out=folder / "out", to=to)

    return run


def script_of(exported: Exported) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", exported.path / "trl" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trial_of(exported: Exported) -> TrialSpec:
    return TrialSpec.model_validate_json((exported.path / "trial.json").read_text())


def differing(one: Any, other: Any, kind: type) -> dict[str, tuple[Any, Any]]:
    """Of the fields of a dataclass, those whose values differ."""
    pairs = {
        f.name: (getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(kind)
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("scheme", ["none", pytest.param("nf4", marks=pytest.mark.slow)])
def test_trl_trains_what_the_sweep_trained(scheme: str, export: Any, tmp_path: Path) -> None:
    exported = export(quantization=scheme)
    spec, script = trial_of(exported), script_of(exported)
    made = script.trainer()

    loop = SimpleNamespace(
        spec=spec, job=SimpleNamespace(directory=tmp_path), device=torch.device("cpu")
    )
    ours = solo._arguments(loop, spec.training.total_steps(10**6))
    made = script.trainer()  # after the other arguments, which reset accelerate's state
    assert set(differing(ours, made.args, TrainingArguments)) <= {
        *("output_dir", "logging_strategy", "logging_steps", "disable_tqdm"),
        *("logging_nan_inf_filter", "per_device_eval_batch_size", "remove_unused_columns"),
        *("use_cpu", "dataloader_pin_memory"),  # both follow from the device
        "train_sampling_strategy",  # the sweep's trainer brings its own order
    }
    assert made.args.max_steps == 12
    assert not made.args.gradient_checkpointing

    saved = LoraConfig.from_pretrained(str(exported.path))
    found = differing(saved, made.model.peft_config["default"], LoraConfig)
    assert set(found) <= {"inference_mode", "base_model_name_or_path", "target_modules"}
    adapted = {name for name, module in made.model.named_modules() if hasattr(module, "lora_A")}
    assert {f"base_model.model.{name}" for name in saved.target_modules} == adapted
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}

    rows = load_data(spec, load_tokenizer(spec.model, spec.task), tmp_path / "cache")
    order = epoch_order(spec.seed, 0, len(rows.train)).tolist()
    theirs = [row for batch in made.get_train_dataloader() for row in tokens_of(batch)]
    assert theirs[:96] == [supervised(rows.train[number]) for number in order[:96]]
    held_out = [row for batch in made.get_eval_dataloader() for row in tokens_of(batch)]
    assert held_out == [supervised(row) for row in rows.validation]

    for name, module in made.model.named_modules():  # from the sweep's start to its end
        if hasattr(module, "lora_A"):
            weight = module.lora_A["default"].weight
            place = name.removeprefix("base_model.model.")
            weight.data.copy_(initial_lora_A(spec.seed, place, *weight.shape))
    made.train()
    recorded = exported.recorded["validation/loss"]
    assert script.validation_loss(made) == pytest.approx(recorded, rel=1e-4)


def tokens_of(batch: Any) -> list[tuple[list[int], list[tuple[int, int]]]]:
    rows = zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
    found = []
    for tokens, labels, mask in rows:
        length = int(mask.sum())
        marked = list(enumerate(labels.tolist()))[1:]  # nothing predicts the first token
        counted = [(place, label) for place, label in marked if label != -100]
        found.append((tokens[:length].tolist(), counted))
    return found


def supervised(row: Any) -> tuple[list[int], list[tuple[int, int]]]:
    marked = enumerate(row["labels"])
    return row["input_ids"], [
        (place, label) for place, label in marked if place > 0 and label != -100
    ]


def test_trls_own_command_line_reads_the_file(export: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset
    from trl import get_peft_config
    from trl.scripts.sft import make_parser

    exported = export(samples=16)
    monkeypatch.chdir(exported.path / "trl")
    monkeypatch.setattr(sys, "argv", ["sft", "--config", "sft.yaml"])
    parsed = make_parser().parse_args_and_config(fail_with_unknown_args=True)
    files, arguments, model, _ = parsed
    script = script_of(exported)
    own = {
        "output_dir",
        "eval_strategy",
        "eval_steps",
        "do_eval",
        "model_init_kwargs",
        "logging_dir",
    }
    assert set(differing(script.arguments(), arguments, type(arguments))) <= own
    assert model.model_name_or_path == script.BASE
    mine, theirs = script.lora(), get_peft_config(model)
    assert differing(mine, theirs, LoraConfig) == {}
    rows = load_dataset(files.dataset_name)
    assert set(rows) == {files.dataset_train_split, files.dataset_test_split}


def test_all_three_tools_are_told_the_same(export: Any) -> None:
    exported = export(samples=16, adapter={**ADAPTER, "lora_alpha": 12.5, "lora_dropout": 0.1})
    script = script_of(exported)
    arguments, lora = script.arguments(), script.lora()
    files = {
        name: yaml.safe_load((exported.path / name / file).read_text())
        for name, file in (("axolotl", "config.yaml"), ("llama-factory", "sft.yaml"))
    }
    axolotl, factory = files["axolotl"], files["llama-factory"]
    assert axolotl["micro_batch_size"] == factory["per_device_train_batch_size"] == 4
    assert axolotl["gradient_accumulation_steps"] == factory["gradient_accumulation_steps"] == 2
    assert axolotl["lr_scheduler"] == factory["lr_scheduler_type"] == arguments.lr_scheduler_type
    assert axolotl["warmup_steps"] == factory["warmup_steps"] == arguments.get_warmup_steps(2) == 1
    for name in (
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "max_grad_norm",
        "seed",
    ):
        assert axolotl[name] == factory[name] == getattr(arguments, name)
    assert axolotl["optimizer"] == factory["optim"] == arguments.optim
    assert axolotl["sequence_len"] == factory["cutoff_len"] == arguments.max_length == 64
    assert axolotl["lora_target_modules"] == factory["lora_target"].split(",")
    assert set(axolotl["lora_target_modules"]) == lora.target_modules
    assert lora.lora_alpha == 12.5
    assert axolotl["lora_alpha"] == factory["lora_alpha"] == 12
    for name in ("axolotl", "llama-factory"):
        assert any("lora_alpha is 12.5" in line for line in exported.differences[name])
        assert "lora_alpha is 12.5" in "".join(
            path.read_text() for path in (exported.path / name).glob("*.yaml")
        )
    assert axolotl["lora_dropout"] == factory["lora_dropout"] == lora.lora_dropout == 0.1
    rows = load_from_disk(exported.path / "llama-factory" / factory["tokenized_path"])
    assert rows["train"][:4] == script.rows()["train"][:4]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data.packing": True}, "data.packing is left out"),
        ({"adapter.loraplus_lr_ratio": 4.0}, "adapter.loraplus_lr_ratio"),
        ({"adapter.init_lora_weights": "eva"}, "adapter.init_lora_weights eva is not written"),
        ({"adapter.init_lora_weights": "pissa"}, "moves a part of the base"),
        ({"adapter.bias": "all"}, "trl sft: adapter.bias is not written"),
        ({"adapter.rank_pattern": {"q_proj": 2}}, "trl sft: adapter.rank_pattern is not written"),
        ({"training.num_train_epochs": 2.0, "training.max_samples": None}, "epoch behind epoch"),
    ],
)
def test_what_a_tool_cannot_express_is_told(sections: dict[str, Any], words: str) -> None:
    from sweeps.exporters.recipe import Recipe
    from sweeps.exporters.trl import differences
    from sweeps.exporters.trl_script import script

    sample = TrialSpec.model_validate(
        {"model": "demo", "task": RECORDS, "data": "demo"}
        | {"data": {"train": "demo", "validation": "demo"}, "training": {"max_samples": 64}}
    )
    spec = sample.with_params(sections)
    adapter: Any = spec.adapter
    recipe = Recipe(
        *("a trial", spec, adapter, 100, ("q_proj",), (), ()),
        is_stored=False,
        on_cpu=True,
        bf16=False,
        fp16=False,
        tf32=False,
    )
    told = " ".join(differences(recipe))
    assert words in told
    assert words not in " ".join(
        differences(dataclasses.replace(recipe, spec=sample, adapter=sample.adapter))
    )
    if "trl sft" not in words:
        assert words.split()[0] in script(recipe, list(differences(recipe)))


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"adapter.method": "ia3"}, "adapter.method lora, got ia3"),
        (
            {"task": {"type": "seq2seq", "source": "{record}", "target": "{sentence}"}},
            "task.type causal_lm, got seq2seq",
        ),
    ],
)
def test_what_a_tool_cannot_train_is_refused(params: dict[str, Any], reason: str) -> None:
    trial = {"model": "demo", "task": RECORDS, "data": {"train": "demo"}}
    spec = TrialSpec.model_validate({**trial, **{k: v for k, v in params.items() if "." not in k}})
    spec = spec.with_params({k: v for k, v in params.items() if "." in k})
    for name in TOOLS:
        with pytest.raises(SpecError, match=reason):
            EXPORTERS[name].check(spec)


SCHEMAS = """
import json, os, sys, yaml
sys.path.append(sys.argv[1])
os.environ["DISABLE_VERSION_CHECK"] = "1"
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.config import AxolotlInputConfig
from llamafactory.hparams.parser import get_train_args

found = {}
for folder in sys.argv[2:]:
    given = yaml.safe_load(open(folder + "/axolotl/config.yaml"))
    gpu = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_80"}
    checked = validate_config(DictDefault(given), gpu, {"torch_version": "2.13.0"})
    rows = ("datasets", "test_datasets")
    changed = [k for k in given if k not in rows and checked[k] != given[k]]
    unknown = sorted(set(given) - set(AxolotlInputConfig.model_fields))
    os.chdir(folder + "/llama-factory")
    given = yaml.safe_load(open("sft.yaml"))
    parts = get_train_args(dict(given))
    read = {k: getattr(p, k) for p in parts for k in given if hasattr(p, k)}
    found[folder] = [changed, unknown, sorted(set(given) - set(read)), read["max_steps"]]
print("FOUND" + json.dumps(found))
"""


@pytest.mark.slow
def test_axolotls_and_llama_factorys_own_schemas_take_the_files(export: Any) -> None:
    if not Path(OTHERS, "axolotl").is_dir() or not Path(OTHERS, "llamafactory").is_dir():
        pytest.skip("OTHER_TRAINERS names no folder with axolotl and llamafactory: see testing.md")
    adapter = {**ADAPTER, "rank_pattern": {"q_proj": 2}, "use_rslora": True}
    exports = [
        export(samples=16),
        export(samples=16, quantization="nf4", adapter={**adapter, "use_dora": True}),
        export(samples=16, adapter=adapter, training={**TRAINING, "gradient_checkpointing": True}),
    ]
    folders = [str(exported.path) for exported in exports]
    done = subprocess.run(
        [sys.executable, "-c", SCHEMAS, OTHERS, *folders],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        timeout=280,
        check=False,
    )
    assert "FOUND" in done.stdout, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("FOUND")[2].splitlines()[0])
    assert found == {folder: [[], [], [], 2] for folder in folders}


TRL_RUNS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("train", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
given = module.arguments
for seed in map(int, sys.argv[2:]):
    arguments = given()
    arguments.seed = seed
    module.arguments = lambda: arguments
    made = module.trainer()
    made.train()
    print("FOUND", module.validation_loss(made))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_trl_reaches_the_loss_of_a_final_training_on_real_data(scheme: str, export: Any) -> None:
    if not STORIES.is_dir() or not NLG.is_dir():
        pytest.skip(f"needs the real base {STORIES} and the data set {NLG}")
    exported = export(
        samples=16,
        to=(),
        model=str(STORIES),
        quantization=scheme,
        task={"type": "causal_lm", "prompt": "{mr}\n", "response": "{ref}"},
        data={
            "train": str(NLG / "e2e_dev.csv"),
            "validation": str(NLG / "e2e_test.csv"),
            "validation_subset": 200,
            "max_length": 224,
            "on_leak": "warn",
        },
        adapter={"r": 8, "lora_dropout": 0.05, "target_modules": "all-linear"},
    )
    storage = exported.path.parent / "runs"
    words = ["train", "one", "--storage", str(storage), "--epochs", "0.1", "--seeds", "4"]
    command = [*words, "--to", "trl", "--inline", "--plain", "--no-supervise"]
    trained = CliRunner().invoke(app, command)
    assert trained.exit_code == 0, trained.output
    final = open_sweep(storage, "one-final-0000").leaderboard()
    losses = [row.value for row in final.rows]
    script = storage / "one-final-0000" / "exports" / f"trial-{final.chosen.number:04d}" / "trl"
    done = subprocess.run(
        [sys.executable, "-c", TRL_RUNS, str(script / "train.py"), "1", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    found = [float(loss) for loss in re.findall(r"FOUND (\S+)", done.stdout)]
    assert len(found) == 2, done.stderr[-3000:]
    assert abs(mean(found) - mean(losses)) < 2 * stdev(losses)
