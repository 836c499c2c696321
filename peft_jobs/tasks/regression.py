"""Numbers that are predicted: the squared error, and how well the order and the line are kept.

B rows. The head has one output; labels are floats [B].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from peft_jobs.tasks.task import Score

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class NumberScore(Score):
    """`loss_sum` is the squared error."""

    output: float = 0.0
    target: float = 0.0


def number_losses(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Squared errors [B] of the only output; raises ValueError if there are several."""
    outputs_B = logits_BC.squeeze(dim=1)
    if outputs_B.ndim != 1:
        raise ValueError(f"a regression has one output, got logits of shape {[*logits_BC.shape]}")
    return (outputs_B - labels_B.to(outputs_B.dtype)).square()


def number_scores(losses: Sequence[float], logits_BC: Tensor, labels_B: Tensor) -> list[Score]:
    """What each row adds to the metrics."""
    rows = zip(losses, logits_BC[:, 0].tolist(), labels_B.tolist(), strict=True)
    return [NumberScore(loss, 1, output=output, target=target) for loss, output, target in rows]


def number_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """loss and mse, which are the same here, and Pearson's and Spearman's correlation.

    A correlation is 0 where either side is constant, for which it is not defined.
    """
    found = [score for score in scores if isinstance(score, NumberScore)]
    outputs = np.array([score.output for score in found])
    targets = np.array([score.target for score in found])
    mse = math.fsum(score.loss_sum for score in found) / len(found)
    return {
        "loss": mse,
        "mse": mse,
        "pearson": _pearson(outputs, targets),
        "spearman": _pearson(_ranks(outputs), _ranks(targets)),
    }


def _pearson(a: Numbers, b: Numbers) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Numbers) -> Numbers:
    """The rank of each value; equal ones share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Numbers = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks
