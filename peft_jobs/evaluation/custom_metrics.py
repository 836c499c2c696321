"""A person's own metrics: functions named `module:function`, checked before launch."""

from collections.abc import Callable, Mapping, Sequence

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import SpecError
from peft_jobs.references import load

Metric = Callable[..., Mapping[str, float]]


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
    """What the functions measure, together. Raises what they raise, and what `checked` raises."""
    metrics: dict[str, float] = {}
    for reference in references:
        metrics |= checked(reference, load_metric(reference)(model, tokenizer, rows), metrics)
    return metrics


def checked(reference: str, found: object, known: Mapping[str, float]) -> dict[str, float]:
    """What the function `reference` gave, as numbers by name.

    Raises TypeError or ValueError for values that are no numbers or a name among `known`.
    """
    if not isinstance(found, Mapping):
        raise TypeError(f"{reference} must return a dictionary, got {found!r:.60}")
    for name in found:
        if name in known:
            raise ValueError(f"{reference} returns {name!r}, which another metric returned")
    return {str(name): float(value) for name, value in found.items()}
