"""The sections of a model card, each as lines of Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.spec import CausalLMSpec
from peft_jobs.spec.adapters import OWN
from sweeps.exporters.card.front_matter import base_card, is_hub_id
from sweeps.exporters.exporter import Form, intervals_of
from sweeps.exporters.loading_code import GENERATION_FILE, loading
from sweeps.exporters.names import base_title, local_paths, sources
from sweeps.results.leaderboard import Leaderboard, Row

_LONGEST = 1500
"""Characters of a text that is shown."""


def opening(metadata: str, title: str) -> Iterator[str]:
    """Front matter and title."""
    yield from ("---", metadata, "---", "", f"# {title}", "")


def what_it_is(board: Leaderboard, row: Row, spec: TrialSpec, is_stored: bool) -> str:
    """The first paragraph."""
    model = spec.model
    revision = f"@{model.revision}" if model.revision else ""
    local = "" if is_hub_id(model.name_or_path) else ", which is not on the Hub"
    base = base_title(model.name_or_path)
    scheme = spec.quantization.scheme
    on = "an unquantized base" if scheme == "none" else f"a `{scheme}` base"
    if is_stored:
        on = f"this checkpoint, which is quantized as it is stored (`{scheme}`)"
    return (
        f"A {spec.adapter.method} adapter for `{base}{revision}`{local}, trained on {on}. It is "
        f"trial {row.number:04d} of the sweep {board.sweep}, rank {row.rank or 'none'} among its "
        f"complete trials by {board.metric}."
    )


def continued(spec: TrialSpec) -> Iterator[str]:
    """From which adapter the trial went on."""
    if (source := spec.adapter.source) is not None:
        at = f"@{source.revision}" if source.revision else ""
        yield ""
        yield (
            f"Its training went on from the adapter `{source.name_or_path}{at}` (sha256 of its "
            f"files {source.sha256}), whose weights are a part of it: that adapter is not needed."
        )


def results(
    record: Mapping[str, Any], forms: Sequence[Form], first: str = "recorded in the sweep"
) -> Iterator[str]:
    """What was measured, and on what; `first` is where the first figures are from."""
    columns = {
        first: record["recorded"],
        "adapter, loaded again": {**record["validation"], **(record["test"] or {})},
        **{form.title: form.metrics for form in forms if form.metrics},
    }
    intervals = intervals_of(record)
    heads = [*columns, *(["95 % interval over rows"] if intervals else [])]
    yield "| metric | " + " | ".join(heads) + " |"
    yield "|---" * (len(heads) + 1) + "|"
    for name in columns["adapter, loaded again"]:
        values = (metrics.get(name) for metrics in columns.values())
        cells = ["" if value is None else f"{value:.6g}" for value in values]
        if intervals:
            known = intervals.get(name)
            cells.append("" if known is None else f"{known[0]:.4g} to {known[1]:.4g}")
        yield f"| {name} | " + " | ".join(cells) + " |"


def references(board: Leaderboard) -> Iterator[str]:
    """What the adapter must beat."""
    for words, value in board.references.items():
        yield ""
        yield f"The {words}: {board.metric} {value:.6g}."


def how_to_load(
    spec: TrialSpec, record: Mapping[str, Any], folder: Path, forms: Sequence[Form]
) -> Iterator[str]:
    """Code for the export in `folder`, how it decodes, and its other forms."""
    code = loading(spec, folder, bool(record.get("quantized_checkpoint")))
    yield from ("", "## Loading", "", "In this folder:", "", "```python", *code, "```")
    if spec.adapter.method in OWN:
        yield from ("", "PEFT has no such method: `peft_jobs` is of the package peft-sweeps.")
    if (folder / GENERATION_FILE).is_file():
        yield from ("", _decoding(spec))
    for form in forms:
        yield from ("", form.text)


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


def prompt_format(spec: TrialSpec, record: Mapping[str, Any]) -> Iterator[str]:
    """How a prompt is written, with a rendered one."""
    task, answers = spec.task, record.get("answers", ())
    if not task.generates:
        return
    yield from ("", "## Prompt format", "")
    if isinstance(task, CausalLMSpec) and (task.messages or task.use_chat_template):
        yield (
            "Conversations through the chat template that is saved with the tokenizer "
            "(`tokenizer.apply_chat_template(messages, add_generation_prompt=True)`)."
        )
    template = getattr(task, "prompt", None) or getattr(task, "source", None)
    if template is not None:
        yield "The columns of a row are put into this template, and nothing around it:"
        if getattr(task, "use_chat_template", False):
            yield "The user's turn is this template, with the columns of a row put into it:"
        yield from ("", *_fenced(template))
    if answers:
        yield from ("", "A prompt as the model was given it:", "")
        yield from _fenced(answers[0]["prompt"])


def sample_answers(record: Mapping[str, Any]) -> Iterator[str]:
    """Answers that nobody has chosen."""
    answers = record.get("answers", ())
    if not answers:
        return
    yield from ("", "## Sample answers", "")
    yield "Greedy, to validation rows that are spread evenly, not chosen; cut where they grew long."
    for number, sample in enumerate(answers, start=1):
        yield from ("", f"Prompt {number}:", "", *_fenced(sample["prompt"]))
        yield from ("", "Answer:", "", *_fenced(sample["answer"]))
        yield from ("", "Reference:", "", *_fenced(sample["reference"]))


def training(spec: TrialSpec, record: Mapping[str, Any]) -> Iterator[str]:
    """Data, what was seen of them, and what it took."""
    trained, examples = record["trained"], record.get("examples", {})
    yield from ("", "## Training", "")
    for split, source in sources(spec).items():
        count = f", {examples[split]:,} examples" if split in examples else ""
        part = "".join(f", {p}" for p in (source.name, source.split, source.revision) if p)
        yield f"* {split}: `{base_title(source.path)}`{part}{count}"
    if isinstance(spec.data.validation, float):
        count = f", {examples['validation']:,} examples" if "validation" in examples else ""
        yield f"* validation: {spec.data.validation:g} of the training rows, held out{count}"
    if trained.get("samples"):
        yield (
            f"* seen: {trained['samples']:,} samples, {trained['tokens']:,} supervised tokens, in "
            f"{trained['step']:,} optimizer steps of {spec.training.samples_per_step}"
        )
    if trained.get("trainable_parameters"):
        yield f"* trained: {trained['trainable_parameters']:,} parameters"
    yield f"* hardware: {'a CPU' if trained['device'] == 'cpu' else trained['device']}"
    seconds = (trained.get("seconds") or {}).get("train")
    if seconds:
        yield f"* time: {seconds / 60:.1f} minutes of training; energy was not measured"
    for name, value in (trained.get("memory") or {}).items():
        yield f"* memory, {name.removesuffix('_bytes').replace('_', ' ')}: {value / 2**30:.2f} GiB"
    versions = {name: value for name, value in trained["versions"].items() if value}
    if versions:
        yield "* versions: " + ", ".join(f"{name} {value}" for name, value in versions.items())


def selection(board: Leaderboard, row: Row, said: Sequence[str]) -> Iterator[str]:
    """How it was chosen, and what that does to its figures; `said` is the sweep's verdict."""
    complete = sum(known.rank is not None for known in board.rows)
    yield from ("", "## Selection", "")
    yield (
        f"{len(board.rows)} trials were launched, {complete} of them are ranked by {board.metric}; "
        f"this one is rank {row.rank or 'none'}. "
        + ("The sweep says:" if row is board.chosen else "Of its recommended trial the sweep says:")
    )
    yield from ("", *(f"* {sentence}" for sentence in said))
    if board.confirmation is None and board.final is None and complete > 1:
        yield ""
        yield (
            "It was trained under one seed, and the best of many measurements is better than it "
            "will be again: expect a worse value on new rows and under another seed."
        )


def limits(
    spec: TrialSpec, record: Mapping[str, Any], unbeaten: Sequence[str] = ()
) -> Iterator[str]:
    """What is not to be expected, and what is not known; `unbeaten` are the references that it does
    not beat, in words."""
    yield from ("", "## Limits", "")
    seen = record["trained"].get("samples")
    train = record.get("examples", {}).get("train")
    if seen and train and seen < train:
        yield f"* It has seen {seen / train:.0%} of one pass through its training examples."
    if not record["test"]:
        yield "* No test split was scored: its validation figures are those it was chosen by."
    for words in unbeaten:
        yield f"* It is no better than the {words}."
    yield f"* Measured on rows like `{_measured_on(spec)}` alone; other texts were not tried."
    if spec.quantization.scheme != "none":
        yield f"* Its figures are of a `{spec.quantization.scheme}` base; on another they differ."
    if "license" not in base_card(spec):
        yield (
            "* The base's licence is not known here: add `license:` above before you share this."
        )
    paths = [base_title(path) for path in local_paths(spec)]
    if paths:
        yield f"* Local, and not to be had elsewhere under these names: {', '.join(paths)}."


def _measured_on(spec: TrialSpec) -> str:
    data = sources(spec)
    return base_title(data.get("validation", data["train"]).path)


def _fenced(text: str) -> Iterator[str]:
    """`text` as a block that nothing in it ends."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} [...]"
    fence = "```"
    while fence in shown:
        fence += "`"
    yield from (f"{fence}text", *shown.split("\n"), fence)
