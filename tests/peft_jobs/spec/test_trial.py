"""TrialSpec: one trial as data; strict where YAML is lax."""

import json
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from peft_jobs import TrialSpec
from peft_jobs.spec.mistakes import mistakes

TREE: dict[str, Any] = {
    "model": "demo",
    "quantization": "nf4",
    "task": {"type": "causal_lm", "prompt": "{record} ", "response": "{sentence}"},
    "data": {"train": "demo", "validation": "demo"},
}


def spec(**sections: Any) -> TrialSpec:
    return TrialSpec.model_validate({**TREE, **sections})


def lines(**sections: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        spec(**sections)
    return [str(mistake) for mistake in mistakes(caught.value, TrialSpec)]


def test_with_params_sets_dotted_names_and_leaves_the_original() -> None:
    base = spec()
    changed = base.with_params(
        {"adapter.r": 32, "training.learning_rate": 1e-3, "seed": 7, "quantization.scheme": "int8"}
    )
    assert (changed.adapter.r, changed.training.learning_rate, changed.seed) == (32, 1e-3, 7)
    assert changed.quantization.scheme == "int8"
    assert (base.adapter.r, base.seed, base.quantization.scheme) == (8, 0, "nf4")
    assert base.with_params({}) == base


@pytest.mark.parametrize(
    "params",
    [
        {"adapter.rr": 4},
        {"adapter.r": 0},
        {"adapter.r.x": 4},
        {"adaptor.r": 4},
        {"nothing": 1},
        {"training.learning_rate": float("nan")},
    ],
)
def test_with_params_refuses_wrong_names_and_values(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        spec().with_params(params)


def test_equal_specs_have_one_fingerprint_however_they_were_written() -> None:
    plain = spec(adapter={"r": 8, "lora_alpha": 16})
    again = TrialSpec.model_validate(json.loads(plain.to_json()))
    spelled = spec(
        adapter={"lora_alpha": 16.0, "r": 8, "method": "lora"},
        quantization={"scheme": "nf4"},
        model={"name_or_path": "demo"},
        data={"validation": {"path": "demo"}, "train": {"path": "demo"}},
    )
    assert plain == again == spelled
    assert plain.fingerprint() == again.fingerprint() == spelled.fingerprint()
    assert len(plain.fingerprint()) == 64
    others = [plain.with_params({n: v}) for n, v in (("seed", 1), ("adapter.r", 9))]
    assert len({other.fingerprint() for other in (plain, *others)}) == 3


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        spec().seed = 3  # type: ignore[misc]


def test_unknown_keys_are_refused_at_every_depth() -> None:
    found = lines(adapter={"lora_alhpa": 8}, data={"train": {"path": "demo", "spilt": "x"}}, sed=1)
    text = "\n".join(found)
    assert len(found) == 3
    assert "adapter.lora_alhpa: unknown key 'lora_alhpa' in adapter; did you mean" in text
    assert "data.train.spilt: unknown key 'spilt' in data.train; did you mean 'split'?" in text
    assert "sed: unknown key 'sed' in the file; did you mean 'seed'?" in text


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    written = yaml.safe_load("learning_rate: 1e-4\nweight_decay: 5e-2\nmax_samples: '900'")
    assert isinstance(written["learning_rate"], str), "YAML 1.1 wants a decimal point"
    training = spec(training=written).training
    assert (training.learning_rate, training.weight_decay) == (1e-4, 5e-2)
    assert training.max_samples == 900


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("adapter", "r"),
        ("adapter", "lora_alpha"),
        ("adapter", "lora_dropout"),
        ("training", "learning_rate"),
        ("training", "warmup_steps"),
        ("training", "max_samples"),
        ("data", "subset"),
        ("data", "seed"),
    ],
)
@pytest.mark.parametrize("word", ["yes", "no", "on", "true"])
def test_a_word_that_yaml_reads_as_a_truth_value_is_no_number(
    section: str, field: str, word: str
) -> None:
    value = yaml.safe_load(word)
    assert isinstance(value, bool)
    (line,) = lines(**{section: {**TREE.get(section, {}), field: value}})
    assert line.startswith(f"{section}.{field}: must be a number, got {str(value).lower()}")


def test_no_is_no_quantization_and_no_bias() -> None:
    assert lines(quantization=yaml.safe_load("no"))[0].startswith("quantization: must be")
    assert lines(adapter={"bias": yaml.safe_load("no")})[0].startswith("adapter.bias: must be")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), ".inf", "nan"])
def test_only_finite_numbers(value: Any) -> None:
    assert lines(training={"learning_rate": value})
    assert lines(data={"train": "demo", "subset": value})


def test_a_share_and_a_count_are_told_apart_by_the_decimal_point() -> None:
    for given, kept in ((0.1, 0.1), (1.0, None), (2, 2), (200, 200), (2.0, 2)):
        data = spec(data={"train": "demo", "subset": given}).data
        assert data.subset == kept
        assert type(data.subset) is type(kept)
    for given in (0, -1, 2.5):
        assert "must be a share between 0 and 1 or a whole number of rows" in "".join(
            lines(data={"train": "demo", "subset": given})
        )
    assert spec(data={"train": "demo", "validation": 0.2}).data.validation == 0.2
    assert lines(data={"train": "demo", "validation": 1})


def test_all_rows_as_a_share_is_no_subset_and_a_single_row_is_refused() -> None:
    whole = spec(data={**TREE["data"], "subset": 1.0, "validation_subset": 1.0})
    assert whole == spec() == spec().with_params({"data.subset": 1.0})
    assert TrialSpec.model_validate_json(whole.to_json()) == whole
    for one in (1, "1"):
        (line,) = lines(data={"train": "demo", "subset": one})
        assert line == "data.subset: must be 1.0 for all rows, or at least 2 rows, got 1"


CLASSES = {"type": "sequence_classification", "text": "{a}", "label": "label"}


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"type": "causal_lm", "prompt": "{a}"}, "response"),
        ({"type": "causal_lm"}, "text"),
        (CLASSES, "text"),
        (CLASSES, "text_pair"),
        ({"type": "seq2seq", "target": "{a}"}, "source"),
        ({"type": "seq2seq", "source": "{a}"}, "target"),
        ({"type": "question_answering"}, "question"),
    ],
)
def test_a_text_that_is_the_same_for_every_row_is_refused(task: dict[str, Any], field: str) -> None:
    (line,) = lines(task={**task, field: "sentence"})
    assert line == f"task.{field}: must name a column in braces, e.g. {{sentence}}; got 'sentence'"
    (line,) = lines(task={**task, field: "{{not a column}}"})
    assert line.startswith(f"task.{field}: must name a column in braces")
    assert spec(task={**task, field: "about {sentence}"})


def test_only_a_prompt_may_be_shared_by_all_rows() -> None:
    task = {"type": "causal_lm", "response": "{a}"}
    for prompt in ("Summarise:", "Write a joke.\n", "{a}"):
        assert spec(task={**task, "prompt": prompt}).task.prompt == prompt  # type: ignore[union-attr]
    (line,) = lines(task={**task, "prompt": "instruction"})
    assert "{instruction}" in line


def of_method(adapter: dict[str, Any], method: str, **params: Any) -> Any:
    whole = spec(quantization="none", adapter=adapter)
    sampled = {f"adapter.{name}": value for name, value in params.items()}
    return whole.with_params({"adapter.method": method, **sampled}).adapter


@pytest.mark.parametrize("method", ["adalora", "ia3", "loha", "vera", "oft", "hra"])
def test_methods_are_compared_on_the_modules_that_the_file_names(method: str) -> None:
    file = {"target_modules": "attention-qv", "modules_to_save": ["lm_head"]}
    adapter = of_method(file, method)
    assert adapter.target_modules == "attention-qv"
    assert adapter.modules_to_save == ("lm_head",)
    assert of_method(file, method, target_modules="attention").target_modules == "attention"


def test_what_a_field_means_in_one_method_alone_is_not_carried_over() -> None:
    file = {"r": 16, "lora_alpha": 99, "lora_dropout": 0.1, "bias": "lora_only"}
    assert of_method(file, "loha").r == 16, "8 is the default of both"
    assert of_method(file, "vera").r == 256, "VeRA's ranks are of another size"
    assert (of_method(file, "adalora").lora_alpha, of_method(file, "adalora").init_r) == (32, 12)
    assert of_method(file, "adalora").lora_dropout == 0.1
    assert of_method(file, "oft").bias == "none", "OFT has no lora_only"
    named = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    assert of_method(named, "ln_tuning").target_modules == "all-norms"
    assert of_method(named, "prompt_tuning").modules_to_save == ("lm_head",)


def test_a_method_begins_with_its_own_targets_where_the_file_names_none() -> None:
    assert of_method({"r": 4}, "ia3").target_modules == "ia3"
    assert of_method({"method": "ia3"}, "lora").target_modules == "all-linear"
    assert of_method({"method": "ia3", "target_modules": "attention"}, "lora").target_modules == (
        "attention"
    )
    whole = spec(quantization="none", adapter={"r": 4})
    dumped = TrialSpec.model_validate_json(whole.to_json())  # where every field is given
    params = {"adapter.method": "ia3"}
    assert dumped.with_params(params) == whole.with_params(params)


def test_a_point_that_was_valid_stays_so_whatever_the_file_says() -> None:
    dropped = of_method({"layers_to_transform": 3, "r": 3}, "hra", r=5)
    assert dropped.r == 5
    file = {"method": "p_tuning", "num_virtual_tokens": 7, "encoder_hidden_size": 32}
    plain = of_method(file, "prefix_tuning", prefix_projection=False)
    assert (plain.num_virtual_tokens, plain.encoder_hidden_size) == (7, 128)
    with pytest.raises(ValidationError, match=r"adapter\.ia3\.r"):
        of_method({"r": 16}, "ia3", r=4)
    assert lines(data={"train": "demo", "validation": True})


def test_at_most_one_horizon() -> None:
    assert "max_samples and max_steps" in lines(training={"max_samples": 9, "max_steps": 9})[0]


@pytest.mark.parametrize(
    ("training", "rows", "steps"),
    [
        ({}, 1000, 125),
        ({"num_train_epochs": 2.5}, 1000, 313),
        ({"max_samples": 900}, 10, 113),
        ({"max_samples": 900, "gradient_accumulation_steps": 4}, 10, 29),
        ({"max_steps": 7}, 1000, 7),
        ({}, 1, 1),
    ],
)
def test_total_steps_by_hand(training: dict[str, Any], rows: int, steps: int) -> None:
    assert spec(training=training).training.total_steps(rows) == steps


def test_a_task_has_one_source_of_text() -> None:
    def task(**given: Any) -> str:
        return "\n".join(lines(task={"type": "causal_lm", **given}))

    assert "either `response`" in task()
    assert "either `response`" in task(response="{a}", messages="m")
    assert "takes no `prompt`" in task(messages="m", prompt="{a}")
    assert "use_chat_template needs a `prompt`" in task(response="{a}", use_chat_template=True)
    assert "lone '{'" in task(response="{a")
    assert "task.type: unknown type 'casual_lm'; did you mean 'causal_lm'?" in "\n".join(
        lines(task={"type": "casual_lm", "response": "{a}"})
    )


def test_files_have_no_splits() -> None:
    (line,) = lines(data={"train": {"path": "rows.jsonl", "split": "train"}})
    assert "rows.jsonl is a file: name, revision and split are for Hub ids" in line


def test_rungs_ascend() -> None:
    assert spec(evaluation={"rungs": [1, 5, 9]}).evaluation.rungs == (1, 5, 9)
    for rungs in ([5, 1], [1, 1], [0, 1]):
        assert lines(evaluation={"rungs": rungs})
