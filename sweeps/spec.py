"""SweepSpec: a whole sweep as frozen data; the sweep file, resolved.

The sections of a TrialSpec (`model`, `quantization`, `adapter`, `task`, `data`, `training`,
`evaluation`, `seed`) stand at the top level of the file, so that `adapter.r` is the name in the
file, in the space, in Optuna, in MLflow, on the leaderboard and on the command line.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from peft_jobs.engines import ENGINES
from peft_jobs.fields import Count, NonNegative, Number, Positive, Section, Whole
from peft_jobs.mistakes import suggest
from peft_jobs.spec import TrialSpec
from search_spaces import ReadSpace
from sweeps.measured import Direction, natural_direction
from sweeps.pruners import PrunerSpec, check_pruner
from sweeps.redact import redact
from sweeps.samplers import SamplerSpec, check_sampler


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
        direction = natural_direction(metric) if isinstance(metric, str) else None
        return given if direction is None else {"direction": direction, **given}


class BudgetSpec(Section):
    n_trials: Count
    """Trials that are started; rejected and duplicate points do not count."""
    timeout: Positive | None = None
    """Seconds after which no further trial is started."""
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

    @model_validator(mode="after")
    def _one_horizon(self) -> Self:
        horizons = ("max_samples", "num_train_epochs", "max_steps")
        given = [name for name in horizons if getattr(self, name) is not None]
        if len(given) != 1:
            came = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(horizons)}; got {came}")
        return self


class ResourcesSpec(Section):
    backend: Literal["ray", "inline"] = "ray"
    """`inline` runs the trials in this process, one host, without Ray (a debugger works)."""
    address: str | None = None
    """Ray cluster to join: `auto` or HOST:PORT; by default a cluster of this machine alone."""
    engine: str = "packed"
    """`packed` trains several trials of a host in one step where that can be done and pays, and
    the others alone; `solo` trains all of them alone."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    slots_per_gpu: Count | Literal["auto"] = "auto"
    """Trials at a time on a GPU, or on a node without any: what the packed engine may train in one
    step. `auto`: as many as a host finds worth it before the first trial."""
    gpus_per_trial: NonNegative | Literal["auto"] = "auto"
    """`auto`: a GPU's share of a slot where the cluster has GPUs, otherwise 0. Above 1, and then
    whole: the base is spread over so many GPUs of a node, which no other job may use, and trials
    are trained alone."""
    accelerator_type: str | None = None
    """Kind of GPU that trials need, in a cluster with several: `A100`, as `ray status` names it."""
    cpus_per_trial: Positive | Literal["auto"] = "auto"
    """`auto`: a slot's share of a GPU's cores, or of all cores of the smallest node without any."""
    max_concurrent: Count | None = None
    """Trials at a time; by default as many as the resources hold."""

    @property
    def slots(self) -> int:
        """Trials at a time on one host; 1 as long as none was asked."""
        return 1 if self.slots_per_gpu == "auto" else self.slots_per_gpu

    @property
    def spreads_base(self) -> bool:
        """Whether a base is divided among several GPUs."""
        return self.gpus_per_trial != "auto" and self.gpus_per_trial > 1

    @model_validator(mode="after")
    def _known_engine(self) -> Self:
        if self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}{suggest(self.engine, ENGINES)}")
        gpus = self.gpus_per_trial
        if gpus != "auto" and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_trial above 1 must be whole, got {gpus:g}")
        if self.address is not None and self.address.startswith("ray://"):
            raise ValueError(
                "ray:// addresses (Ray Client) would move the driver to the cluster's head: "
                "run peft-sweep on a machine of the cluster and give `auto` or HOST:PORT"
            )
        if self.address is not None and self.address.startswith(("http://", "https://")):
            raise ValueError(
                f"{self.address} is the address of a job server: `peft-sweep submit` takes it"
            )
        return self


class CheckpointsSpec(Section):
    every_seconds: Positive = 60.0
    """Between the checkpoints of a running trial; there is one at every rung besides."""
    keep: Count | None = None
    """Adapters that stay in the storage, of the best trials; by default those of all that are
    complete. MLflow keeps its own copies."""


class TrackingSpec(Section):
    enabled: bool = True
    uri: str | None = None
    """MLflow server or database; by default `mlflow.db` in the storage."""
    experiment: Annotated[str, Field(min_length=1)] = "peft-sweeps"


def _tracking(value: Any) -> Any:
    return {"enabled": False} if value in ("none", None, False) else value


class SweepSpec(Section):
    """A sweep file, resolved. `trial` is what all trials share; the space varies it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    trial: TrialSpec
    space: ReadSpace
    objective: ObjectiveSpec = ObjectiveSpec()
    constraints: dict[str, Number] = Field(default_factory=dict)
    """Upper bound by metric, e.g. `memory/peak_allocated_bytes: 20e9`; a trial above one is
    infeasible: kept out of the ranking, and the sampler learns to avoid its region."""
    sampler: Annotated[SamplerSpec, BeforeValidator(_shorthand), AfterValidator(check_sampler)] = (
        SamplerSpec()
    )
    pruner: Annotated[PrunerSpec, BeforeValidator(_shorthand), AfterValidator(check_pruner)] = (
        PrunerSpec()
    )
    budget: BudgetSpec
    resources: ResourcesSpec = ResourcesSpec()
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    tracking: Annotated[TrackingSpec, BeforeValidator(_tracking)] = TrackingSpec()
    storage: str = "runs"
    """Folder of databases, artifacts and one folder per sweep; absolute once loaded."""
    study_url: str | None = None
    """SQLAlchemy URL of Optuna's database; by default `optuna.db` in the storage."""

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
