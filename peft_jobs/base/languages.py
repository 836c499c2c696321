"""The languages of a model that translates: what its tokenizer puts around sources and targets.

Such a tokenizer marks a text with a token for its language, and takes one of its own choice where
none is named: English for a source, the source's for a target. So both are asked for.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import SpecError
from peft_jobs.spec import Seq2SeqSpec, TaskSpec
from peft_jobs.spec.mistakes import suggest
from peft_jobs.tasks.tokenizer_pieces import special_tokens, surroundings

_ATTRIBUTES = {"target_language": "tgt_lang", "source_language": "src_lang"}
"""By field; the source's is set last, and leaves a tokenizer ready for sources."""


def set_languages(tokenizer: PreTrainedTokenizerBase, task: TaskSpec, name: str) -> None:
    """Have the tokenizer of the checkpoint `name` use the task's languages, and be saved with them.

    Raises SpecError for a language that is missing or unknown, or of no use to the tokenizer.
    """
    if not isinstance(task, Seq2SeqSpec):
        return
    spoken: Any = tokenizer
    given = {field: getattr(task, field) for field in _ATTRIBUTES}
    if not hasattr(spoken, "tgt_lang"):
        for field, language in given.items():
            if language is not None:
                raise SpecError(
                    f"task.{field}: the tokenizer of {name} knows no languages, got {language!r}; "
                    "leave it out, or write in the template what the model expects"
                )
        return
    saved = {field: spoken.init_kwargs.get(key) for field, key in _ATTRIBUTES.items()}
    if None in saved.values():  # one alone is the default, and nobody's choice
        saved = dict.fromkeys(saved)
    for field, attribute in _ATTRIBUTES.items():
        language = given[field] or saved[field]
        if language is None:
            raise SpecError(
                f"task.{field} must be given, as {name} translates between languages"
                f"{suggest('', _codes(spoken))}"
            )
        if not _speaks(spoken, attribute, language):
            raise SpecError(
                f"task.{field}: {language!r} is no language of {name}"
                f"{suggest(language, _codes(spoken))}"
            )
        spoken.init_kwargs[attribute] = getattr(spoken, attribute)


def _speaks(tokenizer: Any, attribute: str, language: str) -> bool:
    """Set a language; whether the tokenizer has a token for it."""
    try:
        setattr(tokenizer, attribute, language)
        before, behind = surroundings(tokenizer, target=attribute == "tgt_lang")
    except (KeyError, TypeError, ValueError):
        return False
    return {*before, *behind} <= special_tokens(tokenizer) - {tokenizer.unk_token_id}


def _codes(tokenizer: Any) -> list[str]:
    """The languages of a tokenizer, as far as it tells."""
    for attribute in ("lang_code_to_token", "lang_code_to_id"):
        if known := getattr(tokenizer, attribute, None):
            return list(known)
    basic = {getattr(tokenizer, f"{kind}_token", None) for kind in _BASIC}
    return [token for token in tokenizer.all_special_tokens if token not in basic]


_BASIC = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
