"""SoloEngine: one trial at a time on a resident base, with transformers.Trainer; the reference.

torch stays imported, base and tokenised data stay loaded between trials. A trial that changed the
base, by a hash after each, is logged as an error, and the base is loaded anew. See `solo_trial`.
"""

import logging
import os
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import disable_progress_bars

from peft_jobs.activity import at_stage
from peft_jobs.base.loading import Base
from peft_jobs.base.positions import check_some_fit
from peft_jobs.base.resident import Resident, key_of
from peft_jobs.base.stored_quantization import check_quantization
from peft_jobs.base.weight_shares import planned_shares, warn_of_shares
from peft_jobs.data.leaks import leaks_of
from peft_jobs.data.sample_packing import check_apart
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.device.lost_device import raising_device_lost, result_of
from peft_jobs.device.memory import release
from peft_jobs.device.precision import check_device, precision_of
from peft_jobs.device.this_device import as_device, device_name, this_device
from peft_jobs.device.threads import Threads
from peft_jobs.engines.solo.batch_lengths import lengths_of
from peft_jobs.engines.solo.contents import contents
from peft_jobs.engines.solo.solo_trial import run_alone
from peft_jobs.engines.solo.thread_times import ThreadTimes, base_step_seconds
from peft_jobs.engines.solo.untrained import baseline, check_continues
from peft_jobs.errors import SpecError
from peft_jobs.evaluation.custom_metrics import load_metric
from peft_jobs.evaluation.majority import class_counts, majority_metrics
from peft_jobs.host.job import Inbox, Job, Prepared, serve_one_at_a_time
from peft_jobs.host.result import TrialResult, split_finite
from peft_jobs.methods import setting_of
from peft_jobs.methods.continuation import check_continues_without_weights
from peft_jobs.methods.left_out import left_out
from peft_jobs.methods.placement import check_places_without_weights
from peft_jobs.phases import Phases
from peft_jobs.provenance import environment
from peft_jobs.spec import ModelSpec, QuantizationSpec, TaskSpec, TrialSpec
from peft_jobs.storage.object_store import local_folder
from peft_jobs.training import attempt_files
from peft_jobs.training.attempt import Attempt, AttemptOptions, ResultDraft
from peft_jobs.training.checkpoints import find_start
from peft_jobs.training.counts import Counts

log = logging.getLogger(__name__)


class SoloEngine:
    """See `peft_jobs.host.job.Engine`."""

    def __init__(
        self,
        cache_dir: str,
        threads: int | None = None,
        score_test: bool = False,
        checkpoint_seconds: float | None = None,
        spread: bool = False,
        try_threads: bool = False,
        yield_threads: bool = False,
    ) -> None:
        """`cache_dir` keeps tokenised data, for other processes too; `threads` are torch's, None
        leaves them as they are; `score_test` adds the test split's metrics to each result;
        `checkpoint_seconds` lie between checkpoints, beside those at rungs, None leaves none;
        `spread` divides the base among all GPUs that this process sees; `try_threads` has `prepare`
        measure steps with fewer `threads` on a CPU, and with `yield_threads` trials there have
        fewer while others use the cores."""
        if threads is not None and threads < 1:
            raise SpecError(f"engine option threads must be >= 1, got {threads}")
        self.attempt_options = AttemptOptions(checkpoint_seconds, score_test)
        self.device = this_device()
        self.threads = Threads(threads, yields=yield_threads and self.device.type == "cpu")
        self._resident = Resident(local_folder(cache_dir), self.device, score_test, spread)
        self.thread_times = ThreadTimes(threads if try_threads else None, local_folder(cache_dir))
        disable_progress_bars()

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        """`scored`, and what steps take with fewer threads. Raises SpecError and DataError."""
        prepared = self.scored(spec, variants)
        base, data = self.resident(spec, Phases())
        measure = partial(base_step_seconds, spec, base, data)
        return self.thread_times.added(prepared, spec, base, measure)

    def scored(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        """`check`, and the metrics of the base before any training (none where it has a new head)
        and of the majority class.

        Before any training: without an adapter, or with the saved one that `spec` goes on from.

        Raises SpecError and DataError.
        """
        phases = Phases("load", "quantize", "tokenize")
        base, data = self.check(spec, variants, phases)
        cache_dir, name = self._resident.cache_dir, device_name(self.device)
        leaks = leaks_of(spec, data, cache_dir)
        for leak in leaks:
            log.warning("%s", leak.message)
        with at_stage("evaluate"):
            measured, not_finite = split_finite(baseline(base, spec, data))
        provenance = self.provenance(spec, base, data) | {"seconds": phases.seconds}
        return Prepared(
            train_rows=len(data.train),
            baseline=measured,
            class_counts=class_counts(spec.task, data),
            majority=majority_metrics(spec.task, data),
            not_finite=not_finite,
            provenance=provenance,
            contents=contents(spec, variants, base, data, name, cache_dir),
            leaks=tuple(leak.message for leak in leaks),
            device=None if self._resident.spread else as_device(self.device),
            lengths=lengths_of(spec, data),
        )

    def check(
        self, spec: TrialSpec, variants: Sequence[TrialSpec] = (), phases: Phases | None = None
    ) -> tuple[Base, TokenizedData]:
        """Base and data of `spec`, resident from now on; target modules and metrics of it and of
        `variants`.

        Variants with another base are checked without its weights. What the base takes of no trial
        is refused here; what it takes of some is theirs to find. Raises SpecError, DataError.
        """
        self.threads.use()
        sources: set[str] = set()
        for variant in [spec, *variants]:
            if (source := str(variant.adapter.source)) not in sources:
                sources.add(source)
                check_continues_without_weights(variant.model, variant.task, variant.adapter)
        base, data = self._resident.get(spec, phases or Phases())
        told: set[str] = set()
        continued: set[Path] = set()
        others: list[tuple[ModelSpec, QuantizationSpec, TaskSpec]] = []
        for variant in [spec, *variants]:
            written = variant.evaluation.generation
            for reference in (*variant.evaluation.metrics, *(written.functions if written else ())):
                load_metric(reference)
            check_device(variant.training, self.device)
            if key_of(variant, data.labels) == base.key:
                setting = setting_of(base, variant, data.train)
                if setting.saved is not None and setting.saved.folder not in continued:
                    continued.add(setting.saved.folder)
                    check_continues(setting, data)
                told.update(left_out(base.model, variant.adapter))
                if variant.data.packing:
                    check_apart(base.model)
            else:
                parts = (variant.model, variant.quantization, variant.task)
                if parts not in others:
                    others.append(parts)
                    check_quantization(*parts)
                    warn_of_shares(planned_shares(*parts), variant.quantization)
                check_places_without_weights(variant.model, variant.task, variant.adapter)
        for sentence in sorted(told):
            log.warning("adapter.target_modules leaves out %s", sentence)
        check_some_fit(base, variants or [spec], data)
        return base, data

    @raising_device_lost()
    def serve(self, inbox: Inbox) -> None:
        """Run jobs until the inbox closes. Raises DeviceLost."""
        with self.threads.while_trials_run():
            serve_one_at_a_time(inbox, self.run)

    def status(self) -> dict[str, Any]:
        """What is resident: base, device, memory, threads."""
        base = self._resident.base
        return {
            "engine": "solo",
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "base": None if base is None else base.fingerprint,
            "rss_bytes": psutil.Process().memory_info().rss,
        }

    def use_threads(self, number: int) -> None:
        """Begin the next trials with so many threads."""
        self.threads.change(number)

    def run(self, job: Job, counts: Counts | None = None) -> TrialResult | None:
        """Run one attempt to its end; None if it was interrupted.

        Whatever goes wrong in it ends this attempt alone, as a result with a kind and a traceback.
        `counts` is how far the attempt has come elsewhere: what it has reported is not told again.
        """
        draft = ResultDraft() if counts is None else ResultDraft(counts=counts)
        failed: TrialResult | None = None
        self.threads.use()
        with attempt_files.logged(job.directory):
            try:
                self._run(job, draft)
            except Exception as error:  # the trial's edge: its error is its result
                log.exception("the trial failed")
                failed = result_of(error, traceback.format_exc())
            if failed is not None:
                release(self.device)  # not above: the error still held the trial's tensors
            with draft.phases.phase("verify"):
                self._resident.verify()
        return draft.result(job) if failed is None else failed.model_copy(update=draft.fields())

    def _run(self, job: Job, draft: ResultDraft) -> None:
        """Fill in the draft as far as the trial comes; what is held is let go with this call."""
        base, data = self._resident.get(job.spec, draft.phases)
        draft.provenance = self.provenance(job.spec, base, data)
        start = find_start(job, job.checkpoint)
        run_alone(Attempt(job, base, data, draft, self.attempt_options, start), start)

    def resident(self, spec: TrialSpec, phases: Phases) -> tuple[Base, TokenizedData]:
        """Base and data of `spec`, loaded if they are not. Raises SpecError, DataError."""
        self.threads.use()
        return self._resident.get(spec, phases)

    @property
    def base(self) -> Base | None:
        """The resident base."""
        return self._resident.base

    def verify(self) -> None:
        """Let go of a base that trials have changed, and say so in the log."""
        self._resident.verify()

    def provenance(self, spec: TrialSpec, base: Base, data: TokenizedData) -> dict[str, Any]:
        """What a trial's result says of where it comes from."""
        return {
            **environment(),
            "spec": spec.fingerprint(),
            "model": "@".join(filter(None, (spec.model.name_or_path, spec.model.revision))),
            "base": base.fingerprint,
            "model_commit": getattr(base.model.config, "_commit_hash", None),
            "quantization": base.quantization,
            **base.contents,
            **data.fingerprints,
            "dropped_rows": data.dropped,
            "num_rows": {"train": len(data.train), "validation": len(data.validation)},
            "seed": spec.seed,
            "device": device_name(self.device),
            "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "precision": precision_of(spec.training, self.device).as_provenance(),
            "threads": torch.get_num_threads(),
        }
