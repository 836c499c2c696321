"""The tokenizer of a base; no weights are read."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peft_jobs.base.architecture import location, readable
from peft_jobs.base.languages import set_languages
from peft_jobs.errors import SpecError
from peft_jobs.spec import ModelSpec, TaskSpec


def load_tokenizer(model: ModelSpec, task: TaskSpec) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, which has a token to pad with; no weights are read.

    Raises SpecError if there is none, or none that can be read.
    """
    tokenizer = pad_ready_tokenizer(model)
    set_languages(tokenizer, task, model.name_or_path)
    return tokenizer


def pad_ready_tokenizer(model: ModelSpec, **options: str) -> PreTrainedTokenizerBase:
    with readable(model):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            location(model), revision=model.revision, trust_remote_code=False, **options
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise SpecError(
                f"model.name_or_path: the tokenizer of {model.name_or_path} has neither a padding "
                "nor an end-of-text token; add a pad_token to its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
