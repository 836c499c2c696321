"""What the sections of all tasks share, and what each says about its task in class variables."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from peft_jobs.spec.fields import Section

Column = Annotated[str, Field(min_length=1)]
Direction = Literal["minimize", "maximize"]

TEXT_METRICS: Mapping[str, Direction] = {
    "validation/loss": "minimize",
    "validation/perplexity": "minimize",
    "validation/bits_per_byte": "minimize",
}


class TaskSection(Section):
    """One entry of TASK_SPECS."""

    METRICS: ClassVar[Mapping[str, Direction]]
    """The names that an evaluation may record, each with the direction that is better, apart from
    those of `evaluation.generation` and `evaluation.metrics`."""
    AUTO_CLASS: ClassVar[str]
    """The name of transformers' class that loads a base."""
    HAS_HEAD: ClassVar[bool]
    """Whether the output comes from a head of the task's own, which is trained whole beside the
    adapter and may be new; otherwise the base must bring all of its weights."""
    NUM_LABELS: ClassVar[int | None] = None
    """Outputs of the head, where the task fixes them; otherwise there is one for each class."""
    STARTER: ClassVar[str]
    """The file of `sweeps/examples` that `peft-sweep init` writes."""

    type: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of METRICS, those that an evaluation of this section records."""
        return tuple(self.METRICS)

    @property
    def num_labels(self) -> int | None:
        """NUM_LABELS, of this section."""
        return self.NUM_LABELS

    @property
    def head_problem(self) -> str | None:
        """What transformers calls the problem_type of the head, where it must be told."""
        return None

    @property
    def generates(self) -> bool:
        """Whether there is a prompt to answer."""
        return False
