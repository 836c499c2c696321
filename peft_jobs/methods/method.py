"""What every method does with the resident base: put an adapter on it, and take it off again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_jobs.base.architecture import head_modules
from peft_jobs.base.heads import fresh_modules, reset_head
from peft_jobs.base.loading import Base
from peft_jobs.base.quantization import is_quantized
from peft_jobs.base.snapshot import Snapshot
from peft_jobs.base_dropout import key_base_dropout
from peft_jobs.errors import Refused, SpecError
from peft_jobs.methods import loftq
from peft_jobs.methods.continuation import check_fits, further_settings, load_weights
from peft_jobs.methods.float32_copies import check_scaled_gradients, train_in_float32
from peft_jobs.methods.placement import parameter_places, places
from peft_jobs.methods.setting import Setting
from peft_jobs.randomness import Clock, key, key_dropout, tuner_layers
from peft_jobs.spec import LoraSpec, TrialSpec
from peft_jobs.spec.adapters import saved_adapter

_CLOCK = "_trial_clock"
_SNAPSHOT = "_base_snapshot"


def _peft_model(setting: Setting, config: PeftConfig) -> PeftModel:
    """PEFT's own model, its random numbers drawn from the trial's seed."""
    setattr(config, "modules_to_save", list(setting.whole) or None)  # noqa: B010  # not in the base class
    model: PeftModel = get_peft_model(setting.base.model, config)
    return model


@dataclass(frozen=True)
class Method:
    """One PEFT method; the functions are what differs between methods."""

    name: str
    config: Callable[[Setting], PeftConfig] | None = None
    """PEFT's own configuration; None for a method that PEFT does not have."""
    build: Callable[[Setting], nn.Module] | None = None
    """Puts the adapter of a method that PEFT does not have on the base."""
    before: Callable[[Setting, PeftConfig], None] | None = None
    """What must be known of the base and the data before the adapter is there."""
    initialise: Callable[[PeftModel, Setting], None] | None = None
    """Gives the adapter the initial weights that PEFT itself does not give it, in place."""
    penalty: Callable[[nn.Module], Tensor] | None = None
    """Added to the loss of every training step."""
    after_step: Callable[[nn.Module, int], None] | None = None
    """Called after each optimizer step, counted from 1, while the gradients are still there."""

    def attach(
        self,
        base: Base,
        spec: TrialSpec,
        clock: Clock | None = None,
        rows: Dataset | None = None,
    ) -> Any:
        """`base.model` with the trial's adapter on it, in eval mode, ready to train.

        It is a fresh one, or has the weights of a saved one that the spec names.

        Trainable are the adapter, the modules to save and the head of a classifier, all of them in
        float32 (but biases of the base that `bias` trains: they keep the base's dtype). Initial
        weights and dropout follow `spec.seed` and `clock` alone (a new one by default, see
        `clock_of`), and for some initialisations `rows`, the tokenised training rows. Gradient
        checkpointing is switched on here if the spec says so. One adapter at a time: `detach`
        before the next. Raises Refused, and leaves the base as it was, if the spec does not fit
        the model.
        """
        try:
            return self._attach(base, spec, Clock() if clock is None else clock, rows)
        except SpecError as error:
            raise Refused(str(error)) from error

    def _attach(self, base: Base, spec: TrialSpec, clock: Clock, rows: Dataset | None) -> Any:
        model = base.model
        setting = setting_of(base, spec, rows)
        snapshot = Snapshot.of(model)
        if spec.adapter.mutates_base:
            snapshot.keep_weights(setting.targets)
        own = set(model.modules())
        try:
            with _seeded(base.device, spec):
                adapted = self._built(setting)
            if not spec.adapter.mutates_base:
                snapshot.keep_trainable_values()
            _check_wrapped(adapted, setting)
            reset_head(adapted, spec.seed)
            train_in_float32(adapted)
            if setting.saved is not None:
                load_weights(adapted, setting.saved, setting.whole)
            check_scaled_gradients(adapted, spec.training)
            key_dropout(adapted, own, spec.seed, clock)
            again = key_base_dropout(adapted, spec.seed, clock, always=self.name != "lora")
            if spec.training.gradient_checkpointing:
                checkpoint_activations(model, again)
        except BaseException:
            snapshot.restore()
            raise
        setattr(adapted, _CLOCK, clock)
        setattr(adapted, _SNAPSHOT, snapshot)
        return adapted.eval()

    def detach(self, model: nn.Module) -> PreTrainedModel:
        """Take the adapter off; `model` is of no use afterwards.

        Returns the base exactly as `attach` found it: modules, hooks, flags, values; frozen, in
        eval mode.
        """
        snapshot: Snapshot = getattr(model, _SNAPSHOT)
        snapshot.restore()
        return snapshot.model

    def _built(self, setting: Setting) -> nn.Module:
        if self.config is None:
            assert self.build is not None
            return self.build(setting)
        try:
            config = self.config(setting)
            if setting.saved is not None:
                further = further_settings(setting.saved, setting.adapter, config)
                for name, value in further.items():
                    setattr(config, name, value)
            elif self.before is not None:
                self.before(setting, config)
            model = _peft_model(setting, config)
            if self.initialise is not None and setting.saved is None:
                self.initialise(model, setting)
        except (SpecError, torch.OutOfMemoryError):
            raise
        except (ValueError, TypeError, NotImplementedError) as error:
            raise SpecError(f"adapter: PEFT's {self.name} refuses this base: {error}") from error
        return model


def setting_of(base: Base, spec: TrialSpec, rows: Dataset | None = None) -> Setting:
    """What the trial trains on this base; SpecError if a name in the spec matches nothing there."""
    model, fresh = base.model, fresh_modules(base.model)
    if isinstance(spec.adapter, LoraSpec):
        loftq.check_base(base, spec.adapter)
    targets = places(model, spec.adapter, exclude=fresh)
    whole = set(spec.adapter.modules_to_save) | set(fresh)
    if spec.task.HAS_HEAD:
        whole |= set(head_modules(model))
    check_whole_modules(model, whole)
    parameters = parameter_places(model, spec.adapter, exclude=fresh)
    saved = None
    if spec.adapter.source is not None:
        saved = saved_adapter(spec.adapter)
        check_fits(model, spec.adapter, saved, exclude=fresh)
    return Setting(base, spec, targets, tuple(sorted(whole)), parameters, saved, rows)


def clock_of(model: nn.Module) -> Clock:
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


@contextmanager
def _seeded(device: torch.device, spec: TrialSpec) -> Iterator[None]:
    """A block whose global random numbers follow the trial's seed and move nobody else's."""
    devices = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key("adapter", spec.seed, spec.adapter.method))
        yield


def _check_wrapped(model: nn.Module, setting: Setting) -> None:
    wrapped = {name for name, _ in tuner_layers(model)}
    asked = {*setting.targets, *setting.parameters}
    if wrapped and not wrapped <= asked:
        differing = ", ".join(sorted(wrapped - asked)[:5])
        raise SpecError(
            f"adapter.target_modules: PEFT adapts other modules than these: {differing}"
        )
    missing = asked - wrapped
    if wrapped and missing and not setting.may_drop_targets:
        differing = ", ".join(sorted(missing)[:5])
        raise SpecError(f"adapter.target_modules: PEFT leaves out {differing}")


def checkpoint_activations(model: PreTrainedModel, again: Any = None) -> list[nn.Module]:
    """Switch gradient checkpointing on; SpecError if the model has none.

    `again` is what torch takes as `context_fn`: in which activations are computed again. Gives the
    modules whose attribute `gradient_checkpointing` says so.
    """
    try:
        further = {} if again is None else {"context_fn": again}
        model.activation_checkpointing_enable({"use_reentrant": False, **further})
    except ValueError as error:
        raise SpecError(f"training.gradient_checkpointing: {error}") from error
    # Not reentrant, it needs no gradient of the embeddings' output.
    model.disable_input_require_grads()  # type: ignore[no-untyped-call]
    return [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
