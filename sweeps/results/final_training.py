"""What a final training came to: one configuration under several seeds."""

from dataclasses import dataclass
from statistics import mean, variance

from optuna.trial import TrialState

from sweeps.confirmation.seeds import Interval, student_interval
from sweeps.spec.metrics import Direction, as_loss
from sweeps.study.study import SweepStudy


@dataclass(frozen=True)
class FinalTraining:
    """The objective by seed, and which seed to take."""

    sweep: str
    """The sweep whose trial `trial` has the configuration."""
    trial: int
    metric: str
    direction: Direction
    values: dict[int, float]
    """By number of the trial, of those that are complete."""

    @property
    def median(self) -> int:
        """The trial to take: the median one, of an even number the better of the two in the middle.

        The best one would be chosen by luck, and be worth less than it shows.
        """
        ordered = sorted(self.values, key=lambda n: (as_loss(self.values[n], self.direction), n))
        return ordered[(len(ordered) - 1) // 2]

    @property
    def expected(self) -> Interval | None:
        """The mean over seeds with its 95 % interval (Student's); None of one seed."""
        values = list(self.values.values())
        if len(values) < 2:
            return None
        error = (variance(values) / len(values)) ** 0.5
        return student_interval(mean(values), error, len(values) - 1)

    def words(self) -> list[str]:
        """What came of it, in sentences."""
        value, number = self.values[self.median], len(self.values)
        told = f"Trial {self.trial:04d} of {self.sweep} on all the data"
        if (found := self.expected) is None:
            return [f"{told}: {self.metric} {value:.4f} under one seed only."]
        return [
            f"{told}: {self.metric} {found.value:.4f} in the mean of {number} seeds "
            f"({found.low:.4f} to {found.high:.4f}).",
            f"The median seed is trial {self.median:04d}, {self.metric} {value:.4f}.",
        ]


def final_training(study: SweepStudy) -> FinalTraining | None:
    """Of the study as it stands; None if it is no final training, or no seed is complete."""
    final_of, objective = study.spec.final_of, study.spec.objective
    values = {
        trial.number: trial.value
        for trial in study.launched()
        if trial.state == TrialState.COMPLETE and trial.value is not None
    }
    if final_of is None or not values:
        return None
    return FinalTraining(
        final_of.sweep, final_of.trial, objective.metric, objective.direction, values
    )
