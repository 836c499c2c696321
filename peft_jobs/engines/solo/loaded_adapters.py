"""Several adapters on one resident base: measured one by one, and combined."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from peft_jobs.base.resident import Resident
from peft_jobs.device.this_device import this_device
from peft_jobs.engines.solo.adapter_export import examined
from peft_jobs.evaluation.row_scores import table_of
from peft_jobs.methods.combination import combine, load_together, save_combined
from peft_jobs.phases import Phases
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.combination import CombinationSpec

if TYPE_CHECKING:
    import pandas


class LoadedAdapters:
    """Adapters by name, each measured on the rows of one trial. A name may be any text."""

    def __init__(
        self, spec_json: str, folders: Mapping[str, Path], cache_dir: Path, with_test: bool
    ) -> None:
        """Load base and data of a trial, and the adapters in `folders`, all of this base."""
        self.spec = TrialSpec.model_validate_json(spec_json)
        resident = Resident(cache_dir, this_device(), with_test=with_test)
        self.base, self.data = resident.get(self.spec, Phases())
        self._keys: dict[str, str] = {}
        keyed = {self._key(name): folder for name, folder in folders.items()}
        self.model = load_together(self.base.model, keyed)

    def measure(
        self, name: str, split: str = "validation"
    ) -> "tuple[dict[str, float], pandas.DataFrame]":
        """The metrics of an adapter on a split, and what was found of each of its rows."""
        self.model.set_adapter(self._key(name))
        rows = self.data.validation if split == "validation" else self.data.test
        assert rows is not None
        found = examined(self.model, self.base, self.spec, rows, split)
        return found.metrics, table_of(found, rows, self.data.numbers[split]).to_pandas()

    def combine(self, name: str, weights: Mapping[str, float], how_json: str) -> None:
        """Add the adapter `name`: those in `weights`, combined."""
        keyed = {self._key(part): weight for part, weight in weights.items()}
        how = CombinationSpec.model_validate_json(how_json)
        combine(self.model, self._key(name), keyed, how)

    def save(self, name: str, folder: Path) -> None:
        """Write an adapter that was combined into `folder`."""
        save_combined(self.model, self._key(name), folder)

    def forget(self, name: str) -> None:
        """Take an adapter off the base, and its memory."""
        first, *_ = self._keys.values()
        self.model.set_adapter(first)
        self.model.delete_adapter(self._key(name))

    def _key(self, name: str) -> str:
        """A name as it may stand among those of weights."""
        return self._keys.setdefault(name, f"adapter_{len(self._keys):03d}")
