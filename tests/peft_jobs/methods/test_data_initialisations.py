"""EVA and CorDA on an encoder with a decoder: what they look at, and trials that begin so."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.engines.solo.adapter_export import merge_adapter
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.methods import METHODS
from peft_jobs.methods.lora import EVA_ROWS
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import IGNORED, TASKS

R = 2


@pytest.fixture(scope="module")
def t5_path(tmp_path_factory: pytest.TempPathFactory, tiny_bert_path: Path) -> Path:
    """Random T5ForConditionalGeneration of 2 layers, with the words of the tiny BERT."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    sizes = {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2}
    tokens = {"pad_token_id": 5, "eos_token_id": 4, "decoder_start_token_id": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5Config(**sizes, **tokens, num_heads=4, dropout_rate=0.0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_path)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def spec(t5_path: Path, tmp_path: Path) -> Any:
    """(initialisation) -> a trial with sources of 6 tokens, and targets of 2 but for a few of 6."""
    path = tmp_path / "rows.jsonl"
    words = ("the", "a", "red", "green", "cat", "dog", "bird", "sees", "likes")
    rows = [
        {
            "q": f"the {words[i % 9]} {words[i // 9 % 9]} sees",
            "a": " ".join(words[(i + j) % 9] for j in range(5 if i % 8 == 0 else 1)),
        }
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def build(name: str, **adapter: Any) -> TrialSpec:
        return TrialSpec.model_validate(
            {
                "model": str(t5_path),
                "task": {"type": "seq2seq", "source": "{q}", "target": "{a}"},
                "data": {"train": str(path), "validation": 0.2},
                "adapter": {"r": R, "init_lora_weights": name, **adapter},
                "training": {"max_steps": 2, "learning_rate": 5e-3},
            }
        )

    return build


@pytest.fixture
def engine(tmp_path: Path) -> SoloEngine:
    return SoloEngine(str(tmp_path / "cache"), threads=1)


@pytest.mark.parametrize("name", ["eva", "corda"])
def test_a_trial_from_source_to_target_begins_with_what_the_data_show(
    engine: SoloEngine, listen: Any, spec: Any, tmp_path: Path, name: str
) -> None:
    run = listen(engine, tmp_path / "trial")
    result = run.run(spec(name))
    assert result.error is None, result.traceback
    folder = run.folder / "attempts/1/adapter"
    merged = merge_adapter(spec(name).to_json(), folder, tmp_path / "merged", tmp_path / "cache")
    assert merged["validation/loss"] == pytest.approx(result.metrics["validation/loss"], abs=1e-4)


@pytest.mark.parametrize("layer", ["SelfAttention.q", "EncDecAttention.q", "EncDecAttention.k"])
def test_eva_begins_with_the_principal_components_of_the_tokens_that_a_layer_sees(
    engine: SoloEngine, spec: Any, layer: str
) -> None:
    number = 0 if layer.startswith("Self") else 1
    place = f"decoder.block.1.layer.{number}.{layer}"
    eva = spec("eva", target_modules=[place], eva_config={"rho": 1.0})
    base, data = engine.check(eva)
    seen = seen_by(base.model, data.train, place, of_source=layer.endswith("k"))
    centred = seen - seen.mean(dim=0)
    components = torch.linalg.svd(centred, full_matrices=False).Vh[:R]
    model = METHODS["lora"].attach(base, eva, rows=data.train)
    found = model.get_submodule(f"base_model.model.{place}").lora_A["default"].weight.detach()
    cosines = torch.linalg.svdvals(components @ torch.nn.functional.normalize(found).T)
    METHODS["lora"].detach(model)
    assert cosines.min() > math.cos(math.radians(20))


def seen_by(model: Any, rows: Any, place: str, of_source: bool) -> torch.Tensor:
    """A layer's inputs at every real token, one row at a time: nothing is padded."""
    found: list[torch.Tensor] = []
    layer = model.get_submodule(place)
    handle = layer.register_forward_hook(lambda _, inputs, __: found.append(inputs[0][0]))
    with torch.no_grad():
        for row in rows.select(range(min(len(rows), EVA_ROWS))):
            batch = TASKS["seq2seq"].collate([row], pad_token_id=5)
            assert (batch["labels"] != IGNORED).all()
            expected = batch["input_ids" if of_source else "labels"].shape[1]
            model(input_ids=batch["input_ids"], labels=batch["labels"])
            assert len(found[-1]) == expected
    handle.remove()
    return torch.cat(found)
