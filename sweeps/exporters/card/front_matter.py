"""The metadata at the top of a model card, as the Hub reads it; huggingface_hub writes it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from peft_jobs import TrialSpec
from peft_jobs.spec import DEMO, Source
from sweeps.exporters.exporter import intervals_of
from sweeps.exporters.names import base_title, sources

log = logging.getLogger(__name__)

PIPELINES = {
    "causal_lm": "text-generation",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
}
"""The Hub's names of tasks."""
CARD_FILE = "README.md"


def front_matter(
    spec: TrialSpec, record: Mapping[str, Any], title: str, tags: Sequence[str] = ()
) -> ModelCardData:
    """The metadata of an export; what is not known is left out. `tags` are further ones.

    Licence and language are those of the base, where its own card is at hand, on this machine.
    """
    on_hub = is_hub_id(spec.model.name_or_path)
    base = base_card(spec)
    pipeline = pipeline_of(spec)
    method = spec.adapter.method
    return ModelCardData(
        base_model=spec.model.name_or_path if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        library_name="peft",
        license=base.get("license"),
        license_name=base.get("license_name"),
        license_link=base.get("license_link"),
        language=base.get("language"),
        datasets=hub_datasets(spec) or None,
        tags=[method, "peft-sweeps", *tags, *_of_base(spec.model.name_or_path, on_hub)],
        pipeline_tag=pipeline,
        model_name=title,
        eval_results=_results(spec, record, pipeline or spec.task.type),
    )


def _of_base(name: str, on_hub: bool) -> list[str]:
    return [f"base_model:adapter:{name}"] if on_hub else []


def base_card(spec: TrialSpec) -> dict[str, Any]:
    """The metadata of the base's own card, from its folder or the Hub's cache; {} without."""
    name = spec.model.name_or_path
    path: Any = Path(name) / CARD_FILE
    if is_hub_id(name):
        path = try_to_load_from_cache(name, CARD_FILE, revision=spec.model.revision)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
        found: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    except ValueError as error:  # what stands there is no metadata
        log.warning("the card of the base %s is left aside: %s", name, error)
        return {}
    return found


def pipeline_of(spec: TrialSpec) -> str | None:
    """The Hub's name of the task; None where it has none."""
    if spec.task.type == "seq2seq":
        return "translation" if getattr(spec.task, "target_language", None) else None
    return PIPELINES.get(spec.task.type)


def is_hub_id(name: str) -> bool:
    """Whether a base is on the Hub, and not of this machine or of the package."""
    return name != DEMO and not Path(name).is_absolute() and not name.startswith((".", "~"))


def hub_datasets(spec: TrialSpec) -> list[str]:
    """The ids of the Hub's data sets that the trial reads."""
    return list(dict.fromkeys(s.path for s in sources(spec).values() if _is_hub_set(s)))


def _is_hub_set(source: Source) -> bool:
    return not source.is_file and is_hub_id(source.path)


def _results(spec: TrialSpec, record: Mapping[str, Any], task: str) -> list[EvalResult]:
    measured = {**record["validation"], **(record["test"] or {})}
    intervals = intervals_of(record)
    data = sources(spec)
    found = []
    for name, value in measured.items():
        split, _, metric = name.partition("/")
        source = data.get(split, data["train"])
        interval = intervals.get(name)
        found.append(
            EvalResult(
                task_type=task,
                dataset_type=source.path if _is_hub_set(source) else "local",
                dataset_name=base_title(source.path),
                dataset_split=source.split or split,
                dataset_revision=source.revision,
                metric_type=metric,
                metric_name=name,
                metric_value=value,
                metric_args=None if interval is None else {"interval_95": list(interval)},
            )
        )
    return found
