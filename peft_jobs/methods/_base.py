"""What every method does with the resident base: put an adapter on it, and take it off again."""

from peft_jobs import notices  # noqa: F401  # isort: skip  # before bitsandbytes speaks

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from peft_jobs.architecture import head_modules
from peft_jobs.base import Base
from peft_jobs.errors import SpecError
from peft_jobs.heads import fresh_modules, reset_head
from peft_jobs.keyed import ADAPTER, Clock, key_base_dropout, tuner_layers
from peft_jobs.methods._snapshot import Snapshot
from peft_jobs.quantized import is_quantized
from peft_jobs.spec import AdapterSpec, CausalLMSpec, TaskSpec, TrialSpec
from peft_jobs.targets import resolve_targets

_CLOCK = "_trial_clock"
_SNAPSHOT = "_base_snapshot"


@dataclass(frozen=True)
class Method:
    """One PEFT method; the functions are what differs between methods."""

    name: str
    peft_config: Callable[[AdapterSpec, Sequence[str], TaskSpec], PeftConfig]
    """(adapter, full names of the target modules, task) -> PEFT's own configuration."""
    initialise: Callable[[PeftModel, TrialSpec, Clock], None]
    """Give the adapter its keyed initial weights and keyed dropout, in place."""
    mutates_base: bool = False
    """Whether training changes the base's own weights in a way that `detach` cannot undo."""

    def attach(self, base: Base, spec: TrialSpec, clock: Clock | None = None) -> PeftModel:
        """`base.model` with the trial's fresh adapter on it, in eval mode, ready to train.

        Trainable are the adapter, the modules to save and the head of a classifier, all of them in
        float32 (but biases of the base that `bias` trains: they keep the base's dtype). Initial
        weights and dropout follow `spec.seed` and `clock` alone (a new one by default, see
        `clock_of`). Gradient checkpointing is switched on here if the spec says so. One adapter
        at a time: `detach` before the next. Raises SpecError, and leaves the base as it was, if
        the spec does not fit the model.
        """
        model = base.model
        fresh = fresh_modules(model)
        targets = resolve_targets(model, spec.adapter.target_modules, exclude=fresh)
        config = self.peft_config(spec.adapter, targets, spec.task)
        whole = set(spec.adapter.modules_to_save) | set(fresh)
        if not isinstance(spec.task, CausalLMSpec):
            whole |= set(head_modules(model))
        check_whole_modules(model, whole)
        setattr(config, "modules_to_save", sorted(whole) or None)  # noqa: B010  # not in the base class
        clock = Clock() if clock is None else clock
        snapshot = Snapshot.of(model)
        try:
            peft_model = get_peft_model(model, config)
            snapshot.keep_trainable_values()
            _check_wrapped(peft_model, targets)
            reset_head(peft_model, spec.seed)
            _raise_to_float32(peft_model)
            self.initialise(peft_model, spec, clock)
            key_base_dropout(peft_model, spec.seed, clock)
            if spec.training.gradient_checkpointing:
                checkpoint_activations(model)
        except BaseException:
            snapshot.restore()
            raise
        setattr(peft_model, _CLOCK, clock)
        setattr(peft_model, _SNAPSHOT, snapshot)
        return peft_model.eval()

    def detach(self, model: PeftModel) -> PreTrainedModel:
        """Take the adapter off; `model` is of no use afterwards.

        Returns the base exactly as `attach` found it: modules, hooks, flags, values; frozen, in
        eval mode.
        """
        snapshot: Snapshot = getattr(model, _SNAPSHOT)
        snapshot.restore()
        return snapshot.model


def clock_of(model: PeftModel) -> Clock:
    """The clock of an attached adapter; its trainer sets `micro_step` before each forward."""
    clock: Clock = getattr(model, _CLOCK)
    return clock


def check_whole_modules(model: PreTrainedModel, names: set[str]) -> None:
    """PEFT matches `modules_to_save` by the end of their names; each must name something real."""
    for name in sorted(names):
        found = [module for full, module in model.named_modules() if full.endswith(name)]
        if not any(True for module in found for _ in module.parameters()):
            children = ", ".join(child for child, _ in model.named_children())
            raise SpecError(
                f"adapter.modules_to_save: {name!r} matches no module with parameters of "
                f"{type(model).__name__} (outermost: {children})"
            )
        if any(is_quantized(module) for module in found):
            raise SpecError(
                f"adapter.modules_to_save: {name!r} is quantized and cannot be trained whole; "
                "name it in quantization.llm_int8_skip_modules too"
            )


def _check_wrapped(peft_model: PeftModel, targets: Sequence[str]) -> None:
    wrapped = {name for name, _ in tuner_layers(peft_model)}
    if wrapped != set(targets):
        differing = ", ".join(sorted(wrapped ^ set(targets))[:5])
        raise SpecError(
            f"adapter.target_modules: PEFT adapts other modules than these: {differing}"
        )


def _raise_to_float32(peft_model: PeftModel) -> None:
    """Train copies of half-precision modules in float32; the base sees its own dtype as before."""
    for module in peft_model.modules():
        if not isinstance(module, ModulesToSaveWrapper):
            continue
        whole = module.modules_to_save[ADAPTER]
        dtypes = {parameter.dtype for parameter in whole.parameters()}
        half = dtypes & {torch.bfloat16, torch.float16}
        if half:
            whole.float()
            whole.register_forward_pre_hook(_to_float32)
            whole.register_forward_hook(_to_dtype(half.pop()))


def _to_float32(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
    )


def _to_dtype(dtype: torch.dtype) -> Callable[[nn.Module, Any, Any], Any]:
    def cast(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(dtype) if isinstance(output, torch.Tensor) else output

    return cast


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Switch gradient checkpointing on; SpecError if the model has none."""
    try:
        # Also makes the embeddings' output require gradients, without which a frozen base has none.
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise SpecError(f"training.gradient_checkpointing: {error}") from error
