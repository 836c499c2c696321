"""What stays in a host's memory between trials: one base and one sweep's tokenised data."""

import functools
import gc
import logging
from pathlib import Path

import torch

from peft_jobs.base.loading import Base, base_key, load_base
from peft_jobs.base.own_classes import with_own_classes
from peft_jobs.base.positions import check_lengths
from peft_jobs.base.vocabulary import check_tokens
from peft_jobs.data.classes import labels_of
from peft_jobs.data.labels import Labels
from peft_jobs.data.tokenized import TokenizedData, load_data
from peft_jobs.device.memory import release
from peft_jobs.phases import Phases
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import TASKS

log = logging.getLogger(__name__)


class Resident:
    """One base at a time, one set of data at a time; others are loaded in their place."""

    def __init__(
        self, cache_dir: Path, device: torch.device, with_test: bool, spread: bool = False
    ) -> None:
        """`with_test` loads the test split too, where the spec gives one; `spread`: `load_base`."""
        self.cache_dir, self.device, self.with_test = cache_dir, device, with_test
        self.spread = spread
        self.base: Base | None = None
        self._hash = ""
        self._labels: tuple[str, Labels] | None = None
        self._data: tuple[str, TokenizedData] | None = None

    def get(self, spec: TrialSpec, phases: Phases) -> tuple[Base, TokenizedData]:
        """Base and data of `spec`; what had to be loaded is in `phases`.

        Raises SpecError and DataError for what cannot be loaded, or not trained on.
        """
        rows = f"{spec.data.model_dump_json()}\n{spec.task.model_dump_json()}"
        shown = f"{rows}\n{spec.model.model_dump_json()}"
        if self._labels is None or self._labels[0] != shown:
            with phases.phase("tokenize"):
                found = labels_of(spec.data, spec.task, TASKS[spec.task.type], self.cache_dir)
            with phases.phase("load"):
                self._labels = (shown, with_own_classes(found, spec.model, spec.task))
        labels = self._labels[1]
        base = self._get_base(spec, labels, phases)
        key = f"{rows}\n{base.key}"
        if self._data is None or self._data[0] != key:
            with phases.phase("tokenize"):
                splits = ("test",) if self.with_test and spec.data.test is not None else ()
                data = load_data(spec, base.tokenizer, self.cache_dir, splits, labels)
                check_lengths(base, spec, data)
                check_tokens(base.model, base.tokenizer, spec.model.name_or_path, data)
            self._data = (key, data)
        return base, self._data[1]

    def verify(self) -> None:
        """Let go of a base that is no longer what was loaded, and say so in the log."""
        if self.base is not None and self.base.state_hash() != self._hash:
            log.error("the trial changed the resident base; the next one loads it anew")
            self._drop()

    def _get_base(self, spec: TrialSpec, labels: Labels, phases: Phases) -> Base:
        if self.base is None or self.base.key != key_of(spec, labels):
            self._drop()
            _freeze()
            base = load_base(
                spec.model,
                spec.quantization,
                spec.task,
                labels=[str(name) for name in labels.classes],
                spread=self.spread,
                new_head=labels.new_head,
            )
            for name, seconds in base.seconds.items():
                phases.seconds[name] = phases.seconds.get(name, 0.0) + seconds
            self.base, self._hash = base, base.state_hash()
        return self.base

    def _drop(self) -> None:
        self.base = self._data = None
        release(self.device)


@functools.cache
def _freeze() -> None:
    """Once, before the first base: what is imported stays, and no collection looks at it again.

    Half a million objects, in half a second; a base and a trial are some ten thousand.
    """
    gc.freeze()


def key_of(spec: TrialSpec, labels: Labels) -> str:
    """`Base.key` of the base that `spec` needs for data with these classes."""
    names = [str(name) for name in labels.classes]
    return base_key(
        spec.model, spec.quantization, spec.task, labels=names, new_head=labels.new_head
    )
