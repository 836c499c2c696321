"""Base and adapter as one unquantized model, which needs neither PEFT nor bitsandbytes."""

from collections.abc import Mapping
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.references import load
from sweeps.exporters.exporter import Draft, Form

MERGED_FOLDER = "merged"


class MergedExporter:
    """Merges into the dequantized weights, and scores the model as loaded again."""

    def check(self, spec: TrialSpec) -> None:
        """SpecError if the method cannot become part of the base's weights."""
        spec.adapter.check_merges()

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        """Nothing but the adapter."""
        return ()

    def write(self, draft: Draft) -> dict[str, Any]:
        """The folder `merged`, whole, and its validation metrics."""
        if draft.record["merged"] is not None:
            return {}
        merge = load("peft_jobs.engines.solo.adapter_export:merge_adapter")
        out = draft.path / MERGED_FOLDER
        return {"merged": merge(draft.spec_json, draft.path, out, draft.cache)}

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        """The folder, and how it is loaded."""
        if record["merged"] is None:
            return None
        return Form(
            "merged model, loaded again",
            record["merged"],
            "`merged/` is base and adapter as one unquantized model with its tokenizer, which "
            f'needs no adapter: `{spec.task.AUTO_CLASS}.from_pretrained("merged")`.',
        )
