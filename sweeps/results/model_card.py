"""The README.md of an export: what it is, how good, how to load it, how to train it again.

The loading code needs PEFT alone, and is run as it stands by a test. It repeats what a base of the
sweep is made of and `PeftModel.from_pretrained` does not know: the head's classes, the quantization
and what it leaves out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.spec import DEMO, QuantizationSpec
from peft_jobs.spec.adapters import OWN
from peft_jobs.storage.attempt_folder import LABELS_FILE, read_labels
from sweeps.results.leaderboard import Leaderboard, Row

GENERATION_FILE = "generation_config.json"
"""transformers' name for how a model's answers are decoded."""
_OUTPUTS = ("lm_head", "embed_out")
"""Output embeddings, which are not quantized: transformers leaves them out by itself unless other
modules are named."""


@dataclass(frozen=True)
class Form:
    """What an export holds beside the adapter."""

    title: str
    """Heads its figures in the card's table."""
    metrics: Mapping[str, float]
    text: str
    """What it is, and how it is loaded."""


def model_card(
    board: Leaderboard,
    row: Row,
    spec: TrialSpec,
    record: Mapping[str, Any],
    folder: Path,
    forms: Sequence[Form] = (),
) -> str:
    """The card of an export in `folder`, whose figures are in `record`."""
    model, is_stored = spec.model, bool(record.get("quantized_checkpoint"))
    on_hub = model.name_or_path != DEMO and not Path(model.name_or_path).is_absolute()
    revision = f"@{model.revision}" if model.revision else ""
    columns = {
        "recorded in the sweep": record["recorded"],
        "adapter, loaded again": {**record["validation"], **(record["test"] or {})},
        **{form.title: form.metrics for form in forms},
    }
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {model.name_or_path}"] if on_hub else []),
        "---",
        "",
        f"# Trial {row.number:04d} of the sweep {board.sweep}",
        "",
        f"A {spec.adapter.method} adapter for `{model.name_or_path}{revision}`, trained on "
        f"{_base_words(spec, is_stored)}. "
        f"It is rank {row.rank or 'none'} among the sweep's complete trials by {board.metric}.",
        *_continued(spec),
        "",
        "| metric | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in columns["adapter, loaded again"]:
        values = (metrics.get(name) for metrics in columns.values())
        cells = ["" if value is None else f"{value:.6g}" for value in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for words, value in board.references.items():
        lines += ["", f"The {words}: {board.metric} {value:.6g}."]
    lines += ["", "## Loading", "", "In this folder:", ""]
    lines += ["```python", *loading(spec, folder, is_stored), "```"]
    if spec.adapter.method in OWN:
        lines += ["", "PEFT has no such method: `peft_jobs` is of the package peft-sweeps."]
    if (folder / GENERATION_FILE).is_file():
        lines += ["", _decoding(spec)]
    for form in forms:
        lines += ["", form.text]
    lines += ["", "## Configuration", "", "| parameter | value |", "|---|---|"]
    lines += [f"| `{name}` | {value} |" for name, value in row.params.items()]
    lines += [
        "",
        "The whole trial is in `trial.json`. Train it again, or on all of its data:",
        "",
        "    python -m peft_jobs run trial.json --out again",
        "    python -m peft_jobs run trial.json data.subset=null training.max_samples=null \\",
        "        training.num_train_epochs=1 'evaluation.rungs=[]' --out full",
        "",
    ]
    return "\n".join(lines)


def _continued(spec: TrialSpec) -> Iterator[str]:
    """From which adapter the trial went on."""
    if (source := spec.adapter.source) is not None:
        at = f"@{source.revision}" if source.revision else ""
        yield ""
        yield (
            f"Its training went on from the adapter `{source.name_or_path}{at}` (sha256 of its "
            f"files {source.sha256}), whose weights are a part of it: that adapter is not needed."
        )


def _base_words(spec: TrialSpec, is_stored: bool) -> str:
    scheme = spec.quantization.scheme
    if is_stored:
        return f"this checkpoint, which is quantized as it is stored (`{scheme}`)"
    return f"a `{scheme}` base"


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
        options.append(_quantization(spec.quantization, whole if spec.task.HAS_HEAD else ()))
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
        yield f"    layer.compute_dtype = getattr(torch, {_compute_dtype(spec.quantization)})"
    load = "load_adapter" if own else "PeftModel.from_pretrained"
    yield f'model = {load}(base, ".").eval()'


def _decoding(spec: TrialSpec) -> str:
    """What the generation settings of an export are."""
    if spec.evaluation.generation is None:
        return (
            f"`{GENERATION_FILE}` is the base's, with the tokens at which the answers of the data "
            "end; no answers were measured."
        )
    return (
        f"`{GENERATION_FILE}` has answers decoded as they were measured: greedily, up to the "
        "tokens at which those of the data end. What else the base's own settings do (sampling, "
        "beams, penalties, lengths at least) is left out."
    )


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


def _quantization(quantization: QuantizationSpec, whole: tuple[str, ...] | list[str]) -> str:
    skipped = list(dict.fromkeys([*whole, *quantization.llm_int8_skip_modules]))
    if skipped and not whole:
        skipped += _OUTPUTS
    skip = [f"llm_int8_skip_modules={json.dumps(skipped)}"] if skipped else []
    if quantization.scheme == "int8":
        options = ["load_in_8bit=True", f"llm_int8_threshold={quantization.llm_int8_threshold}"]
    else:
        options = [
            "load_in_4bit=True",
            f"bnb_4bit_quant_type={json.dumps(quantization.scheme)}",
            f"bnb_4bit_use_double_quant={quantization.bnb_4bit_use_double_quant}",
            f"bnb_4bit_compute_dtype={_compute_dtype(quantization)}",
        ]
    inside = "".join(f"        {option},\n" for option in (*options, *skip))
    return f"quantization_config=BitsAndBytesConfig(\n{inside}    )"


def _compute_dtype(quantization: QuantizationSpec) -> str:
    """Python for its name."""
    if quantization.bnb_4bit_compute_dtype == "auto":
        return '"bfloat16" if torch.cuda.is_available() else "float32"'
    return json.dumps(quantization.bnb_4bit_compute_dtype)
