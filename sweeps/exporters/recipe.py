"""What a training tool must be told to train a trial again, and what no such tool can be told.

The rows are given as tokens (`rows/`), so prompt, chat template, end tokens, cuts and mask are the
trial's own in every tool.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.references import load
from peft_jobs.spec import CausalLMSpec, LoraSpec, QuantizationSpec, TrainingSpec
from sweeps.exporters.exporter import Draft
from sweeps.exporters.names import base_name

ROWS_FOLDER = "rows"
_OWN_STARTS = ("eva", "corda", "loftq")
"""Initialisations that need the trial's data or base, beyond a name that PEFT is given."""


@dataclass(frozen=True)
class Recipe:
    """A LoRA trial of a causal model, resolved on the device where it was trained."""

    title: str
    """What is trained, in words."""
    spec: TrialSpec
    adapter: LoraSpec
    num_train: int
    """Examples; a row of a text that is long is several."""
    targets: tuple[str, ...]
    """Names of modules, as PEFT matches them."""
    parameters: tuple[str, ...]
    whole: tuple[str, ...]
    """Modules that are trained whole."""
    is_stored: bool
    """Whether the checkpoint is quantized as it is stored: then nothing is asked for."""
    on_cpu: bool
    bf16: bool
    fp16: bool
    tf32: bool

    @property
    def training(self) -> TrainingSpec:
        return self.spec.training

    @property
    def quantization(self) -> QuantizationSpec:
        return self.spec.quantization

    @property
    def base(self) -> str:
        return base_name(self.spec)

    @property
    def num_steps(self) -> int:
        return self.training.total_steps(self.num_train)

    @property
    def warmup_steps(self) -> int:
        """Whole steps, rounded as transformers rounds a share (`get_warmup_steps`)."""
        given = self.training.warmup_steps
        return int(given) if given >= 1 else math.ceil(given * self.num_steps)

    @property
    def in_order(self) -> bool:
        """Whether all samples lie in the first epoch, whose order the rows have."""
        return self.num_steps * self.training.samples_per_step <= self.num_train

    @property
    def dtype(self) -> str:
        """Of the weights that are not quantized."""
        given = self.spec.model.dtype
        return "float32" if given == "auto" and self.on_cpu else given

    @property
    def compute_dtype(self) -> str:
        """In which 4-bit weights are multiplied."""
        given = self.quantization.bnb_4bit_compute_dtype
        if given != "auto":
            return given
        return "float32" if self.on_cpu else "bfloat16"

    @property
    def asked(self) -> str:
        """The quantization that is asked for when the base is loaded."""
        return "none" if self.is_stored else self.quantization.scheme

    @property
    def double(self) -> bool:
        return self.quantization.bnb_4bit_use_double_quant

    @property
    def is_4bit(self) -> bool:
        return self.quantization.scheme in ("nf4", "fp4")

    @property
    def alpha(self) -> float:
        value = self.adapter.lora_alpha
        return int(value) if value == int(value) else value

    @property
    def alpha_pattern(self) -> dict[str, float]:
        pattern = self.adapter.alpha_pattern.items()
        return {key: int(v) if v == int(v) else v for key, v in pattern}

    @property
    def start(self) -> bool | str:
        """PEFT's `init_lora_weights`; True for what only the sweep's own trainer can start."""
        name = self.adapter.init_lora_weights
        return True if name == "default" or name in _OWN_STARTS else name


def check_recipe(spec: TrialSpec, tool: str) -> None:
    """SpecError if `tool` cannot train such a trial at all."""
    again = "train it again with: python -m peft_jobs run trial.json"
    if not isinstance(spec.task, CausalLMSpec):
        raise SpecError(f"{tool} is for task.type causal_lm, got {spec.task.type}; {again}")
    if not isinstance(spec.adapter, LoraSpec):
        raise SpecError(f"{tool} is for adapter.method lora, got {spec.adapter.method}; {again}")
    if spec.adapter.source is not None:
        raise SpecError(f"{tool} starts a new adapter, and the trial goes on from one; {again}")


def recipe_of(draft: Draft) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a trial that `check_recipe` lets pass, and the entries of the record that it
    adds; writes the rows to `rows/` if they are not there."""
    folder, spec = draft.path / ROWS_FOLDER, draft.spec
    rows = draft.record.get("rows")
    if rows is None or not folder.is_dir():
        write = load("peft_jobs.engines.solo.training_rows:write_rows")
        rows = write(draft.spec_json, draft.path, folder, draft.cache)
    assert isinstance(spec.adapter, LoraSpec)
    trained = draft.record["trained"]
    recipe = Recipe(
        title=draft.title,
        spec=spec,
        adapter=spec.adapter,
        num_train=rows["train"],
        targets=tuple(rows["targets"]),
        parameters=tuple(rows["parameters"]),
        whole=tuple(rows["whole"]),
        is_stored=draft.record["quantized_checkpoint"],
        on_cpu=trained["device"] == "cpu",
        **trained["precision"],
    )
    return recipe, {"rows": rows}


def common_settings(recipe: Recipe) -> dict[str, Any]:
    """What every tool calls as transformers' TrainingArguments do."""
    training = recipe.training
    same = (
        *("gradient_accumulation_steps", "learning_rate", "weight_decay", "adam_beta1"),
        *("adam_beta2", "adam_epsilon", "max_grad_norm", "logging_steps"),
    )
    return {
        "max_steps": recipe.num_steps,
        **{name: getattr(training, name) for name in same},
        "bf16": recipe.bf16,
        "fp16": recipe.fp16,
        "seed": recipe.spec.seed,
        "save_strategy": "no",
    }


def common_differences(recipe: Recipe) -> Iterator[str]:
    """What no tool does as the trial did, in sentences."""
    adapter, training = recipe.adapter, recipe.training
    yield (
        "The adapter's first weights and the dropout masks are drawn by the tool from the seed: "
        "the same distributions, other numbers."
    )
    if not recipe.in_order:
        yield (
            f"The trial saw {recipe.num_steps * training.samples_per_step:,} samples of "
            f"{recipe.num_train:,} in orders of its own, epoch behind epoch; the tool shuffles "
            "otherwise, and the last batch of each epoch may be smaller."
        )
    if adapter.init_lora_weights in _OWN_STARTS:
        yield (
            f"adapter.init_lora_weights {adapter.init_lora_weights} is not written: it starts from "
            "what this product reads out of data or base. PEFT's default start stands in its place."
        )
    elif adapter.mutates_base:
        yield (
            f"adapter.init_lora_weights {adapter.init_lora_weights} moves a part of the base into "
            "the adapter; what the tool saves needs the changed base, unless PEFT converts it "
            "(path_initial_model_for_weight_conversion). The adapter here was converted."
        )
    if training.max_loss is not None:
        yield f"training.max_loss: nothing ends a run whose loss exceeds {training.max_loss:g}."
    if recipe.spec.data.packing:
        yield (
            "data.packing is left out: samples are padded, which learns the same and takes longer."
        )
    if recipe.spec.evaluation.metrics or recipe.spec.evaluation.generation:
        yield "Of the evaluation only the loss is written; other metrics are not."


def beyond(recipe: Recipe, known: Mapping[str, bool]) -> Iterator[str]:
    """Of the adapter's settings those that are used and that a tool does not take, in sentences.

    `known` says of each such setting whether the tool takes it.
    """
    adapter = recipe.adapter
    used = {
        "bias": adapter.bias if adapter.bias != "none" else None,
        "rank_pattern": adapter.rank_pattern,
        "alpha_pattern": adapter.alpha_pattern,
        "target_parameters": recipe.parameters,
        "init_lora_weights": recipe.start if recipe.start is not True else None,
        "loraplus_lr_ratio": adapter.loraplus_lr_ratio if adapter.loraplus_lr_ratio != 1 else None,
    }
    for name, value in used.items():
        if value and not known.get(name, False):
            yield f"adapter.{name} is not written, as the tool takes none: {_plain(value)}."
    skipped = recipe.quantization.llm_int8_skip_modules
    if skipped and not known.get("llm_int8_skip_modules", False):
        yield f"quantization.llm_int8_skip_modules is not written: {_plain(skipped)}."


def whole_alpha(recipe: Recipe) -> tuple[int, list[str]]:
    """`lora_alpha` for a tool that takes whole numbers alone, and what is told if it is none."""
    value = recipe.adapter.lora_alpha
    rounded = max(1, round(value))
    if rounded == value:
        return rounded, []
    return rounded, [
        f"adapter.lora_alpha is {value:g}; the tool takes whole numbers: {rounded} is written."
    ]


def file_differences(recipe: Recipe) -> Iterator[str]:
    """What every tool does otherwise that is told by a configuration file alone, in sentences."""
    quantization = recipe.quantization
    yield from whole_alpha(recipe)[1]
    if quantization.scheme == "int8" and quantization.llm_int8_threshold != 6:
        threshold = quantization.llm_int8_threshold
        yield f"quantization.llm_int8_threshold {threshold:g} is not written: it is 6 there."
    yield "eval_loss is a mean over batches; the sweep's is one over tokens."


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
