"""The section `evaluation.generation`: what is measured on texts that the model writes."""

from typing import Literal

from peft_jobs.spec.fields import Count, Functions, Section, Tokens

_NAMES = {
    "exact_match": ("exact_match",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "bleu": ("bleu",),
}


class GenerationSpec(Section):
    """Greedy answers to the prompts of some rows, at every evaluation."""

    max_samples: Count = 64
    """Rows, spread evenly over the split; the same for all trials."""
    max_new_tokens: Tokens = 64
    metrics: tuple[Literal["exact_match", "rouge", "bleu"], ...] = ("exact_match", "rouge")
    """exact_match and rouge1, rouge2, rougeL (F-measure, words of a-z and 0-9) lie between 0 and 1;
    bleu, sacrebleu's of the whole sample, between 0 and 100."""
    functions: Functions = ()
    """Metrics of your own, each `module:function`: called as `function(predictions, references)`
    with two lists of texts; gives {name: number}, recorded as `validation/<name>`."""

    @property
    def names(self) -> tuple[str, ...]:
        """What `metrics` record."""
        return tuple(f"validation/{name}" for metric in self.metrics for name in _NAMES[metric])
