"""What the adapter sections of all methods share, and what each says that its method cannot do."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, create_model, model_validator

from peft_jobs.errors import SpecError
from peft_jobs.spec.fields import Names, Section, Whole, as_mapping

SCHEMES = ("none", "int8", "nf4", "fp4")
"""Values of `quantization.scheme`."""
UNQUANTIZED = ("none",)


class AdapterSource(Section):
    """An adapter that was saved before, from which a trial goes on."""

    name_or_path: str = Field(min_length=1)
    """A folder with `adapter_config.json` and `adapter_model.safetensors`, or a Hub id."""
    revision: str | None = None
    """Hub commit, tag or branch."""
    sha256: str | None = None
    """Of the adapter's files: filled in when the file is read, and a mistake if they differ."""

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return Path(self.name_or_path).expanduser().is_dir()


if TYPE_CHECKING:
    _Start = Section
else:  # `from` is a word of Python's, which no class body can annotate
    _Start = create_model(
        "_Start",
        __base__=Section,
        **{
            "from": (
                Annotated[AdapterSource, as_mapping("name_or_path")] | None,
                Field(
                    default=None,
                    description="An adapter that was saved before: the trial goes on from its "
                    "weights. Method, rank, targets and all else that shapes them are the saved "
                    "adapter's; dropout may be another.",
                ),
            )
        },
    )


class Adapter(_Start):
    """Fields that every method has. What a method cannot do stands in its class variables."""

    LATER = ("exclude_modules", "layers_pattern", "target_parameters", "from")
    SCHEMES: ClassVar[tuple[str, ...]] = SCHEMES
    """Quantizations of the base on which the method works."""
    TASKS: ClassVar[tuple[str, ...] | None] = None
    """Tasks that it can learn; None is all."""
    MERGES: ClassVar[bool] = True
    """Whether the trained adapter can become part of the base's weights."""
    CHECKPOINTING: ClassVar[bool] = True
    """Whether it trains with gradient checkpointing."""

    PACKING: ClassVar[bool] = True
    """Whether several samples can share a row in training (`data.packing`)."""

    method: str
    modules_to_save: Names = ()
    """Trained whole beside the adapter; a task's head always is."""

    @property
    def source(self) -> AdapterSource | None:
        """The adapter that the trial goes on from (the field `from`); None if it begins anew."""
        found: AdapterSource | None = getattr(self, "from")
        return found

    @property
    def mutates_base(self) -> bool:
        """Whether training changes weights of the base itself; they are kept and put back."""
        return False

    def refusal(self, scheme: str, task: str, gradient_checkpointing: bool) -> str | None:
        """Why the adapter cannot be trained so; None if it can."""
        if scheme not in self.SCHEMES:
            return f"{self.method} needs quantization.scheme {_either(self.SCHEMES)}, got {scheme}"
        if self.TASKS is not None and task not in self.TASKS:
            return f"{self.method} needs task.type {_either(self.TASKS)}, got {task}"
        if gradient_checkpointing and not self.CHECKPOINTING:
            return f"{self.method} needs training.gradient_checkpointing false, got true"
        return None

    def check_merges(self) -> None:
        """SpecError if the trained adapter cannot become part of the base's weights."""
        if not self.MERGES:
            raise SpecError(f"adapter.method: {self.method} cannot be merged into its base")


class TargetedAdapter(Adapter):
    """A method that changes some modules of the base."""

    target_modules: str | Names = "all-linear"
    """A named set (attention-qv, attention, attention+mlp, all-linear), module names, or a regular
    expression that matches whole names."""
    exclude_modules: str | Names = ()
    """Those of the targets that are left out: module names, or a regular expression."""

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        others = getattr(self, "target_parameters", ())
        if not (self.target_modules or others) or not all(self.target_modules):
            raise ValueError("target_modules must name at least one module, got none")
        return self


def _layers(value: Any) -> Any:
    """One number, or several without order or repeats."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return (value,)
    if isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return tuple(sorted(set(value)))
    return value


Layers = Annotated[tuple[Whole, ...] | None, BeforeValidator(_layers)]
"""Numbers of layers, from 0; None is all."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class LayeredAdapter(TargetedAdapter):
    layers_to_transform: Layers = None
    """Only the target modules in these layers."""
    layers_pattern: Annotated[Names, BeforeValidator(_listed)] = ()
    """The module lists that `layers_to_transform` numbers, where a name holds several numbers
    (`block` of T5); by default the outermost."""

    @model_validator(mode="after")
    def _numbers_something(self) -> Self:
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern tells where layers_to_transform counts; give that too")
        return self


def without(value: Any, idle: set[str]) -> Any:
    """A raw section without the keys `idle`, which have no effect: equal trials, equal specs."""
    if not isinstance(value, Mapping):
        return value
    return {name: item for name, item in value.items() if name not in idle}


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)
