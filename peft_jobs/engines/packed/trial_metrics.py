"""What a slot measures of itself: metrics on a split, found by itself or together with others."""

from datasets import Dataset

from peft_jobs.engines.packed.row import PackRow
from peft_jobs.evaluation.row_scores import rows_to_keep
from peft_jobs.evaluation.scoring import Evaluation, examine
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import Score
from peft_jobs.training.attempt import Attempt


class Scoring:
    """The evaluations of one trial. Splits are `validation` and `test`."""

    def __init__(self, attempt: Attempt) -> None:
        self.job, self.base, self.data = attempt.job, attempt.base, attempt.data
        self.counts, self.ladder = attempt.counts, attempt.ladder
        self.score_test, self.writer = attempt.score_test, attempt.writer
        self.known: dict[str, list[Score]] = {}
        """Scores of the examples by split, where they were found out for several slots at once."""

    @property
    def batch_size(self) -> int:
        """As memory has allowed so far."""
        return self.ladder.spec.evaluation.per_device_eval_batch_size

    def rows(self, split: str) -> Dataset:
        """The examples of a split."""
        rows = self.data.validation if split == "validation" else self.data.test
        assert rows is not None
        return rows

    def lacks(self, split: str) -> bool:
        """Whether a trial that has made all its steps is still to be evaluated on a split."""
        if self.job.cancelled is not None:
            return False
        if split == "test":
            return self.score_test and self.data.test is not None
        return self.counts.evaluated_at != self.counts.step

    def metrics(self, row: PackRow, split: str) -> dict[str, float]:
        """Of the trial as it is now, in as small batches as memory asks for. What was found of each
        validation row is written by the writer's thread."""
        base, rows, known = self.base, self.rows(split), self.known.pop(split, None)

        def examined(spec: TrialSpec) -> Evaluation:
            return examine(base.model, base, spec, rows, split, known)

        with row.pack.stepping([row.slot], None):
            found = self.ladder.measured(self.counts, examined)
        if split != "validation":
            return found.metrics
        numbers = self.data.numbers[split]
        self.writer.tell(rows_to_keep(self.job.directory, found, rows, numbers))
        return found.metrics
