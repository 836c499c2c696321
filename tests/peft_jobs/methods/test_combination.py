"""Combinations of saved adapters: against updates that are added up by hand, layer by layer."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from peft_jobs.methods.combination import combine, load_together, save_combined
from peft_jobs.spec.combination import CombinationSpec

ALL = ("q_proj", "v_proj", "down_proj")
WEIGHTS = {"one": 0.5, "two": 0.75, "three": -0.25}
Load = Callable[[], LlamaForCausalLM]


@pytest.fixture(scope="module")
def base() -> Load:
    """Makes the same small Llama at every call."""

    def make() -> LlamaForCausalLM:
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 40}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval()

    return make


def save(base: Load, folder: Path, seed: int, **options: Any) -> Path:
    """A LoRA with random factors, as PEFT saves it."""
    settings = {"r": 4, "lora_alpha": 12, "target_modules": list(ALL), **options}
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def folders(base: Load, tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Options by adapter -> three saved ones."""

    def make(**options: Mapping[str, Any]) -> dict[str, Path]:
        return {
            name: save(base, tmp_path / name, seed, **options.get(name, {}))
            for seed, name in enumerate(WEIGHTS)
        }

    return make


def factors(folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the scale by module, read from the files alone."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    weights = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, down in weights.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
            r = down.shape[0]
            alphas = settings["alpha_pattern"].items()
            given = [value for key, value in alphas if module.endswith(key)]
            alpha = given[0] if given else settings["lora_alpha"]
            scale = alpha / (r**0.5 if settings["use_rslora"] else r)
            found[module] = (down, weights[name.replace("lora_A", "lora_B")], scale)
    return found


def updates(folder: Path) -> dict[str, Tensor]:
    """What an adapter adds to each weight of the base."""
    return {module: scale * (up @ down) for module, (down, up, scale) in factors(folder).items()}


def weighted_sum(adapters: Mapping[str, Path]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for name, folder in adapters.items():
        for module, update in updates(folder).items():
            total[module] = total.get(module, torch.zeros_like(update)) + WEIGHTS[name] * update
    return total


def combined(base: Load, adapters: Mapping[str, Path], out: Path, **how: Any) -> Path:
    out.mkdir()
    model = load_together(base(), adapters)
    weights = {name: WEIGHTS[name] for name in adapters}
    combine(model, "soup", weights, CombinationSpec(**how))
    save_combined(model, "soup", out)
    return out


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for module, update in expected.items():
        torch.testing.assert_close(found[module], update, rtol=0, atol=1e-5)


CASES: dict[str, dict[str, Any]] = {
    "alike": {},
    "other ranks and targets": {
        "two": {"r": 2, "target_modules": ["q_proj"]},
        "three": {"r": 6, "target_modules": ["v_proj", "down_proj"]},
    },
    "rslora first": {"one": {"use_rslora": True}},
    "rslora all": {name: {"use_rslora": True} for name in WEIGHTS},
    "patterns": {
        "one": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
        "two": {"rank_pattern": {"v_proj": 8}},
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", [{"type": "cat"}, {"type": "svd", "rank": 16}], ids=str)
def test_updates_add_up(
    case: str, how: dict[str, Any], base: Load, folders: Any, tmp_path: Path
) -> None:
    adapters = folders(**CASES[case])
    out = combined(base, adapters, tmp_path / "out", **how)
    assert_same(updates(out), weighted_sum(adapters))


def test_the_combination_is_what_plain_peft_merges(
    base: Load, folders: Any, tmp_path: Path
) -> None:
    adapters = folders()
    out = combined(base, adapters, tmp_path / "out", type="cat")
    by_hand, plain = base(), base()
    with torch.no_grad():
        for module, update in weighted_sum(adapters).items():
            by_hand.get_submodule(module).weight += update
    merged = PeftModel.from_pretrained(plain, str(out)).merge_and_unload()
    tokens = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(merged(tokens).logits, by_hand(tokens).logits, rtol=0, atol=1e-5)
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), parameter, rtol=0, atol=1e-5)


def test_svd_of_a_small_rank_is_the_nearest_update(
    base: Load, folders: Any, tmp_path: Path
) -> None:
    adapters = folders()
    found = updates(combined(base, adapters, tmp_path / "out", type="svd", rank=3))
    for module, update in weighted_sum(adapters).items():
        values = torch.linalg.svdvals(update)
        error = torch.linalg.matrix_norm(found[module] - update)
        torch.testing.assert_close(error, values[3:].norm(), rtol=1e-4, atol=1e-5)  # Eckart-Young


def test_a_layer_that_is_narrower_than_the_rank_loads_again(
    base: Load, folders: Any, tmp_path: Path
) -> None:
    adapters = folders()
    out = combined(base, adapters, tmp_path / "out", type="svd", rank=20)
    assert {down.shape[0] for down, _, _ in factors(out).values()} == {20}
    assert_same(updates(out), weighted_sum(adapters))
    PeftModel.from_pretrained(base(), str(out))


def test_linear_adds_factors_up(base: Load, folders: Any, tmp_path: Path) -> None:
    adapters = folders(two={"lora_alpha": 3})
    out = factors(combined(base, adapters, tmp_path / "out", type="linear"))
    for module, (down, up, scale) in out.items():
        parts = [(WEIGHTS[n], *factors(f)[module]) for n, f in adapters.items()]
        roots = [(abs(w * s) ** 0.5, 1 if w > 0 else -1) for w, _, _, s in parts]
        assert scale == 1
        a = sum(root * sign * part[1] for (root, sign), part in zip(roots, parts, strict=True))
        b = sum(root * part[2] for (root, _), part in zip(roots, parts, strict=True))
        torch.testing.assert_close(down, a, rtol=0, atol=1e-5)
        torch.testing.assert_close(up, b, rtol=0, atol=1e-5)


def trimmed(update: Tensor, density: float) -> Tensor:
    """The largest of its elements, by size; zeros elsewhere."""
    kept = int(density * update.numel())
    least = update.abs().flatten().sort(descending=True).values[kept - 1]
    return torch.where(update.abs() >= least, update, torch.zeros(()))


def test_ties_elects_signs_and_takes_means(base: Load, folders: Any, tmp_path: Path) -> None:
    adapters = folders()
    out = updates(combined(base, adapters, tmp_path / "out", type="ties_svd", density=0.5, rank=16))
    for module, found in out.items():
        parts = {name: trimmed(updates(f)[module], 0.5) for name, f in adapters.items()}
        total = torch.stack([*parts.values()]).sum(0)
        expected = torch.zeros_like(total)
        for place in torch.cartesian_prod(*map(torch.arange, total.shape)).tolist():
            row, column = place
            sign = 1 if total[row, column] >= 0 else -1
            agreeing = [
                WEIGHTS[name] * float(part[row, column])
                for name, part in parts.items()
                if torch.sign(part[row, column]) == sign
            ]
            expected[row, column] = sum(agreeing) / max(1, len(agreeing))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_mean_by_ties_has_weights_of_one() -> None:
    ties = CombinationSpec(type="ties", density=0.2)
    assert ties.equal_weights(4) == [1, 1, 1, 1]
    assert CombinationSpec(type="svd").equal_weights(4) == [0.25] * 4


def test_magnitudes_are_pruned(base: Load, folders: Any, tmp_path: Path) -> None:
    adapters = folders()
    how = {"type": "magnitude_prune_svd", "density": 0.25, "rank": 16}
    found = updates(combined(base, adapters, tmp_path / "out", **how))
    for module, update in found.items():
        parts = (WEIGHTS[n] * trimmed(updates(f)[module], 0.25) for n, f in adapters.items())
        torch.testing.assert_close(update, torch.stack([*parts]).sum(0), rtol=0, atol=1e-4)


def test_what_dare_drops_follows_from_a_seed(base: Load, folders: Any, tmp_path: Path) -> None:
    adapters = folders()
    how = {"type": "dare_linear", "density": 0.5}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(factors(combined(base, adapters, tmp_path / f"out-{seed}", **how)))
    for module, (down, up, _) in found[0].items():
        assert torch.equal(down, found[1][module][0])
        assert torch.equal(up, found[1][module][1])
        assert 0.05 < float((down == 0).float().mean()) < 0.25  # an eighth: all three are dropped


def test_vectors_of_ia3_are_averaged(base: Load, tmp_path: Path) -> None:
    folders = {}
    for seed, name in enumerate(("one", "two")):
        config = IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        )
        model = get_peft_model(base(), config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "ia3_" in key:
                    parameter.normal_(mean=1, std=0.3)
        folders[name] = tmp_path / name
        model.save_pretrained(str(folders[name]))
    out = tmp_path / "out"
    out.mkdir()
    model = load_together(base(), folders)
    combine(model, "soup", {"one": 0.25, "two": 0.75}, CombinationSpec(type="linear"))
    save_combined(model, "soup", out)
    one, two, soup = (
        safetensors.torch.load_file(folder / "adapter_model.safetensors")
        for folder in (*folders.values(), out)
    )
    assert soup.keys() == one.keys()
    for name, value in soup.items():
        torch.testing.assert_close(value, 0.25 * one[name] + 0.75 * two[name])
    PeftModel.from_pretrained(base(), str(out))


def test_those_combined_stay_and_can_be_switched(base: Load, folders: Any) -> None:
    adapters = folders()
    tokens = torch.arange(6).reshape(1, 6)
    alone = {
        name: PeftModel.from_pretrained(base(), str(folder)).eval()(tokens).logits
        for name, folder in adapters.items()
    }
    model = load_together(base(), adapters)
    combine(model, "soup", WEIGHTS, CombinationSpec())
    for name, logits in alone.items():
        model.set_adapter(name)
        torch.testing.assert_close(model(tokens).logits, logits)
