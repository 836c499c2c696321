"""Ollama: a Modelfile on the merged model.

Its converter of adapters knows two architectures, scales all by alpha / r in whole numbers, and
needs a base on disk; the merged model has none of these limits.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.spec import CausalLMSpec
from peft_jobs.storage.files import write_whole
from sweeps.exporters.exporter import Draft, Form, differences_of, with_differences
from sweeps.exporters.merged import MERGED_FOLDER
from sweeps.exporters.training_tool import comment

NAME = "ollama"
ARCHITECTURES = (
    *("LlamaForCausalLM", "MixtralForCausalLM", "Mistral3ForConditionalGeneration"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"),
    *("Qwen2ForCausalLM", "CohereForCausalLM", "GptOssForCausalLM", "Olmo3ForCausalLM"),
    *("DeepseekV3ForCausalLM", "Lfm2ForCausalLM", "Ministral3ForCausalLM"),
)
"""The text models that its converter knows (`convert/convert.go`)."""


class OllamaExporter:
    """`ollama/Modelfile`."""

    def check(self, spec: TrialSpec) -> None:
        """SpecError if there is no merged causal model."""
        if not isinstance(spec.task, CausalLMSpec):
            raise SpecError(f"{NAME} is for task.type causal_lm, got {spec.task.type}")
        spec.adapter.check_merges()

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        """The merged model."""
        return ("merged",)

    def write(self, draft: Draft) -> dict[str, Any]:
        """The file, and what is different."""
        if differences_of(draft.record, NAME) is not None:
            return {}
        about = json.loads((draft.path / MERGED_FOLDER / "config.json").read_text("utf-8"))
        lines = list(_differences(draft.spec, about.get("architectures") or ()))
        (draft.path / NAME).mkdir(exist_ok=True)
        served = draft.slug
        intro = f"In this folder: ollama create {served} -f Modelfile && ollama run {served}"
        text = comment(lines, intro) + "".join(f"{line}\n" for line in _modelfile(draft.spec))
        write_whole(draft.path / NAME / "Modelfile", text)
        return with_differences(draft.record, NAME, lines)

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        """The file, and how it is used."""
        if differences_of(record, NAME) is None:
            return None
        return Form(NAME, {}, "`ollama/Modelfile` makes an Ollama model of `merged/`.")


def _modelfile(spec: TrialSpec) -> Iterator[str]:
    yield f"FROM ../{MERGED_FOLDER}"
    if not _is_chat(spec):
        yield 'TEMPLATE "{{ .Prompt }}"'  # as it was trained: nothing around it
    if (generation := spec.evaluation.generation) is not None:
        yield "PARAMETER temperature 0"
        yield "PARAMETER repeat_penalty 1"
        yield f"PARAMETER num_predict {generation.max_new_tokens}"


def _differences(spec: TrialSpec, architectures: Sequence[str]) -> Iterator[str]:
    if not set(architectures) & set(ARCHITECTURES):
        yield (
            f"Ollama's converter is not known to take {', '.join(architectures) or 'this base'} "
            "(later versions may); llama.cpp's convert_hf_to_gguf.py may, and FROM takes its file."
        )
    if _is_chat(spec):
        yield (
            "Ollama's templates are written in Go: the Jinja template of the trial is not carried "
            "over. Ollama takes one of its own that looks like it; compare a rendered prompt with "
            "the model card's."
        )
    else:
        yield "The prompt must be written as the model card shows it: no template is put around it."
    if spec.evaluation.generation is None:
        yield "Nothing was decoded in the sweep; Ollama's own sampling settings stay."
    yield "Ollama stores weights in 16 bits, and in fewer with --quantize: no metric is of those."


def _is_chat(spec: TrialSpec) -> bool:
    task = spec.task
    assert isinstance(task, CausalLMSpec)
    return task.messages is not None or task.use_chat_template
