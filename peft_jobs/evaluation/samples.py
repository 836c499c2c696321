"""Some answers of a model to prompts of a split, for people to read; no metric is of them."""

from datasets import Dataset
from torch import nn

from peft_jobs.base.loading import Base
from peft_jobs.errors import SpecError
from peft_jobs.evaluation.generation import prompt_and_reference, spread, written
from peft_jobs.evaluation.scoring import measuring
from peft_jobs.evaluation.serving import is_chat
from peft_jobs.spec import CausalLMSpec, TrialSpec
from peft_jobs.spec.generation import GenerationSpec

_MAX_NEW_TOKENS = 64
"""Where the trial measures no answers."""


def sample_answers(
    model: nn.Module, base: Base, spec: TrialSpec, rows: Dataset, count: int
) -> list[dict[str, str]]:
    """Prompt, answer (greedy) and reference of at most `count` rows, spread evenly over `rows`.

    Empty but for causal models that answer prompts, and where the base has no room for answers.
    """
    if not (isinstance(spec.task, CausalLMSpec) and spec.task.generates):
        return []
    measured = spec.evaluation.generation
    length = measured.max_new_tokens if measured else _MAX_NEW_TOKENS
    asked = GenerationSpec(max_samples=count, max_new_tokens=length, metrics=())
    chat = is_chat(spec.task)
    try:
        with measuring(model, base.device, spec.training):
            found = written(asked, model, base.tokenizer, rows, count, chat)
    except SpecError:
        return []
    chosen = rows.select(spread(len(rows), count))
    prompts = [
        prompt_and_reference(tokens, labels, encoder_decoder=False)[0]
        for tokens, labels in zip(chosen["input_ids"], chosen["labels"], strict=True)
    ]
    texts = [str(base.tokenizer.decode(prompt, skip_special_tokens=not chat)) for prompt in prompts]
    answers, references = found.columns["answer"], found.columns["reference"]
    return [
        {"prompt": prompt, "answer": answer, "reference": reference}
        for prompt, answer, reference in zip(texts, answers, references, strict=True)
    ]
