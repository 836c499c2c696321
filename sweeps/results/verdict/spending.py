"""What a sweep has cost so far, and which part of its training was saved by pruning."""

from collections import Counter
from dataclasses import dataclass

from peft_jobs import Kind, State, TrialResult
from sweeps.study.reruns import repeats
from sweeps.study.study import SweepStudy


@dataclass(frozen=True)
class Spending:
    """Trials, hours, samples."""

    num_trials: int
    """Launched, without repeats."""
    num_complete: int
    num_pruned: int
    """Stopped by the pruner as weak."""
    num_failed: int
    """Ended otherwise: failures, and points at which memory ran out or the loss diverged."""
    num_repeats: int
    """Of a confirmation."""
    hours: float
    """For which the sweep was driven, over all its launches, to the thousandth; 0.0 if that was not
    recorded."""
    gpu_hours: float | None
    """Of all GPUs that were held; None if trials ran on no GPU."""
    share_saved: float | None
    """Of the samples that all trials, complete and weak, would have trained to their ends; None if
    none was stopped."""


def spending_of(study: SweepStudy) -> Spending:
    """What the study's trials and its drivers have spent."""
    launched = study.launched()
    ended = [trial for trial in launched if "result" in trial.user_attrs]
    results = {t.number: TrialResult.model_validate(t.user_attrs["result"]) for t in ended}
    counts = Counter(_way(result) for result in results.values())
    whole, trained = 0, 0
    for trial in ended:
        result, default = results[trial.number], study.spec.trial.training.max_samples
        full = trial.user_attrs["params"].get("training.max_samples", default)
        if full is not None and _way(result) in ("complete", "weak"):
            whole += max(full, result.samples)
            trained += max(full, result.samples) if _way(result) == "complete" else result.samples
    driven, of_gpus = study.spent
    on_gpu = any(r.provenance.get("device", "cpu") != "cpu" for r in results.values())
    return Spending(
        num_trials=len(launched),
        num_complete=counts["complete"],
        num_pruned=counts["weak"],
        num_failed=counts["failed"],
        num_repeats=len(repeats(study)),
        hours=round(driven / 3600, 3),
        gpu_hours=round(of_gpus / 3600, 3) if on_gpu else None,
        share_saved=1 - trained / whole if counts["weak"] and whole else None,
    )


def _way(result: TrialResult) -> str:
    if result.state is State.COMPLETE:
        return "complete"
    return "weak" if result.kind is Kind.WEAK else "failed"
