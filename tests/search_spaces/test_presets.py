"""The presets: complete, drawable, sourced, and overridden by name."""

import pytest
from pydantic import BaseModel

from search_spaces import PRESETS, RandomSuggest, ReadSpace, load_space

NAMES = {
    "adapter.r",
    "adapter.lora_alpha",
    "adapter.lora_dropout",
    "adapter.target_modules",
    "training.learning_rate",
}


def test_every_file_in_the_folder_is_a_preset():
    folder = PRESETS["lora"].parent
    files = sorted(path.stem for path in folder.rglob("*.yaml"))
    assert files
    assert files == sorted(PRESETS)


@pytest.mark.parametrize("name", ["lora", "lora-small", "qlora"])
def test_a_preset_of_lora_draws_all_five_parameters_within_their_ranges(name):
    space, suggest = load_space({"preset": name}), RandomSuggest(0)
    space.check_names(NAMES)
    for _ in range(50):
        params = space.draw(suggest)
        assert params.keys() == NAMES
        assert params["adapter.r"] in (4, 8, 16, 32, 64)
        assert params["adapter.lora_alpha"] == (16 if name == "qlora" else 2 * params["adapter.r"])
        assert 0 <= params["adapter.lora_dropout"] <= 0.1
        assert 5e-5 <= params["training.learning_rate"] <= 1e-2
        assert space.violated(params) is None


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_when_to_use_it_and_names_a_source_for_every_default(name):
    lines = PRESETS[name].read_text().splitlines()
    assert lines[0].startswith("# Use this for ")
    for number, line in enumerate(lines):
        if line.startswith("  ") and not line.startswith(("   ", "  #")):
            assert lines[number - 1].strip().startswith("#"), line


def test_small_bases_get_higher_learning_rates():
    large, small = (load_space({"preset": name}).parameters for name in ("lora", "lora-small"))
    key = "training.learning_rate"
    assert small[key].low > large[key].low
    assert small[key].high > large[key].high


def test_parameters_override_a_preset_by_name_and_constraints_are_appended():
    raw = {
        "preset": "lora",
        "parameters": {"adapter.r": 8, "adapter.use_dora": {"choices": [True, False]}},
        "constraints": ["adapter.lora_alpha <= 32"],
    }
    space, plain = load_space(raw), load_space({"preset": "lora"})
    assert space.names() == (*plain.names(), "adapter.use_dora")
    assert space.draw(RandomSuggest(0))["adapter.lora_alpha"] == 16
    assert space.constraints == (*plain.constraints, "adapter.lora_alpha <= 32")


def test_the_presets_points_come_after_those_of_the_file_where_they_still_hold():
    plain = load_space({"preset": "methods"})
    families = plain.parameters["adapter.method"].choices
    once = tuple({"adapter.method": family} for family in families)
    assert plain.points_to_evaluate == once
    assert load_space({"preset": "methods", "points_to_evaluate": []}).points_to_evaluate == ()
    first = {"adapter.method": "lora", "adapter.r": 16}
    space = load_space({"preset": "methods", "points_to_evaluate": [first]})
    assert space.points_to_evaluate == (first, *plain.points_to_evaluate)
    others = {"adapter.method": {"choices": ["oft", "lora", "full"]}}
    space = load_space({"preset": "methods", "parameters": others, "points_to_evaluate": [first]})
    kept = [{"adapter.method": "lora"}, {"adapter.method": "oft"}]
    assert space.points_to_evaluate == (first, *kept)
    assert "adapter.oft_block_size" in space.parameters
    assert "adapter.target_r" not in space.parameters, "AdaLoRA's: never active here"


def test_a_pydantic_field_reads_the_file_form_and_keeps_the_place_of_a_mistake():
    class Spec(BaseModel):
        space: ReadSpace

    spec = Spec(space={"preset": "qlora"})
    assert Spec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValueError, match=r"space\.parameters\.`adapter\.r`\n.*low must be <="):
        Spec(space={"preset": "qlora", "parameters": {"adapter.r": {"low": 2, "high": 1}}})
