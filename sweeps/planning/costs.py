"""What a sweep takes in all: GPU-hours, hours, money; from a trial's seconds and its pruner."""

from dataclasses import dataclass

from sweeps.search.survival import Range, Survival


@dataclass(frozen=True)
class TrialSeconds:
    """Of the mean point of a space, when trials share GPUs as they will: a GPU's seconds each."""

    training: float
    """To the end."""
    evaluation: float
    """One of them."""


@dataclass(frozen=True)
class Costs:
    """Of a whole sweep, from and to."""

    gpu_hours: Range
    hours: Range
    """From the first trial to the last one's end, on the GPUs that there are."""
    usd: Range | None
    """None without a price."""


def costs(
    n_trials: int,
    trial: TrialSeconds,
    survival: Survival,
    num_gpus: int,
    starting_seconds: float = 0.0,
    usd_per_gpu_hour: float | None = None,
    spread: float = 1.0,
) -> Costs:
    """`starting_seconds` are spent once on each GPU: imports, and loading the base. A sweep takes
    `spread` times more or less than what a trial's seconds say: the error of the prediction.

    The hours lie between an even load of all GPUs and one trial that begins last and runs to its
    end alone.
    """
    samples, stops = survival.samples, survival.evaluations
    low, expected, high = (
        n_trials * (trial.training * share + trial.evaluation * count) * factor
        for share, count, factor in zip(
            (samples.low, samples.expected, samples.high),
            (stops.low, stops.expected, stops.high),
            (1 / spread, 1.0, spread),
            strict=True,
        )
    )
    start = starting_seconds * num_gpus
    gpu_hours = Range((low + start) / 3600, (expected + start) / 3600, (high + start) / 3600)
    last = trial.training * spread / 3600 * (1 - 1 / num_gpus)
    hours = Range(
        gpu_hours.low / num_gpus,
        gpu_hours.expected / num_gpus + last / 2,
        gpu_hours.high / num_gpus + last,
    )
    price = usd_per_gpu_hour
    usd = None
    if price is not None:  # a GPU that has nothing to do any more is paid for as well
        usd = Range(*(num_gpus * each * price for each in (hours.low, hours.expected, hours.high)))
    return Costs(gpu_hours, hours, usd)
