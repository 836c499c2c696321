"""vLLM: a serve command and a script with a LoRA request; the merged model where it takes no
adapter.

What vLLM refuses, or would get wrong without a word, is read from its `vllm/lora/peft_helper.py`
and `vllm/config/lora.py`: it scales every layer by the one alpha and rank of the configuration.
"""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from peft_jobs import SpecError, TrialSpec
from peft_jobs.spec import CausalLMSpec, LoraSpec
from peft_jobs.storage.files import write_whole
from sweeps.exporters.exporter import Draft, Form, differences_of, with_differences
from sweeps.exporters.loading_code import GENERATION_FILE, literal
from sweeps.exporters.merged import MERGED_FOLDER
from sweeps.exporters.names import base_name
from sweeps.exporters.training_tool import comment

NAME = "vllm"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that `--max-lora-rank` takes."""
_SERVE = """\
#!/bin/sh
{comment}cd "$(dirname "$0")/.."
exec vllm serve {command} "$@"
"""
_SCRIPT = '''"""{docstring}"""

from pathlib import Path

from vllm import LLM, SamplingParams
{imported}
HERE = Path(__file__).resolve().parent.parent

model = LLM({model})
prompts = ["..."]  # as the model card writes them
greedy = SamplingParams(temperature=0, max_tokens={max_tokens})
for answer in model.generate(prompts, greedy{request}):
    print(answer.outputs[0].text)
'''


class VllmExporter:
    """`vllm/serve.sh` and `vllm/generate.py`."""

    def check(self, spec: TrialSpec) -> None:
        """SpecError if vLLM can serve neither adapter nor merged model."""
        if not isinstance(spec.task, CausalLMSpec):
            raise SpecError(f"{NAME} is for task.type causal_lm, got {spec.task.type}")
        if self.needs(spec):
            spec.adapter.check_merges()

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        """The merged model, where the adapter would be refused."""
        return ("merged",) if any(refusals(spec)) else ()

    def write(self, draft: Draft) -> dict[str, Any]:
        """Both files, and what is different."""
        if differences_of(draft.record, NAME) is not None:
            return {}
        spec = draft.spec
        reasons = list(refusals(spec))
        lines = [*reasons, *_differences(spec, bool(reasons))]
        folder = draft.path / NAME
        folder.mkdir(exist_ok=True)
        served = draft.slug
        options = _options(draft, bool(reasons), served)
        intro = f"Serves {draft.title} with vLLM, as the model {served}."
        command = " ".join(map(shlex.quote, options))
        serve = _SERVE.format(comment=comment(lines, intro), command=command)
        write_whole(folder / "serve.sh", serve)
        write_whole(folder / "generate.py", _script(draft, bool(reasons), served, lines))
        return with_differences(draft.record, NAME, lines)

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        """The folder, and how it is used."""
        if differences_of(record, NAME) is None:
            return None
        return Form(
            NAME,
            {},
            "`sh vllm/serve.sh` serves it with vLLM; `vllm/generate.py` asks it in Python.",
        )


def refusals(spec: TrialSpec) -> Iterator[str]:
    """Why vLLM cannot serve the adapter itself, in sentences; the merged model is served then."""
    adapter = spec.adapter
    if not isinstance(adapter, LoraSpec):
        yield f"vLLM serves no adapters of method {adapter.method}: the merged model is served."
        return
    moved = 2 if adapter.mutates_base else 1
    patterns = adapter.init_lora_weights == "eva" or adapter.rank_pattern or adapter.alpha_pattern
    reasons = {
        "use_dora": adapter.use_dora,
        "rank_pattern or alpha_pattern (every layer is scaled alike there)": patterns,
        f"bias {adapter.bias}": adapter.bias != "none",
        "target_parameters": adapter.target_parameters,
        "modules_to_save": adapter.modules_to_save,
        f"r {adapter.r * moved} (at most {RANKS[-1]})": adapter.r * moved > RANKS[-1],
    }
    for name, holds in reasons.items():
        if holds:
            yield f"vLLM takes no adapter with {name}: the merged model is served."


def _differences(spec: TrialSpec, merged: bool) -> Iterator[str]:
    scheme = spec.quantization.scheme
    if not merged and scheme in ("nf4", "fp4"):
        yield (
            f"The adapter was trained on a {scheme} base. vLLM quantizes the base itself "
            "(bitsandbytes, NF4 without double quantization, multiplied in half precision)."
        )
    if not merged and scheme == "int8":
        yield (
            "The adapter was trained on an int8 base; vLLM serves the base unquantized, for which "
            "no metric was measured."
        )
    if spec.model.dtype in ("auto", "float32"):
        yield (
            "vLLM multiplies in half precision where weights are float32 (dtype auto), for which "
            "no metric was measured."
        )
    if spec.task.generates:
        yield (
            "Requests are answered with the settings of generation_config.json unless they bring "
            "their own."
        )


def _options(draft: Draft, merged: bool, served: str) -> list[str]:
    spec, path = draft.spec, draft.path
    settings = ["--generation-config", "."] if (path / GENERATION_FILE).is_file() else []
    if merged:
        settings = ["--generation-config", MERGED_FOLDER] if settings else []
        return [MERGED_FOLDER, "--served-model-name", served, *settings]
    revision = ["--revision", spec.model.revision] if spec.model.revision else []
    quantized = ["--quantization", "bitsandbytes"] if spec.quantization.scheme in _BITS_4 else []
    template = path / "chat_template.jinja"
    return [
        *(base_name(spec), *revision, "--tokenizer", ".", *quantized, *settings),
        *(["--chat-template", template.name] if template.is_file() else []),
        *("--enable-lora", "--max-lora-rank", str(max_rank(spec)), "--lora-modules", f"{served}=."),
    ]


_BITS_4 = ("nf4", "fp4")


def max_rank(spec: TrialSpec) -> int:
    """The smallest `--max-lora-rank` that the adapter fits."""
    assert isinstance(spec.adapter, LoraSpec)
    rank = spec.adapter.r * (2 if spec.adapter.mutates_base else 1)
    return min(known for known in RANKS if known >= rank)


def _script(draft: Draft, merged: bool, served: str, lines: list[str]) -> str:
    spec = draft.spec
    generation = spec.evaluation.generation
    arguments: dict[str, str] = {}
    if merged:
        arguments["model"] = f'str(HERE / "{MERGED_FOLDER}")'
    else:
        arguments |= {"model": literal(base_name(spec)), "tokenizer": "str(HERE)"}
        if spec.model.revision:
            arguments["revision"] = literal(spec.model.revision)
        if spec.quantization.scheme in _BITS_4:
            arguments["quantization"] = literal("bitsandbytes")
        arguments |= {"enable_lora": "True", "max_lora_rank": str(max_rank(spec))}
    inside = "".join(f"\n    {name}={value}," for name, value in arguments.items())
    return _SCRIPT.format(
        docstring=comment(lines, f"Asks {draft.title} with vLLM.", prefix=""),
        imported="" if merged else "from vllm.lora.request import LoRARequest\n",
        model=f"{inside}\n",
        max_tokens=generation.max_new_tokens if generation else 256,
        request="" if merged else f', lora_request=LoRARequest("{served}", 1, str(HERE))',
    )
