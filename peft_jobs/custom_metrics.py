"""A person's own metrics: functions named `module:function`, checked before launch."""

from collections.abc import Callable, Mapping, Sequence

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from peft_jobs.engines import load
from peft_jobs.errors import SpecError

Metric = Callable[[nn.Module, PreTrainedTokenizerBase, Dataset], Mapping[str, float]]


def load_metric(reference: str) -> Metric:
    """The function; SpecError if it cannot be imported or is none."""
    try:
        metric = load(reference)
    except Exception as error:  # what a person's module does on import can fail in any way
        reason = str(error) or type(error).__name__
        raise SpecError(
            f"evaluation.metrics: {reference!r} cannot be imported: {reason}"
        ) from error
    if not callable(metric):
        raise SpecError(f"evaluation.metrics: {reference!r} is no function, but {metric!r:.60}")
    found: Metric = metric
    return found


def custom_metrics(
    references: Sequence[str], model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Dataset
) -> dict[str, float]:
    """What the functions measure, together. Raises what they raise, and TypeError or ValueError
    for values that are no numbers or a name that comes twice."""
    metrics: dict[str, float] = {}
    for reference in references:
        found = load_metric(reference)(model, tokenizer, rows)
        if not isinstance(found, Mapping):
            raise TypeError(f"{reference} must return a dictionary, got {found!r:.60}")
        for name, value in found.items():
            if name in metrics:
                raise ValueError(f"{reference} returns {name!r}, which another metric returned")
            metrics[str(name)] = float(value)
    return metrics
