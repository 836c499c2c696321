"""The settings of a trial that decide its memory and not its result, and the way down from each.

The samples of an optimizer step stay what they are: what a smaller micro-batch leaves out,
accumulation makes up for. Light: results and checkpoints carry these.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from peft_jobs.spec import TrialSpec

Phase = Literal["train", "evaluate"]


class MemorySettings(BaseModel):
    """Fields of a TrialSpec's training and evaluation sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    per_device_eval_batch_size: int


class LadderRung(BaseModel):
    """One time that memory ran out, or would have by prediction: in what, with what settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: Phase
    step: int
    """Optimizer steps done by then."""
    tried: MemorySettings
    peak: dict[str, int] = {}
    """Bytes, as in a result's `memory`, up to the failure."""
    error: str
    is_predicted: bool = False
    """Whether the settings were never tried."""


def settings_of(spec: TrialSpec) -> MemorySettings:
    """The settings that a trial starts with."""
    training = spec.training
    return MemorySettings(
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_checkpointing=training.gradient_checkpointing,
        per_device_eval_batch_size=spec.evaluation.per_device_eval_batch_size,
    )


def with_settings(spec: TrialSpec, settings: MemorySettings) -> TrialSpec:
    """`spec` with other memory settings."""
    sections = {
        name: "evaluation" if name == "per_device_eval_batch_size" else "training"
        for name in MemorySettings.model_fields
    }
    return spec.with_params(
        {f"{sections[name]}.{name}": value for name, value in settings.model_dump().items()}
    )


def below(settings: MemorySettings, phase: Phase) -> MemorySettings | None:
    """What to try next after memory ran out in `phase`; None if nothing is left to try.

    Training: the largest micro-batch up to half of this one that divides the samples of a step,
    down to one; then gradient checkpointing. Evaluation: half of the batch, down to one.
    """
    if phase == "evaluate":
        half = settings.per_device_eval_batch_size // 2
        return settings.model_copy(update={"per_device_eval_batch_size": half}) if half else None
    size = settings.per_device_train_batch_size
    samples = size * settings.gradient_accumulation_steps
    if size > 1:
        smaller = next(n for n in range(size // 2, 0, -1) if samples % n == 0)
        return settings.model_copy(
            update={
                "per_device_train_batch_size": smaller,
                "gradient_accumulation_steps": samples // smaller,
            }
        )
    if not settings.gradient_checkpointing:
        return settings.model_copy(update={"gradient_checkpointing": True})
    return None
