"""SoloEngine: one trial at a time on a resident base, with transformers.Trainer; the reference.

torch stays imported, base and tokenised data stay loaded between trials. After each trial a hash of
the base is compared with that of the loaded one: a trial that changed it is logged as an error, and
the base is loaded anew. `_run` is the table of contents of a trial.
"""

from peft_jobs import notices  # noqa: F401  # isort: skip  # before bitsandbytes speaks

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import disable_progress_bars
from peft import PeftModel
from transformers import set_seed

from peft_jobs import attempt
from peft_jobs.base import Base, this_device
from peft_jobs.errors import OutOfMemory
from peft_jobs.evaluation import score
from peft_jobs.job import Inbox, Job, Prepared, serve_one_at_a_time
from peft_jobs.memory import is_out_of_memory, peak_memory, release
from peft_jobs.methods import METHODS, clock_of
from peft_jobs.phases import Phases
from peft_jobs.provenance import environment
from peft_jobs.reporting import Loop, Seen
from peft_jobs.resident import Resident, key_of
from peft_jobs.result import Progress, State, TrialResult, finite
from peft_jobs.spec import TrialSpec
from peft_jobs.targets import check_targets_without_weights, resolve_targets
from peft_jobs.tasks import TASKS
from peft_jobs.tokenized import TokenizedData
from peft_jobs.training import train

log = logging.getLogger(__name__)


class SoloEngine:
    """See `peft_jobs.job.Engine`."""

    def __init__(
        self, cache_dir: str, threads: int | None = None, score_test: bool = False
    ) -> None:
        """`cache_dir` keeps tokenised data, for other processes too; `threads` are torch's, None
        leaves them as they are; `score_test` adds the test split's metrics to each result."""
        self.threads, self.score_test = threads, score_test
        self.device = this_device()
        self._resident = Resident(Path(cache_dir), self.device, with_test=score_test)
        disable_progress_bars()

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        """`check`, and the metrics of the base without an adapter (none where it has a new head).

        Raises SpecError and DataError.
        """
        phases = Phases("load", "quantize", "tokenize")
        base, data = self.check(spec, variants, phases)
        baseline = {} if data.classes else score(base.model, base, spec, data.validation)
        provenance = self._provenance(spec, base, data) | {"seconds": phases.seconds}
        return Prepared(train_rows=len(data.train), baseline=baseline, provenance=provenance)

    def check(
        self, spec: TrialSpec, variants: Sequence[TrialSpec] = (), phases: Phases | None = None
    ) -> tuple[Base, TokenizedData]:
        """Base and data of `spec`, resident from now on; target modules of it and of `variants`.

        Variants with another base are checked without its weights. Raises SpecError, DataError.
        """
        self._use_threads()
        base, data = self._resident.get(spec, phases or Phases())
        for variant in [spec, *variants]:
            targets = variant.adapter.target_modules
            if key_of(variant, data.classes) == base.key:
                resolve_targets(base.model, targets)
            else:
                check_targets_without_weights(variant.model, variant.task, targets)
        return base, data

    def serve(self, inbox: Inbox) -> None:
        """Run jobs until the inbox closes."""
        serve_one_at_a_time(inbox, self.run)

    def status(self) -> dict[str, Any]:
        """What is resident: base, device, memory, threads."""
        base = self._resident.base
        return {
            "engine": "solo",
            "device": _device_name(self.device),
            "threads": torch.get_num_threads(),
            "base": None if base is None else base.fingerprint,
            "rss_bytes": psutil.Process().memory_info().rss,
        }

    def run(self, job: Job) -> TrialResult | None:
        """Run one attempt to its end; None if it was interrupted.

        Whatever goes wrong in it ends this attempt alone, as a result with a kind and a traceback.
        """
        phases, seen = Phases("load", "quantize", "tokenize", "train", "evaluate"), Seen()
        found: dict[str, Any] = {}
        failed: TrialResult | None = None
        self._use_threads()
        with attempt.logged(job.directory):
            try:
                self._run(job, phases, seen, found)
            except Exception as error:  # the trial's edge: its error is its result
                log.exception("the trial failed")
                failed = TrialResult.from_error(
                    OutOfMemory(str(error)) if is_out_of_memory(error) else error,
                    traceback.format_exc(),
                )
            if failed is not None:
                release(self.device)  # not above: the error still held the trial's tensors
            with phases.phase("verify"):
                self._resident.verify()
        found |= seen.counts() | {"seconds": phases.seconds}
        if failed is not None:
            return failed.model_copy(update=found)
        if job.cancelled is not None:
            return job.stopped(**found)
        return TrialResult(state=State.COMPLETE, **found)

    def _run(self, job: Job, phases: Phases, seen: Seen, found: dict[str, Any]) -> None:
        """Fill in `seen` and `found` as far as the trial comes."""
        spec = job.spec
        base, data = self._resident.get(spec, phases)
        found["provenance"] = self._provenance(spec, base, data)
        with self._measured(found), self._attached(base, spec, phases) as model:
            found["trainable_parameters"] = model.get_nb_trainable_parameters()[0]
            train(model, self._loop(job, base, data, model, phases, seen))
            if job.cancelled is not None:
                return
            with phases.phase("evaluate"):
                seen.metrics |= self._test_metrics(model, base, spec, data)
            with phases.phase("save"):
                found["adapter"] = attempt.save_adapter(model, job.directory)

    @contextmanager
    def _measured(self, found: dict[str, Any]) -> Iterator[None]:
        """Put the block's memory peaks into `found`, also when it raises."""
        with peak_memory(self.device) as peaks:
            try:
                yield
            finally:
                found["memory"] = peaks()

    @contextmanager
    def _attached(self, base: Base, spec: TrialSpec, phases: Phases) -> Iterator[PeftModel]:
        """A fresh adapter on the base for as long as the block lasts."""
        method = METHODS[spec.adapter.method]
        set_seed(spec.seed)
        with phases.phase("attach"):
            model = method.attach(base, spec)
        try:
            yield model
        finally:
            with phases.phase("attach"):
                method.detach(model)

    def _loop(
        self,
        job: Job,
        base: Base,
        data: TokenizedData,
        model: PeftModel,
        phases: Phases,
        seen: Seen,
    ) -> Loop:
        def report(progress: Progress) -> None:
            attempt.append(job.directory, progress)
            job.report(progress)

        return Loop(
            spec=job.spec,
            task=TASKS[job.spec.task.type],
            train_dataset=data.train,
            pad_token_id=base.tokenizer.pad_token_id,
            device=base.device,
            clock=clock_of(model),
            evaluate=partial(score, model, base, job.spec, data.validation),
            report=report,
            job=job,
            phases=phases,
            seen=seen,
        )

    def _test_metrics(
        self, model: PeftModel, base: Base, spec: TrialSpec, data: TokenizedData
    ) -> dict[str, float]:
        if not self.score_test or data.test is None:
            return {}
        return finite(score(model, base, spec, data.test, "test"))

    def _use_threads(self) -> None:
        # OpenMP keeps the number by thread, and a host's calls come from several.
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def _provenance(self, spec: TrialSpec, base: Base, data: TokenizedData) -> dict[str, Any]:
        return {
            **environment(),
            "spec": spec.fingerprint(),
            "model": "@".join(filter(None, (spec.model.name_or_path, spec.model.revision))),
            "base": base.fingerprint,
            **data.fingerprints,
            "dropped_rows": data.dropped,
            "seed": spec.seed,
            "device": _device_name(self.device),
            "threads": torch.get_num_threads(),
        }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
