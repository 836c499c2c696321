"""How an exported model is decoded: its generation_config.json, which `generate` obeys by itself.

Where answers were measured they are decoded as they were measured, greedily, and what the base's
settings would change is left out. Where none were, the base's settings stay. In both, the tokens at
which the answers of the data end are among its eos: a base that never ended a turn does now.
Lengths are the base's: how long an answer may be is up to who asks.
"""

import copy

from datasets import Dataset
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from peft_jobs.evaluation.decoding import decoding_of, special_settings
from peft_jobs.evaluation.generation import references_of
from peft_jobs.spec import CausalLMSpec, TaskSpec, TrialSpec
from peft_jobs.spec.generation import GenerationSpec
from peft_jobs.tasks.task import base_of

_LENGTHS = ("max_length", "max_new_tokens")
_OF_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "top_h"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff"),
)
_OF_BEAMS = ("early_stopping", "length_penalty")


def is_chat(task: TaskSpec) -> bool:
    """Whether a chat template says how a turn ends."""
    return isinstance(task, CausalLMSpec) and (task.messages is not None or task.use_chat_template)


def serving_settings(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, spec: TrialSpec, rows: Dataset
) -> GenerationConfig | None:
    """How a model that was trained as `spec` says is decoded; None of a task that writes no text.

    `rows` are the validation split, on whose answers it was measured.
    """
    if spec.task.HAS_HEAD:
        return None
    own: GenerationConfig = base_of(model).generation_config
    measured = spec.evaluation.generation
    settings = copy.deepcopy(own)
    if measured is not None:
        settings = special_settings(own)
        for name in _LENGTHS:
            setattr(settings, name, getattr(own, name))
    references = references_of(measured or GenerationSpec(), model, rows)
    decoding = decoding_of(model, tokenizer, references, is_chat(spec.task))
    for name, value in decoding.tokens.items():
        setattr(settings, name, value)
    settings.pad_token_id = tokenizer.pad_token_id
    _drop_idle(settings)
    return settings


def _drop_idle(settings: GenerationConfig) -> None:
    """Forget what does nothing beside the rest, as transformers (5.23) saves no such settings;
    checkpoints of earlier versions have some, a temperature without sampling most of all."""
    sampling, beams = settings.do_sample is True, (settings.num_beams or 1) > 1
    for name in (*(() if sampling else _OF_SAMPLING), *(() if beams else _OF_BEAMS)):
        setattr(settings, name, None)
