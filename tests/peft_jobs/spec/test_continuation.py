"""`adapter.from`: what follows from a saved adapter, what contradicts it, what cannot be used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from peft_jobs.errors import SpecError
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import saved_adapter
from peft_jobs.spec.mistakes import mistakes
from peft_jobs.storage.saved_adapter import adapter_digest
from tests.peft_jobs.spec.test_trial import lines, spec
from tests.support.saved_adapters import write_saved


@pytest.fixture
def saved(tmp_path: Path) -> str:
    return write_saved(tmp_path / "saved")


def refused(base: TrialSpec, params: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        base.with_params(params)
    (line,) = map(str, mistakes(caught.value, TrialSpec))
    return line


def test_a_spec_without_the_field_is_what_it_was() -> None:
    """The text of a trial of version 0.1, whose hash its checkpoints and studies hold."""
    trial = spec()
    assert "from" not in trial.model_dump(mode="json")["adapter"]
    assert spec(adapter={"from": None}) == trial
    assert spec(adapter={"from": None}).fingerprint() == trial.fingerprint()


def test_what_shapes_the_weights_follows_from_the_settings(saved: str) -> None:
    trial = spec(adapter={"from": saved})
    adapter: Any = trial.adapter
    assert (adapter.method, adapter.r, adapter.lora_alpha) == ("lora", 4, 12)
    assert (adapter.target_modules, adapter.lora_dropout) == (("q_proj", "v_proj"), 0.1)
    assert adapter.source.name_or_path == saved
    assert adapter.source.sha256 == adapter_digest(Path(saved))
    assert spec(adapter={"from": {"name_or_path": saved}}) == trial


def test_what_says_how_it_is_trained_is_free(saved: str) -> None:
    trial = spec(adapter={"from": saved, "lora_dropout": 0.5, "loraplus_lr_ratio": 4})
    adapter: Any = trial.adapter
    assert (adapter.lora_dropout, adapter.loraplus_lr_ratio) == (0.5, 4)
    changed: Any = trial.with_params({"adapter.lora_dropout": 0.0}).adapter
    assert (changed.lora_dropout, changed.loraplus_lr_ratio, changed.r) == (0.0, 4, 4)
    assert changed.source == adapter.source


def test_what_agrees_may_be_written(saved: str) -> None:
    written = {"method": "lora", "r": 4, "lora_alpha": 12.0, "use_dora": False, "bias": "none"}
    begins = {"init_lora_weights": True, "modules_to_save": [], "rank_pattern": {}}
    assert spec(adapter={"from": saved, **written, **begins}) == spec(adapter={"from": saved})


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("r", 8, "r is 4 there and 8 here"),
        ("lora_alpha", 16, "lora_alpha is 12 there and 16 here"),
        ("use_rslora", True, "use_rslora is false there and true here"),
        ("use_dora", True, "use_dora is false there and true here"),
        ("bias", "all", "bias is none there and all here"),
        ("modules_to_save", ["lm_head"], 'modules_to_save is [] there and ["lm_head"] here'),
        ("rank_pattern", {"q_proj": 2}, 'rank_pattern is {} there and {"q_proj": 2} here'),
        (
            "target_parameters",
            ["experts.up"],
            'target_parameters is [] there and ["experts.up"] here',
        ),
        ("method", "loha", "method is lora there and loha here"),
        ("init_lora_weights", "eva", "init_lora_weights eva begins a new adapter"),
        ("init_lora_weights", "pissa", "init_lora_weights pissa begins a new adapter"),
        ("init_lora_weights", "loftq", "init_lora_weights loftq begins a new adapter"),
        ("init_lora_weights", "corda", "init_lora_weights corda begins a new adapter"),
        ("init_lora_weights", "gaussian", "init_lora_weights gaussian begins a new adapter"),
        ("eva_config", {"rho": 1.0}, "begins a new adapter"),
    ],
)
def test_what_contradicts_it_is_told_with_both_values_and_the_remedy(
    saved: str, field: str, value: Any, told: str
) -> None:
    (line,) = lines(adapter={"from": saved, field: value})
    assert line.startswith(f"adapter.from: {saved} contradicts what is written or sampled: ")
    assert told in line
    assert f"leave out adapter.{field}" in line
    assert told in refused(spec(adapter={"from": saved}), {f"adapter.{field}": value})


def test_all_contradictions_are_told_at_once(saved: str) -> None:
    (line,) = lines(adapter={"from": saved, "r": 8, "bias": "all"})
    assert "r is 4 there and 8 here; bias is none there and all here" in line
    assert "leave out adapter.r, adapter.bias, or begin anew without adapter.from" in line


def test_names_and_values_that_no_method_has_are_told_as_ever(saved: str) -> None:
    assert (
        "unknown key 'rr' in adapter; did you mean 'r'"
        in lines(adapter={"from": saved, "rr": 4})[0]
    )
    assert lines(adapter={"from": saved, "lora_dropout": 2})[0].startswith("adapter.lora_dropout:")
    assert lines(adapter={"from": 3}) == [
        "adapter.from: must be a mapping of keys to values, got 3"
    ]
    assert lines(adapter={"from": {"path": saved}})[0].startswith("adapter.from.")


def test_a_point_may_choose_what_it_goes_on_from(saved: str, tmp_path: Path) -> None:
    other = write_saved(tmp_path / "other", r=2, lora_alpha=4, lora_dropout=0.0)
    base = spec(adapter={"from": saved, "lora_dropout": 0.3})
    found: Any = base.with_params({"adapter.from": other}).adapter
    assert (found.r, found.lora_alpha, found.lora_dropout) == (2, 4, 0.3)
    fresh: Any = base.with_params({"adapter.from": None}).adapter
    assert (fresh.source, fresh.r, fresh.lora_dropout) == (None, 4, 0.3)
    plain = spec(adapter={"target_modules": "attention-qv", "lora_dropout": 0.2})
    found = plain.with_params({"adapter.from": saved}).adapter
    assert (found.r, found.target_modules, found.lora_dropout) == (4, "attention-qv", 0.2)
    written = spec(adapter={"r": 16})
    assert "r is 4 there and 16 here" in refused(written, {"adapter.from": saved})
    with pytest.raises(SpecError, match=r"^adapter.from: there is no folder /nowhere$"):
        plain.with_params({"adapter.from": "/nowhere"})
    another = {"adapter.from": saved, "adapter.method": "loha"}
    assert "method is lora there and loha here" in refused(plain, another)


def test_the_content_is_a_part_of_the_trial(saved: str, tmp_path: Path) -> None:
    before = spec(adapter={"from": saved})
    same = shutil.copytree(saved, tmp_path / "elsewhere")
    moved = spec(adapter={"from": str(same)})
    assert moved.adapter.source.sha256 == before.adapter.source.sha256  # type: ignore[union-attr]
    write_saved(Path(saved), value=0.02)
    after = spec(adapter={"from": saved})
    assert after.fingerprint() != before.fingerprint()
    (Path(saved) / "README.md").write_text("no part of the adapter")
    assert spec(adapter={"from": saved}) == after
    (Path(saved) / "labels.json").write_text('["a", "b"]')
    assert spec(adapter={"from": saved}) != after


def test_a_hash_that_is_written_must_be_that_of_the_files(saved: str) -> None:
    source = {"name_or_path": saved, "sha256": adapter_digest(Path(saved))}
    assert spec(adapter={"from": source}) == spec(adapter={"from": saved})
    (line,) = lines(adapter={"from": {**source, "sha256": "0" * 64}})
    assert (
        line
        == f"adapter.from: the files in {saved} have sha256 {source['sha256']}, and not "
        + ("0" * 64)
    )


def test_a_spec_with_the_hash_is_read_without_the_adapter(saved: str) -> None:
    trial = spec(adapter={"from": saved})
    text = trial.to_json()
    shutil.rmtree(saved)
    again = TrialSpec.model_validate_json(text)
    assert again == trial
    assert again.with_params({"seed": 4, "adapter.lora_dropout": 0.2}).adapter.source is not None
    assert "r is 4 there" in refused(again, {"adapter.r": 8})


def test_relative_paths_are_those_of_the_current_folder(
    saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(saved).parent)
    for written in ("saved", "./saved", "saved/"):
        assert spec(adapter={"from": written}) == spec(adapter={"from": saved})


def test_heads_that_peft_names_for_every_classifier_are_no_modules_to_save(tmp_path: Path) -> None:
    folder = write_saved(tmp_path / "a", modules_to_save=["classifier", "score", "embed_tokens"])
    assert spec(adapter={"from": folder}).adapter.modules_to_save == ("embed_tokens",)
    same = {"from": folder, "modules_to_save": ["score", "embed_tokens"]}
    assert spec(adapter=same).adapter.modules_to_save == ("embed_tokens",)


OTHER_METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ia3": ({"peft_type": "IA3", "feedforward_modules": ["v_proj"]}, {}),
    "loha": ({"peft_type": "LOHA", "alpha": 3}, {"r": 4, "alpha": 3}),
    "oft": ({"peft_type": "OFT", "r": 0, "oft_block_size": 16}, {"oft_block_size": 16}),
    "miss": ({"peft_type": "MISS", "init_weights": "bat"}, {"r": 4, "init_weights": "bat"}),
    "ln_tuning": ({"peft_type": "LN_TUNING"}, {"target_modules": ("q_proj", "v_proj")}),
    "hra": ({"peft_type": "HRA", "apply_GS": True}, {"r": 4, "apply_GS": True}),
}


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_the_method_is_the_saved_adapters(tmp_path: Path, method: str) -> None:
    settings, expected = OTHER_METHODS[method]
    folder = write_saved(tmp_path / "a", **settings)
    adapter = spec(quantization="none", adapter={"from": folder}).adapter
    assert adapter.method == method
    assert {name: getattr(adapter, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "PEFT does not train virtual tokens that were loaded"),
        ({"peft_type": "P_TUNING"}, "p_tuning cannot be gone on from"),
        (
            {"peft_type": "PREFIX_TUNING", "prefix_projection": True},
            "prefix_tuning cannot be gone on from",
        ),
        ({"peft_type": "PREFIX_TUNING"}, "p_tuning_v2 cannot be gone on from"),
        ({"peft_type": "ADALORA"}, "its ranks were cut to their end; merge it"),
        ({"peft_type": "FULL"}, "export it with --to merged, and give that as `model`"),
        ({"peft_type": "XLORA"}, "is xlora, not offered: it mixes adapters"),
        ({"peft_type": "LORRA"}, "unknown peft_type of"),
        ({"peft_type": 7}, "has no `peft_type`"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4, which changes weights"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "the settings of the adapter in"),
        ({"bias": "some"}, "are not offered: bias: must be 'none', 'all' or 'lora_only'"),
        ({"target_modules": None}, "target_modules must name at least one module"),
        ({"target_modules": 7}, "are not offered: target_modules: must be"),
        ({"modules_to_save": 7}, "are not offered: modules_to_save: must be a list"),
        ({"rank_pattern": [1]}, "are not offered: rank_pattern: must be"),
        ({"peft_type": "BOTTLENECK", "adapter": {"placement": "x"}}, "placement: must be"),
    ],
)
def test_what_cannot_be_gone_on_from_is_told(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    (line,) = lines(adapter={"from": write_saved(tmp_path / "a", **settings)})
    assert line.startswith("adapter.from: ")
    assert told in line


def test_what_the_method_cannot_do_is_told_as_of_a_fresh_one(tmp_path: Path) -> None:
    folder = write_saved(tmp_path / "a", peft_type="LOHA")
    (line,) = lines(adapter={"from": folder})  # the base is nf4
    assert line == "adapter.method: loha needs quantization.scheme none, got nf4"


Break = Callable[[Path], object]


def edited(path: Path) -> None:
    path.write_text(path.read_text() + "}")


BROKEN: dict[str, tuple[Break, str]] = {
    "gone": (shutil.rmtree, "there is no folder"),
    "no settings": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "a model": (
        lambda f: (f / "adapter_config.json").rename(f / "config.json"),
        "holds a whole model and no adapter_config.json: give it as `model` instead",
    ),
    "broken settings": (lambda f: edited(f / "adapter_config.json"), "cannot be read"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "has no `peft_type`"),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors",
    ),
    "pickled weights": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "holds pickled weights, which can run code and are refused",
    ),
    "no bytes": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b""),
        "is no safetensors file",
    ),
    "junk": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"junk" * 99),
        "is no safetensors file: its header has no sensible length",
    ),
    "cut off": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(
            (f / "adapter_model.safetensors").read_bytes()[:-100]
        ),
        "is not whole",
    ),
    "empty": (lambda f: write_saved(f, {}), "holds no weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_used_are_one_clear_mistake(saved: str, name: str) -> None:
    spoil, told = BROKEN[name]
    spoil(Path(saved))
    (line,) = lines(adapter={"from": saved})
    assert line.startswith("adapter.from: ")
    assert told in line


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", "no such thing"])
def test_a_name_that_neither_disk_nor_hub_knows(name: str) -> None:
    (line,) = lines(adapter={"from": name})
    told = "is neither a folder here nor an adapter that the Hugging Face Hub gives"
    assert line.startswith(f"adapter.from: {name} {told}")


@pytest.mark.parametrize("name", ["/" + "x" * 5000, "~nobody-of-this-name/a"])
def test_a_path_that_no_system_takes(name: str) -> None:
    (line,) = lines(adapter={"from": name})
    assert line.startswith("adapter.from: ")
    assert "is no path that can be used (" in line


def test_a_file_is_no_adapter(saved: str) -> None:
    (line,) = lines(adapter={"from": f"{saved}/adapter_config.json"})
    assert line.endswith("is a file; give the folder that holds the adapter")


def test_an_adapter_of_the_hub_is_read_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as the Hub's client lays it out; a branch's commit is in `refs`."""
    commit = "c" * 40
    repository = tmp_path / "models--somebody--stories"
    write_saved(repository / "snapshots" / commit, r=2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    trial = spec(adapter={"from": "somebody/stories"})
    adapter: Any = trial.adapter
    assert (adapter.r, adapter.source.name_or_path) == (2, "somebody/stories")
    assert saved_adapter(adapter).folder == repository / "snapshots" / commit
    (line,) = lines(adapter={"from": {"name_or_path": "somebody/stories", "revision": "v9"}})
    assert "somebody/stories@v9 is neither" in line


def test_own_bottlenecks_go_on_too(tmp_path: Path) -> None:
    own = {"method": "bottleneck", "reduction_factor": 4, "adapter_dropout": 0.1}
    folder = write_saved(tmp_path / "a", peft_type="BOTTLENECK", adapter=own, targets=[], whole=[])
    adapter: Any = spec(adapter={"from": folder}).adapter
    assert (adapter.method, adapter.reduction_factor, adapter.adapter_dropout) == (
        "bottleneck",
        4,
        0.1,
    )
    assert json.loads(spec(adapter={"from": folder}).to_json())["adapter"]["from"]["sha256"]
