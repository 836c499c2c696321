"""TrialSpec: everything that decides one trial, as frozen data.

Two trials with equal specs are the same trial (`fingerprint`). Fields of transformers, peft and
bitsandbytes keep their upstream names; a test checks each against the installed class.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from peft_jobs.errors import SpecError
from peft_jobs.spec.adapters import CONTINUATION, AdapterSpec, LoraSpec, carried, going_on
from peft_jobs.spec.data import DataSpec
from peft_jobs.spec.fields import (
    Count,
    Functions,
    Names,
    NonNegative,
    Positive,
    Rate,
    Section,
    Seed,
    Width,
    as_mapping,
)
from peft_jobs.spec.generation import GenerationSpec
from peft_jobs.spec.tasks import (
    CausalLMSpec,
    TaskSpec,
)
from peft_jobs.storage.files import canonical_json, sha256
from peft_jobs.storage.saved_adapter import AdapterError

INCOMPATIBLE = "incompatible"
"""pydantic's type of the mistake that a method cannot do what the rest of the trial asks."""


def _set(tree: dict[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with values set by dotted names, in place; ValueError for a name that is no path."""
    for name, value in params.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            if node.get(parent) is None:  # a section that was left out
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise ValueError(f"{name} is no path in a trial: {parent} holds a value")
        node[leaf] = value
    return tree


def _in_continuation(reason: str, point: Mapping[str, Any]) -> ValidationError:
    told = PydanticCustomError(CONTINUATION, "{reason}", {"reason": reason})
    at: InitErrorDetails = {"type": told, "loc": ("adapter",), "input": dict(point)}
    return ValidationError.from_exception_data(TrialSpec.__name__, [at])


class ModelSpec(Section):
    name_or_path: str = Field(min_length=1)
    """Hub id, local folder, or `demo`."""
    revision: str | None = None
    """Hub commit, tag or branch; pin a commit for results that others can repeat."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights that are not quantized. `auto`: the checkpoint's own, float32 on a CPU."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None


class QuantizationSpec(Section):
    scheme: Literal["none", "int8", "nf4", "fp4"]
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the GPU has it, float32 on a CPU."""
    llm_int8_threshold: NonNegative = 6.0
    llm_int8_skip_modules: Names = ()
    """Kept out of quantization beside the heads, which always are."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_the_scheme_uses(cls, value: Any) -> Any:
        """Drop what has no effect, so that equal trials have equal specs."""
        if not isinstance(value, Mapping):
            return value
        idle = {"llm_int8_threshold"} if value.get("scheme") != "int8" else set()
        if value.get("scheme") in ("none", "int8"):
            idle |= {"bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"}
        return {name: item for name, item in value.items() if name not in idle}


class TrainingSpec(Section):
    optim: Literal[
        "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"
    ] = "adamw_torch_fused"
    """AdamW of torch or of bitsandbytes; the paged ones need a GPU."""
    learning_rate: Positive = 2e-4
    per_device_train_batch_size: Width = 8
    gradient_accumulation_steps: Width = 1
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "linear"
    warmup_steps: NonNegative = 0
    """Steps, or below 1 the share of all steps."""
    weight_decay: NonNegative = 0.0
    adam_beta1: Rate = 0.9
    adam_beta2: Rate = 0.999
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NonNegative = 1.0
    """0 does not clip."""
    max_loss: Positive | None = 100.0
    """A loss of a training step or of the validation above it ends the trial as diverged, as one
    that is not finite always does; None sets no limit."""
    gradient_checkpointing: bool = False
    bf16: bool | Literal["auto"] = False
    """Train under bfloat16 autocast. `auto`: on a GPU that computes in it (Ampere or newer)."""
    fp16: bool = False
    """Train under float16 autocast, with a scaled loss; needs a GPU."""
    tf32: bool | Literal["auto"] = False
    """Let a GPU (Ampere or newer) round the factors of float32 products to TF32. `auto`: on one
    that can."""
    max_samples: Count | None = None
    """The horizon, rounded up to whole optimizer steps; or give one of the two below."""
    num_train_epochs: Positive | None = None
    max_steps: Count | None = None
    logging_steps: Count = 10

    @property
    def samples_per_step(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def total_steps(self, num_rows: int) -> int:
        """Optimizer steps of the whole trial on `num_rows` training rows (one epoch by default)."""
        if self.max_steps is not None:
            return self.max_steps
        samples = self.max_samples or round((self.num_train_epochs or 1.0) * num_rows)
        return max(1, -(-samples // self.samples_per_step))

    @model_validator(mode="after")
    def _one_horizon(self) -> Self:
        given = [
            name
            for name in ("max_samples", "num_train_epochs", "max_steps")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"give at most one horizon, got {' and '.join(given)}")
        return self


class EvaluationSpec(Section):
    per_device_eval_batch_size: Width = 16
    rungs: tuple[Count, ...] = ()
    """Samples after which the trial is evaluated and compared, ascending; the end is always one."""
    metrics: Functions = ()
    """Metrics of your own, each `module:function`: called at every evaluation as
    `function(model, tokenizer, rows)` with the tokenised rows, in eval mode, without gradients,
    under the trial's autocast; gives {name: number}, recorded as `validation/<name>`."""
    generation: GenerationSpec | None = None
    """Metrics on texts that the model writes; none by default, for they take their time."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must ascend without repeats, got {list(self.rungs)}")
        return self


class TrialSpec(Section):
    """One trial, whole: what `python -m peft_jobs run trial.json` takes."""

    model: Annotated[ModelSpec, as_mapping("name_or_path")]
    quantization: Annotated[QuantizationSpec, as_mapping("scheme")] = QuantizationSpec(
        scheme="none"
    )
    adapter: AdapterSpec = LoraSpec()
    task: TaskSpec
    data: DataSpec
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    seed: Seed = 0
    """Of the adapter's initial weights, the order of the data and the dropout masks."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.evaluation.generation is not None and not self.task.generates:
            raise ValueError(
                "evaluation.generation needs a task that answers a prompt: causal_lm with `prompt` "
                f"or `messages`, or seq2seq; got {self.task.type}"
            )
        forms = {"format": self.data.format != "openai", "roles": self.data.roles}
        given = [name for name, value in (*forms.items(), ("keys", self.data.keys)) if value]
        if given and not (isinstance(self.task, CausalLMSpec) and self.task.messages is not None):
            raise ValueError(f"data.{given[0]} is for conversations: it needs task.messages")
        if self.data.packing and not isinstance(self.task, CausalLMSpec):
            raise ValueError(f"data.packing is for task.type causal_lm, got {self.task.type}")
        return self

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        reason = self.adapter.refusal(
            self.quantization.scheme, self.task.type, self.training.gradient_checkpointing
        )
        if reason is None and self.data.packing and not self.adapter.PACKING:
            reason = f"{self.adapter.method} adds tokens to each row: it needs data.packing false"
        if reason is not None:
            raise PydanticCustomError(INCOMPATIBLE, "{reason}", {"reason": reason})
        return self

    def with_params(self, params: Mapping[str, Any]) -> Self:
        """This spec with dotted `params` set, validated again.

        A method other than this spec's starts from that method's own defaults, and from what
        `carried` takes over to it; `adapter.from` from the saved adapter. Raises pydantic's
        ValidationError, also for what contradicts a saved adapter, ValueError for a name that is no
        path in the spec, and SpecError for a saved adapter that is not there or cannot be used.
        """
        tree = self.model_dump(mode="json")
        another = params.get("adapter.method", self.adapter.method) != self.adapter.method
        prefix = "adapter."
        point = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        try:
            section = going_on(self.adapter, _set({}, point))
        except AdapterError as error:  # no mistake of the point's
            raise SpecError(f"{prefix}from: {error}") from error
        except SpecError as error:
            raise _in_continuation(str(error), point) from error
        if section is not None:
            tree["adapter"], another = section, False
            params = {k: v for k, v in params.items() if not k.startswith(prefix)}
        elif another:
            tree["adapter"] = {}
        _set(tree, params)
        if another and isinstance(tree["adapter"], dict):
            tree["adapter"] |= carried(self.adapter, tree["adapter"])
        return type(self).model_validate(tree)

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return canonical_json(self.model_dump(mode="json"))

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return sha256(self.to_json())
