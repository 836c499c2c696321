"""Of how a row becomes tokens: what a task asks, and what a tokenizer does."""

import json
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from peft_jobs.spec import TrialSpec
from peft_jobs.storage.files import canonical_json, sha256
from peft_jobs.tasks.chat import template_of


def template_fingerprint(spec: TrialSpec, tokenizer: PreTrainedTokenizerBase) -> str:
    """Of how a row becomes tokens and which of them count: task, chat template, max_length."""
    forms = spec.data.model_dump(mode="json", include=set(spec.data.LATER) - {"on_leak"})
    task = spec.task.model_dump(mode="json") | forms
    chatty = task.get("messages") is not None or task.get("use_chat_template")
    chat_template = template_of(tokenizer, task.get("chat_template")) if chatty else None
    return sha256(canonical_json([task, spec.data.max_length, chat_template]))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what the tokenizer does, wherever it was loaded from and whatever it did last."""
    named = {**tokenizer.special_tokens_map, "tgt_lang": getattr(tokenizer, "tgt_lang", None)}
    special = canonical_json({name: str(token) for name, token in named.items()})
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # The last call's truncation and padding are stored in it.
        content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
        return sha256(canonical_json(content) + special)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return sha256("".join(sha256(path.read_bytes()) for path in files) + special)
