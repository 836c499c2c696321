"""Token numbers against the rows of a base's embedding table.

A number behind the last row is an IndexError in the middle of a step, and on a GPU the end of the
process' use of it; it comes of tokens that were added to a tokenizer alone.
"""

from typing import Any

import pyarrow.compute as pc
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.errors import SpecError

_REMEDY = (
    "resize the embeddings to the tokenizer (`model.resize_token_embeddings(len(tokenizer))`) and "
    "save the checkpoint"
)


def drop_odd_padding(config: PretrainedConfig) -> None:
    """Forget a padding token that the configuration's own table lacks (-1 is none at all, and would
    be taken for the last row): no model can be built with it, and the tokenizer's takes its
    place."""
    for part in (config, getattr(config, "text_config", None)):
        num_rows, padding = _num_rows(part), getattr(part, "pad_token_id", None)
        if num_rows is not None and isinstance(padding, int) and not 0 <= padding < num_rows:
            part.pad_token_id = None  # type: ignore[union-attr]


def check_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise SpecError if the tokenizer of the checkpoint `name` pads with a token that the table
    lacks."""
    num_rows, padding = _num_rows(config), tokenizer.pad_token_id
    if num_rows is not None and isinstance(padding, int) and padding >= num_rows:
        raise SpecError(
            f"model.name_or_path: the padding token of {name} must be one of the {num_rows} rows "
            f"of its embedding table, got {tokenizer.pad_token!r}, number {padding}; {_REMEDY}, or "
            "name a token that it has as pad_token in its tokenizer_config.json"
        )


def check_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, data: TokenizedData
) -> None:
    """Raise SpecError if a table of the checkpoint `name` lacks a token of the examples."""
    tables = [(_inputs(model), _largest(data, "input_ids"))]
    if model.config.is_encoder_decoder:  # whose target may have a table of its own
        outputs = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if outputs is not None:  # None of a classifier, whose labels are no tokens
            tables.append((outputs, _largest(data, "labels")))
    for table, largest in tables:
        if table is not None and largest >= len(table.weight):
            raise SpecError(
                f"model.name_or_path: the tokens of the examples must be among the "
                f"{len(table.weight)} rows of the embedding table of {name}, got "
                f"{tokenizer.convert_ids_to_tokens(largest)!r}, number {largest}; {_REMEDY}, or "
                "take this token out of the tokenizer"
            )


def _inputs(model: PreTrainedModel) -> Any:
    """The table of the inputs; None for the few models that hash them."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _largest(data: TokenizedData, column: str) -> int:
    columns = [split.data.column(column) for split in data.splits if len(split)]
    return max(int(pc.max(pc.list_flatten(values)).as_py()) for values in columns)


def _num_rows(config: Any) -> int | None:
    """Rows of the embedding table of a configuration, as far as it says."""
    for part in (config, getattr(config, "text_config", None)):
        if isinstance(found := getattr(part, "vocab_size", None), int):
            return found
    return None
