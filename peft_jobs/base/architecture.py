"""What a base model is, read from its configuration alone: its class, its modules, its head."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from peft_jobs.base.text_reach import note_unreached
from peft_jobs.base.vocabulary import drop_odd_padding
from peft_jobs.errors import SpecError
from peft_jobs.spec import DEMO, CausalLMSpec, ModelSpec, TaskSpec
from peft_jobs.storage.files import sha256
from peft_jobs.tasks.sequence_classification import reads_last_position, summary_type

HEADS = {
    *("lm_head", "embed_out"),
    *("classifier", "pre_classifier", "classification_head", "score", "qa_outputs"),
}
"""Names that heads have, wherever they lie; other heads are found by lying outside the backbone."""


_UNREADABLE = (
    *(OSError, ValueError, ImportError, RuntimeError, SafetensorError, StrictDataclassError),
    *(ArithmeticError, AttributeError, LookupError, TypeError),  # a config.json of odd values
)


def location(model: ModelSpec) -> str:
    """The Hub id or folder to load; raises SpecError for what looks like a folder and is none."""
    if model.name_or_path == DEMO:
        from peft_jobs.demo import BASE

        return str(BASE)
    path = Path(model.name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise SpecError(f"model.name_or_path: {path} is a file; give the folder that holds a model")
    if path.is_absolute() or model.name_or_path.startswith((".", "~")):
        raise SpecError(f"model.name_or_path: there is no folder {path}")
    return model.name_or_path


def unreadable(model: ModelSpec, error: Exception) -> SpecError:
    """The SpecError that tells why a base could not be read, and what to do."""
    name = model.name_or_path
    where = Path(location(model))
    first, _, rest = str(error).strip().partition("\n")
    reason = f"{first} {rest.strip().partition(chr(10))[0]}" if first.endswith(":") else first
    if "custom code" in reason:
        return SpecError(
            f"model.name_or_path: {name} needs Python code of its own (auto_map in its "
            "configuration), which is never run; give a model that transformers knows"
        )
    if "backend tokenizer" in reason:
        reason = "it holds no tokenizer; write one there with its save_pretrained"
    if "ignore_mismatched_sizes" in reason:
        reason = "its weights have other shapes than its config.json says"
    if where.is_dir():
        if any(where.glob("*.bin")) and not any(where.glob("*.safetensors")):
            return SpecError(
                f"model.name_or_path: {name} holds pickled weights, which can run code and are "
                "refused; save the model again with save_pretrained, which writes safetensors"
            )
        return SpecError(f"model.name_or_path: {name} is no model that can be loaded: {reason}")
    return SpecError(
        f"model.name_or_path: {name} is neither a folder here nor a model with safetensors that "
        "the Hugging Face Hub gives (check the name and revision; without network, download it "
        f"first with `hf download {name}`): {reason}"
    )


@contextlib.contextmanager
def readable(model: ModelSpec) -> Iterator[None]:
    """Turn what transformers raises over broken or foreign files into a clear SpecError."""
    try:
        yield
    except (SpecError, torch.OutOfMemoryError):
        raise
    except _UNREADABLE as error:
        raise unreadable(model, error) from error


def stored_config_fingerprint(model: ModelSpec) -> str:
    """Of the checkpoint's config.json as it lies there, but for the version that wrote it."""
    found, _ = PretrainedConfig.get_config_dict(location(model), revision=model.revision)
    idle = ("_commit_hash", "_name_or_path", "transformers_version")
    known = {name: value for name, value in found.items() if name not in idle}
    return sha256(json.dumps(known, sort_keys=True))  # a limit of time steps may be infinite


def read_config(
    model: ModelSpec, task: TaskSpec, num_labels: int | None = None, labels: Sequence[str] = ()
) -> PretrainedConfig:
    """The configuration with the task's labels in it; no weights are read.

    Raises SpecError if there is no such model, or if it cannot do the task.
    """
    entries: dict[str, Any] = {}
    if task.HAS_HEAD:
        if task.num_labels is not None:
            entries["num_labels"] = task.num_labels
        elif labels:
            entries["id2label"] = dict(enumerate(labels))
            entries["label2id"] = {label: index for index, label in enumerate(labels)}
        elif num_labels is not None:
            entries["num_labels"] = num_labels
        entries["problem_type"] = task.head_problem
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            location(model), revision=model.revision, trust_remote_code=False, **entries
        )
    except (OSError, ValueError) as error:
        raise unreadable(model, error) from error
    if isinstance(task, CausalLMSpec) and _sees_the_future(config):
        raise SpecError(
            f"model.name_or_path: {model.name_or_path} ({config.model_type}) attends to later "
            "tokens and cannot be trained on task.type causal_lm; use a decoder"
        )
    if getattr(config, "ngram", 1) > 1 and not getattr(config, "disable_ngram_loss", True):
        raise SpecError(
            f"model.name_or_path: {model.name_or_path} ({config.model_type}) is trained to predict "
            f"{config.ngram} tokens at a time, and here the next one alone is; set "
            "disable_ngram_loss to true in its config.json, or give another model"
        )
    drop_odd_padding(config)
    return config


def skeleton(model: ModelSpec, task: TaskSpec, num_labels: int | None = None) -> PreTrainedModel:
    """The model on the meta device: all its modules, no weights, and which of them no text reaches.

    Raises like `read_config`."""
    config = read_config(model, task, num_labels)
    try:
        with torch.device("meta"):
            built: PreTrainedModel = auto_class(task).from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise SpecError(
            f"model.name_or_path: {model.name_or_path} ({config.model_type}) has no form for "
            f"task.type {task.type}"
        ) from error
    _check_summary(built, model)
    note_unreached(built)
    return built


def outputs_by_class(model: ModelSpec, task: TaskSpec) -> set[str]:
    """Names of the parameters whose size follows the number of classes. Raises like `skeleton`."""
    few, more = (dict(skeleton(model, task, num).named_parameters()) for num in (2, 3))
    return {name for name, parameter in few.items() if parameter.shape != more[name].shape}


def auto_class(task: TaskSpec) -> Any:
    """The class of transformers that loads a base for `task`."""
    return getattr(transformers, task.AUTO_CLASS)


def head_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Topmost modules with parameters that turn hidden states into the task's output, sorted.

    The output embeddings, what lies outside of the backbone, and what has a head's usual name.
    """
    backbone = model.base_model
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = []
    for name, module in model.named_modules():
        outside = backbone is not model and module in set(model.children()) - {backbone}
        named = name.rpartition(".")[2] in HEADS
        if (outside or named or module is output) and any(True for _ in module.parameters()):
            found.append(name)
    return tuple(sorted(name for name in found if not inside(name, found)))


def inside(name: str, others: Sequence[str]) -> bool:
    """Whether a module lies in one of `others`, by its full name, and is none of them."""
    return any(name.startswith(f"{other}.") for other in others)


def _check_summary(built: PreTrainedModel, model: ModelSpec) -> None:
    """Raise SpecError for a classifier whose view of a row changes with the padding beside it.

    One that reads the last position needs padding in front, which only relative positions (XLNet's)
    bear.
    """
    summary = summary_type(built)
    is_relative = getattr(built.config, "model_type", None) == "xlnet"
    if summary in (None, "first") or (reads_last_position(built) and is_relative):
        return
    raise SpecError(
        f"model.name_or_path: the classifier of {model.name_or_path} takes {summary!r} of the "
        "positions of a row (summary_type in its config.json), padding too, so that what it says "
        "of a row would depend on the rows beside it; give one of summary_type first, or another "
        "model"
    )


def _sees_the_future(config: PretrainedConfig) -> bool:
    if getattr(config, "attn_type", None) == "bi":  # of XLNet, which has no `is_decoder`
        return True
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return encoder and getattr(config, "is_decoder", None) is False
