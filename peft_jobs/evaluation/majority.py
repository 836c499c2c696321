"""What is reached without a look at a row: by the majority class, or by the mean."""

import statistics
from collections import Counter

from datasets import Dataset

from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.evaluation.scoring import named
from peft_jobs.spec import SequenceClassificationSpec, TaskSpec, TokenClassificationSpec
from peft_jobs.tasks import IGNORED, TASKS, Score
from peft_jobs.tasks.sequence_classification import SetScore
from peft_jobs.tasks.tag_schemes import read_tags
from peft_jobs.tasks.token_classification import tag_score


def class_counts(task: TaskSpec, data: TokenizedData) -> dict[str, int]:
    """Training rows of each class, or words of each tag; {} for a task without classes."""
    counts = _counts(task, data.train) if data.classes else Counter()
    return {str(name): counts[number] for number, name in enumerate(data.classes)}


def majority_metrics(task: TaskSpec, data: TokenizedData) -> dict[str, float]:
    """Validation metrics, without the loss, of the answer that is most frequent in training.

    Where several classes may hold, those that more than half of the rows have. Of a regression the
    error of the mean. {} for other tasks.
    """
    rows = data.validation
    if isinstance(task, SequenceClassificationSpec) and task.number_column is not None:
        mean = statistics.fmean(data.train["label"])
        mse = statistics.fmean((label - mean) ** 2 for label in rows["label"])
        return {"validation/loss": mse, "validation/mse": mse}
    if not data.classes:
        return {}
    counts = _counts(task, data.train)
    most = min(counts, key=lambda number: (-counts[number], number))
    scores: list[Score]
    if isinstance(task, TokenClassificationSpec):
        names = dict(enumerate(map(str, data.classes)))
        meaning = read_tags(names.values())
        scores = [
            tag_score(0.0, [most] * len(labels), labels, names, meaning)
            for labels in rows["labels"]
        ]
    elif isinstance(rows[0]["label"], list):
        held = tuple(int(2 * counts[number] > len(data.train)) for number in sorted(counts))
        scores = [SetScore(0.0, 1, 0, held, tuple(label)) for label in rows["label"]]
    else:
        scores = [Score(0.0, 1, predicted=(most,), actual=(label,)) for label in rows["label"]]
    metrics = TASKS[task.type].metrics(scores)
    return named("validation", {name: metrics[name] for name in metrics if name != "loss"})


def _counts(task: TaskSpec, rows: Dataset) -> Counter[int]:
    if isinstance(task, TokenClassificationSpec):
        return Counter(tag for tags in rows["labels"] for tag in tags if tag != IGNORED)
    labels = rows["label"][:]
    if isinstance(labels[0], list):
        return Counter({number: sum(held) for number, held in enumerate(zip(*labels, strict=True))})
    return Counter(labels)
