"""The Python of a model card that loads an exported adapter; a test runs it as it stands.

It needs PEFT alone, and repeats what a base of the sweep is made of and `PeftModel.from_pretrained`
does not know: the head's classes, the quantization and what it leaves out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.spec import DEMO, QuantizationSpec
from peft_jobs.spec.adapters import OWN
from peft_jobs.storage.attempt_folder import LABELS_FILE, read_labels

GENERATION_FILE = "generation_config.json"
"""transformers' name for how a model's answers are decoded."""
OUTPUTS = ("lm_head", "embed_out")
"""Output embeddings, which are not quantized: transformers leaves them out by itself unless other
modules are named."""


def loading(spec: TrialSpec, folder: Path, is_stored: bool = False) -> Iterator[str]:
    """Lines of Python that give `model` and `tokenizer` where the export in `folder` is current.

    `is_stored` is of a checkpoint that is quantized already, which no options can change.
    """
    kind, own = spec.task.AUTO_CLASS, spec.adapter.method in OWN
    demo = spec.model.name_or_path == DEMO
    quantized = spec.quantization.scheme != "none" and not is_stored
    labels = read_labels(folder)
    name = "BASE" if demo else json.dumps(spec.model.name_or_path)
    revision = f"revision={json.dumps(spec.model.revision)}" if spec.model.revision else ""
    options = [revision, *_options(spec, bool(labels))]
    own_files = (folder / "tokenizer_config.json").is_file()
    writes = (folder / GENERATION_FILE).is_file()
    if quantized:
        about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        whole = about.get("whole" if own else "modules_to_save") or []
        options.append(bnb_config(spec.quantization, whole if spec.task.HAS_HEAD else ()))
    if labels:
        yield from ("import json", "from pathlib import Path", "")
    if is_stored or any("torch." in option for option in options):
        yield "import torch"
    if not own:
        yield "from peft import PeftModel"
    names = [kind, "AutoTokenizer", "BitsAndBytesConfig" * quantized, "GenerationConfig" * writes]
    yield f"from transformers import {', '.join(filter(None, names))}"
    if demo or own:
        yield ""
    if demo:
        yield "from peft_jobs.demo import BASE"
    if own:
        yield "from peft_jobs.methods import load_adapter"
    yield ""
    if labels:
        yield f'labels = json.loads(Path("{LABELS_FILE}").read_text(encoding="utf-8"))'
    yield f"base = {kind}.from_pretrained("
    yield from (f"    {option}," for option in (name, *options) if option)
    yield ")"
    if own_files:
        yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    else:  # an export of 0.1.0
        arguments = ", ".join(filter(None, (name, revision)))
        yield f"tokenizer = AutoTokenizer.from_pretrained({arguments})"
        yield "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token"
    yield "base.config.pad_token_id = tokenizer.pad_token_id"
    if writes:
        yield 'base.generation_config = GenerationConfig.from_pretrained(".")'
    if is_stored and spec.quantization.scheme != "int8":
        yield 'for layer in (part for part in base.modules() if hasattr(part, "compute_dtype")):'
        yield f"    layer.compute_dtype = getattr(torch, {compute_dtype(spec.quantization)})"
    if spec.quantization.scheme in ("nf4", "fp4"):
        yield "for layer in base.modules():  # the 4-bit kernel of some CPUs rounds"
        yield '    if hasattr(layer, "support_avx512bf16_for_cpu"):'
        yield "        layer.support_avx512bf16_for_cpu = False"
    load = "load_adapter" if own else "PeftModel.from_pretrained"
    yield f'model = {load}(base, ".").eval()'


def _options(spec: TrialSpec, has_labels: bool) -> Iterator[str]:
    model = spec.model
    by_device = '"auto" if torch.cuda.is_available() else "float32"'
    yield f"dtype={by_device if model.dtype == 'auto' else json.dumps(model.dtype)}"
    if model.attn_implementation:
        yield f"attn_implementation={json.dumps(model.attn_implementation)}"
    if has_labels:
        yield "id2label=dict(enumerate(labels))"
        yield "label2id={label: number for number, label in enumerate(labels)}"
    if spec.task.num_labels is not None:
        yield f"num_labels={spec.task.num_labels}"
    if spec.task.head_problem is not None:
        yield f'problem_type="{spec.task.head_problem}"'
    if spec.task.HAS_HEAD:
        yield "ignore_mismatched_sizes=True"


def bnb_config(quantization: QuantizationSpec, whole: tuple[str, ...] | list[str]) -> str:
    """An argument of `from_pretrained`; the modules `whole` are left alone."""
    skipped = list(dict.fromkeys([*whole, *quantization.llm_int8_skip_modules]))
    if skipped and not whole:
        skipped += OUTPUTS
    skip = [f"llm_int8_skip_modules={json.dumps(skipped)}"] if skipped else []
    if quantization.scheme == "int8":
        options = ["load_in_8bit=True", f"llm_int8_threshold={quantization.llm_int8_threshold}"]
    else:
        options = [
            "load_in_4bit=True",
            f"bnb_4bit_quant_type={json.dumps(quantization.scheme)}",
            f"bnb_4bit_use_double_quant={quantization.bnb_4bit_use_double_quant}",
            f"bnb_4bit_compute_dtype={compute_dtype(quantization)}",
        ]
    inside = "".join(f"        {option},\n" for option in (*options, *skip))
    return f"quantization_config=BitsAndBytesConfig(\n{inside}    )"


def literal(value: Any) -> str:
    """Plain data as Python, whose texts have double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        pairs = (f"{literal(key)}: {literal(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    return repr(value)


def compute_dtype(quantization: QuantizationSpec) -> str:
    """Python for the name of the type in which 4-bit weights are multiplied."""
    if quantization.bnb_4bit_compute_dtype == "auto":
        return '"bfloat16" if torch.cuda.is_available() else "float32"'
    return json.dumps(quantization.bnb_4bit_compute_dtype)
