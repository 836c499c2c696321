"""SweepSpec: a whole sweep as frozen data; the sweep file, resolved.

The sections of a TrialSpec (`model`, `quantization`, `adapter`, `task`, `data`, `training`,
`evaluation`, `seed`) stand at the top level of the file, so that `adapter.r` is the name in the
file, in the space, in Optuna, in MLflow, on the leaderboard and on the command line.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from peft_jobs.spec import TrialSpec
from peft_jobs.spec.fields import Count, NonNegative, Positive, Section, Whole
from peft_jobs.spec.units import Bounds, Seconds
from search_spaces import ReadSpace
from sweeps.redact import redact
from sweeps.search.pruners import PrunerSpec, check_pruner
from sweeps.search.samplers import SamplerSpec, check_sampler
from sweeps.spec.metrics import Direction, as_loss, default_direction
from sweeps.spec.resources import ResourcesSpec


def _shorthand(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class ObjectiveSpec(Section):
    metric: str = "validation/loss"
    direction: Direction = "minimize"
    """By default the better one of the metric; for one of your own it must be given."""

    @model_validator(mode="before")
    @classmethod
    def _with_direction(cls, given: Any) -> Any:
        metric = given.get("metric") if isinstance(given, Mapping) else None
        direction = default_direction(metric) if isinstance(metric, str) else None
        return given if direction is None else {"direction": direction, **given}

    def as_loss(self, value: float) -> float:
        """A value of the metric as one to be minimized."""
        return as_loss(value, self.direction)


class BudgetSpec(Section):
    n_trials: Count
    """Trials that are started; rejected and duplicate points do not count."""
    timeout: Seconds | None = None
    """Seconds (or `2h`, `90m`) after which no further trial is started. They count while the sweep
    is driven, over all its launches and restarts: one that is resumed has what is left."""
    trial_timeout: Seconds | None = None
    """Seconds (or `2h`, `90m`) after which a trial is stopped, at its next step. They count from
    its start, or from where a launch takes it up. It ends as pruned (timeout), and the sampler
    learns from it."""
    gpu_hours: Positive | None = None
    """Hours of GPUs after which no further trial is started. All GPUs that the sweep's hosts hold
    count, busy or not, over all its launches; a host without a GPU counts as one."""
    usd: Positive | None = None
    """What those hours may cost, at `usd_per_gpu_hour`."""
    usd_per_gpu_hour: Positive | None = None
    """What an hour of one GPU costs."""
    max_samples: Count | None = None
    """Training samples of a trial that is not pruned; or give one of the two below."""
    num_train_epochs: Positive | None = None
    max_steps: Count | None = None
    """Optimizer steps; only where no batch size is sampled."""
    num_rungs: Whole = 2
    """Comparisons before the end, at max_samples / reduction_factor ** k."""
    rungs: tuple[Count, ...] | None = None
    """The comparisons in samples, ascending, instead of num_rungs."""
    max_failures: Whole = 5
    """Failed trials that are endured; one more ends the sweep."""

    @property
    def most_gpu_hours(self) -> float | None:
        """What `gpu_hours` and `usd` come to; None if neither is given."""
        given = [] if self.gpu_hours is None else [self.gpu_hours]
        if self.usd is not None and self.usd_per_gpu_hour is not None:
            given.append(self.usd / self.usd_per_gpu_hour)
        return min(given, default=None)

    @model_validator(mode="after")
    def _with_a_price(self) -> Self:
        if self.usd is not None and self.usd_per_gpu_hour is None:
            raise ValueError("usd needs usd_per_gpu_hour, what an hour of one GPU costs")
        return self

    @model_validator(mode="after")
    def _one_horizon(self) -> Self:
        horizons = ("max_samples", "num_train_epochs", "max_steps")
        given = [name for name in horizons if getattr(self, name) is not None]
        if len(given) != 1:
            came = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(horizons)}; got {came}")
        return self


class CheckpointsSpec(Section):
    every_seconds: Seconds = 60.0
    """Between the checkpoints of a running trial, more where they would take more than 3 % of the
    time; there is one at every rung besides."""
    keep: Count | None = None
    """Adapters that stay in the storage, of the best trials; by default those of all that are
    complete. MLflow keeps its own copies."""


class TrackingSpec(Section):
    enabled: bool = True
    uri: str | None = None
    """MLflow server or database; by default `mlflow.db` in the storage."""
    experiment: Annotated[str, Field(min_length=1)] = "peft-sweeps"


class ConfirmSpec(Section):
    """After the last trial, the best ones are trained again under fresh seeds, the same for all."""

    seeds: Annotated[Count, Field(ge=2, le=100)] = 5
    """Of a configuration at most; those that are told apart from the first one get fewer."""
    candidates: Annotated[Count, Field(le=1000)] = 8
    """Configurations at most: the best ones, and those that noise may have put behind them."""
    max_trials: Count = 30
    """Of all configurations together."""
    timeout: Seconds | None = None
    """Seconds for which all repeats train together; no round is begun that would go beyond it, if
    repeats take as long as those before it (at first, as the recorded trials)."""
    tolerance: NonNegative | None = None
    """By how much the mean of the configuration that is recommended may be worse than that of the
    first one, if it is smaller: by default by a standard error of that difference."""


class FinalOf(Section):
    """The trial whose configuration is trained on all the data."""

    sweep: str
    trial: Whole


def _confirm(value: Any) -> Any:
    return {True: {}, False: None}.get(value, value) if isinstance(value, bool) else value


def _tracking(value: Any) -> Any:
    return {"enabled": False} if value in ("none", None, False) else value


class SweepSpec(Section):
    """A sweep file, resolved. `trial` is what all trials share; the space varies it."""

    LATER = ("final_of",)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    trial: TrialSpec
    space: ReadSpace
    objective: ObjectiveSpec = ObjectiveSpec()
    constraints: Bounds = Field(default_factory=dict)
    """Upper bound by metric, e.g. `memory/peak_device_bytes: 22GB` or `minutes: 2h`; a trial
    above one is infeasible: kept out of the ranking, and the sampler learns to avoid its region."""
    sampler: Annotated[SamplerSpec, BeforeValidator(_shorthand), AfterValidator(check_sampler)] = (
        SamplerSpec()
    )
    pruner: Annotated[PrunerSpec, BeforeValidator(_shorthand), AfterValidator(check_pruner)] = (
        PrunerSpec()
    )
    budget: BudgetSpec
    resources: ResourcesSpec = ResourcesSpec()
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    confirm: Annotated[ConfirmSpec | None, BeforeValidator(_confirm)] = None
    """Prove the winner at the end of `run`; `peft-sweep confirm` does so later."""
    tracking: Annotated[TrackingSpec, BeforeValidator(_tracking)] = TrackingSpec()
    storage: str = "runs"
    """Folder of databases, artifacts and one folder per sweep; absolute once loaded."""
    study_url: str | None = None
    """SQLAlchemy URL of Optuna's database; by default `optuna.db` in the storage."""
    final_of: FinalOf | None = None
    """Of a final training, what it trains: `peft-sweep train` writes it."""

    @model_validator(mode="before")
    @classmethod
    def _gather_trial(cls, value: Any) -> Any:
        """Move the file's trial sections under `trial`."""
        if not isinstance(value, Mapping) or "trial" in value:
            return value
        trial = {key: value[key] for key in TrialSpec.model_fields if key in value}
        return {**{k: v for k, v in value.items() if k not in trial}, "trial": trial}

    def without_credentials(self) -> Self:
        """The sweep as it may be recorded: no user, password or token in its URLs."""
        tracking = self.tracking
        if tracking.uri is not None:
            tracking = tracking.model_copy(update={"uri": redact(tracking.uri)})
        url = self.study_url and redact(self.study_url)
        return self.model_copy(update={"tracking": tracking, "study_url": url})

    @property
    def seed(self) -> int:
        """Of the sampler, and of every trial that does not sample its own."""
        return self.trial.seed
