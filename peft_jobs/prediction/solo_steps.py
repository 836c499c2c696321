"""Two optimizer steps of a model, as the solo engine makes them, on fake tensors.

Two, because the optimizer's state is there only after the first. That one has a short batch, as
most are, and lays the state among what it leaves behind: the longest batch then finds fragments.
What nothing is in goes back to the device between them, as it does where memory is short; gradients
live until then, and what they leave serves the next step.
What transformers' Trainer does around the steps takes no memory of the device: loss, backward,
clipping and optimizer are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peft_jobs.base.loading import Base
from peft_jobs.device.precision import autocast
from peft_jobs.host.prediction import Lengths
from peft_jobs.methods import METHODS, clock_of
from peft_jobs.prediction.attention import attention_of
from peft_jobs.prediction.batches import example_of, shortened
from peft_jobs.prediction.fake_base import CPU, Kind, fake_in_place, hold_model
from peft_jobs.prediction.int8_products import int8_products_of
from peft_jobs.prediction.meter import Meter, Operation, Peak
from peft_jobs.prediction.optimizers import clip, make_optimizer
from peft_jobs.prediction.unvalued import without_values
from peft_jobs.spec import LoraSpec, TrialSpec
from peft_jobs.tasks import TASKS, Batch

_ROWS = 1 << 20
"""Training rows, of which an adapter may ask the number of steps."""


@dataclass(frozen=True)
class Trainee:
    """A model on the meta device with its adapter, and how it is trained."""

    model: Any
    collate: Callable[..., Batch]
    losses: Callable[[Any, Batch], Tensor]
    begin_micro_step: Callable[[], None] = lambda: None
    penalty: Callable[[nn.Module], Tensor] | None = None
    after_step: Callable[[nn.Module, int], None] | None = None


@dataclass(frozen=True)
class Steps:
    """What was seen of the steps of one model."""

    peaks: dict[str, Peak]
    """By phase."""
    reserved_bytes: int
    """What CUDA's allocator holds for them."""
    operations: list[Operation] = field(repr=False)
    """Of the second step."""
    trainable_parameters: int
    adapter_bytes: int
    """Of the tensors that the adapter is saved as."""
    state_bytes: int
    """Of the optimizer's state."""


def trainee_of(spec: TrialSpec, base: Base) -> Trainee:
    """The trial's own model, loss and hooks. Raises like `Method.attach`."""
    task, method = TASKS[spec.task.type], METHODS[spec.adapter.method]
    with without_values():
        model = method.attach(base, plainly_initialized(spec), rows=cast(Any, range(_ROWS)))
    for name, parameter in model.named_parameters():
        if "ranknum" in name:  # PEFT 0.21.2 makes AdaLoRA's ranks trainable where it moves them
            parameter.requires_grad_(False)
    clock = clock_of(model)

    def begin() -> None:
        clock.micro_step += 1

    collate = partial(task.collate, pad_token_id=base.tokenizer.pad_token_id)
    return Trainee(model, collate, task.losses, begin, method.penalty, method.after_step)


def solo_steps(spec: TrialSpec, trainee: Trainee, kind: Kind, lengths: Lengths) -> Steps:
    """Two steps of the model, which is fake from then on, with the trial's `training`."""
    training, model = spec.training, trainee.model
    with without_values():
        saved = adapter_bytes(model)
    trainable = model.get_nb_trainable_parameters()[0]
    rows = [example_of(spec.task, lengths)] * training.per_device_train_batch_size
    batch = trainee.collate(rows)
    short = trainee.collate([example_of(spec.task, shortened(lengths))] * len(rows))
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    meter = Meter(vocabulary)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_in_place(model, mode)
    with mode:
        to_fake = mode.fake_tensor_converter.from_meta_and_device
        with attention_of(kind, lengths.pads(len(rows))), int8_products_of(kind), meter:
            hold_model(meter, model)
            model.train()
            optimizer = make_optimizer(spec, model, kind)
            _tell_gradients(meter, model)
            for step in (1, 2):
                meter.is_counting = step == 2
                for _ in meter.micro_steps(training.gradient_accumulation_steps):
                    inputs = {
                        n: to_fake(mode, t.to("meta"), CPU)
                        for n, t in (short if step == 1 else batch).items()
                    }
                    _micro_step(spec, trainee, inputs, meter)
                    del inputs
                with meter.phase("update", "workspace"):
                    _update(spec, model, optimizer, meter, kind)
                    if trainee.after_step is not None:
                        with meter.category("optimizer"):
                            trainee.after_step(model, step)
                if step == 1:
                    meter.allocator.empty_cache()
                optimizer.zero_grad()
            state = sum(tensor.nbytes for tensor in _state(optimizer))
    return Steps(meter.peaks, meter.allocator.reserved, meter.operations, trainable, saved, state)


def _micro_step(spec: TrialSpec, trainee: Trainee, batch: dict[str, Any], meter: Meter) -> None:
    training, model = spec.training, trainee.model
    trainee.begin_micro_step()
    with meter.phase("forward", "activations"):
        for tensor in batch.values():
            meter.hold(tensor, "activations")
        with autocast(CPU, training):
            loss = trainee.losses(model, batch).sum() / 1
            if trainee.penalty is not None:
                loss = loss + trainee.penalty(model) / training.gradient_accumulation_steps
    with meter.phase("backward", "workspace"):
        loss.backward()  # type: ignore[no-untyped-call]


def _update(
    spec: TrialSpec, model: nn.Module, optimizer: torch.optim.Optimizer, meter: Meter, kind: Kind
) -> None:
    if spec.training.max_grad_norm > 0:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        clip(trained, spec.training.max_grad_norm, kind)
    optimizer.step()
    for tensor in _state(optimizer):
        # A paged optimizer's state gives way to the host's memory where there is no room for it.
        if spec.training.optim.startswith("paged"):
            meter.let_go(tensor)
        else:
            meter.hold(tensor, "optimizer")


def plainly_initialized(spec: TrialSpec) -> TrialSpec:
    """The trial with an initialisation that looks at no values; what it trains is of the same
    shapes."""
    adapter = spec.adapter
    if isinstance(adapter, LoraSpec) and adapter.init_lora_weights != "default":
        return spec.with_params({"adapter.init_lora_weights": "default"})
    return spec


def adapter_bytes(model: Any) -> int:
    """Of the tensors that the adapter is saved as."""
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(model, save_embedding_layers=False).values()
    else:
        tensors = [p for p in model.parameters() if p.requires_grad]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tell_gradients(meter: Meter, model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda p: meter.hold(cast(Tensor, p.grad), "gradients")
            )


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
