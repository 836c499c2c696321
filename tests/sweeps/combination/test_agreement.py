"""What is not combined: told with the adapters' names and a remedy, and no model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import SpecError, TrialSpec
from peft_jobs.spec.combination import CombinationSpec
from peft_jobs.storage.saved_adapter import read_adapter
from sweeps.combination.agreement import check_agreement
from sweeps.combination.ingredients import Ingredient
from tests.support.saved_adapters import write_saved

SPEC: dict[str, Any] = {
    "model": "base",
    "task": {"type": "causal_lm", "prompt": "{mr} ", "response": "{ref}"},
    "data": {"train": "rows.csv"},
}
SEEN = {"weights": "w", "device": "cpu", "config": "c", "tokenizer": "t"}


@pytest.fixture
def part(tmp_path: Path) -> Callable[..., Ingredient]:
    """Number, provenance, settings of the adapter, sections of its trial -> an ingredient."""

    def make(
        number: int,
        seen: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        **sections: Any,
    ) -> Ingredient:
        folder = Path(write_saved(tmp_path / f"{number:04d}", **(settings or {})))
        spec = TrialSpec.model_validate({**SPEC, **sections})
        result = {"provenance": SEEN if seen is None else {**SEEN, **seen}}
        saved = read_adapter(folder)
        label = f"{number:04d}"
        return Ingredient(
            label, "s", number, spec, spec.to_json(), folder, saved, f"sha-{number}", result
        )

    return make


def reasons(parts: list[Ingredient], weights: Any = None, **how: Any) -> str:
    with pytest.raises(SpecError) as told:
        check_agreement(parts, [CombinationSpec(**how)], weights)
    return str(told.value)


def test_adapters_of_one_base_and_task_agree(part: Any) -> None:
    parts = [part(1), part(2, settings={"r": 8}, model="the/same", data={"train": "other.csv"})]
    check_agreement(parts, [CombinationSpec(), CombinationSpec(type="svd", rank=2)])


OTHER_TASK = {"task": {**SPEC["task"], "prompt": "{mr}\n"}}
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"seen": {"weights": "x"}}, "0001 and 0002 are of bases with other weights"),
    "config": ({"seen": {"config": "x"}}, "0001 and 0002 differ in the base's config.json"),
    "tokenizer": ({"seen": {"tokenizer": "x"}}, "0001 and 0002 differ in the tokenizer"),
    "task": (OTHER_TASK, r"task.prompt is '{mr} ' in 0001 and '{mr}\n' in 0002"),
    "quantization": (
        {"quantization": "nf4"},
        "quantization.scheme is 'none' in 0001 and 'nf4' in 0002",
    ),
    "base, on another device": (
        {"model": "other", "seen": {"device": "A100", "weights": "x"}},
        "model.name_or_path is 'base' in 0001 and 'other' in 0002",
    ),
    "method": (
        {"settings": {"peft_type": "LOHA"}},
        "PEFT combines lora and ia3, and trial 0002 is loha: leave those out",
    ),
    "methods": (
        {"settings": {"peft_type": "IA3"}},
        "adapters of one method are combined, and trial 0001 is lora, trial 0002 is ia3",
    ),
    "head": (
        {"settings": {"modules_to_save": ["score"]}},
        "trial 0002 has modules that are trained whole (score), which PEFT does not combine",
    ),
    "dora": ({"settings": {"use_dora": True}}, "trial 0002 is a DoRA"),
    "bias": ({"settings": {"bias": "all"}}, "trial 0002 trains biases of the base (bias all)"),
    "parameters": (
        {"settings": {"target_parameters": ["experts"]}},
        "trial 0002 has target_parameters",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_differs_is_named(case: str, part: Any) -> None:
    given, told = DIFFERENT[case]
    assert told in reasons([part(1), part(2, **given)])


def test_all_reasons_are_told_at_once(part: Any) -> None:
    told = reasons([part(1), part(2, seen={"tokenizer": "x"}, settings={"use_dora": True})])
    assert "tokenizer" in told
    assert "DoRA" in told


def test_factors_of_several_ranks_are_not_added_up(part: Any) -> None:
    parts = [part(1), part(2, settings={"r": 8}), part(3, settings={"rank_pattern": {"q": 2}})]
    told = reasons(parts, type="linear")
    assert "trial 0001 has 4, trial 0002 has 8, trial 0003 has 4 and 1 others by pattern" in told
    assert "take cat or svd" in told
    check_agreement(parts, [CombinationSpec(type="ties_svd", density=0.2)])


def test_vectors_of_ia3(part: Any) -> None:
    name = "base_model.model.model.layers.{}.self_attn.k_proj.ia3_l"
    vectors = [{name.format(layer): (64, 1)} for layer in range(2)]
    ia3 = [{"peft_type": "IA3", "shapes": shapes} for shapes in vectors]
    alike = [part(1, settings=ia3[0]), part(2, settings=ia3[0])]
    check_agreement(alike, [CombinationSpec(type="linear")], (0.25, 0.75))
    assert "give the type linear" in reasons(alike, type="cat")
    assert "must add up to 1, got 0.8" in reasons(alike, (0.5, 0.3), type="linear")
    assert "scale different modules" in reasons([alike[0], part(3, settings=ia3[1])], type="linear")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"type": "ties"}, "ties needs density"),
        ({"density": 0.5}, "density is for ties, dare and magnitude_prune, got cat"),
        ({"type": "linear", "rank": 4}, "rank is for svd, got linear"),
    ],
)
def test_settings_that_mean_nothing_are_refused(how: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CombinationSpec(**how)
