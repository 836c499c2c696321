"""A classifier that reads the last position of a row never reads padding there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    XLNetConfig,
    XLNetLMHeadModel,
)

from peft_jobs.base.loading import load_base
from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.solo.adapter_export import merge_adapter
from peft_jobs.errors import SpecError
from peft_jobs.spec import (
    CausalLMSpec,
    ModelSpec,
    QuantizationSpec,
    SequenceClassificationSpec,
    TrialSpec,
)
from peft_jobs.tasks import TASKS
from tests.peft_jobs.conftest import NUM_TOKENS, save_tokenizer
from tests.peft_jobs.engines.solo.test_adapter_export import train

WORDS = ("cat", "dog", "bird", "sees", "likes", "red")


@pytest.fixture(scope="module")
def xlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xlnet")
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        XLNetLMHeadModel(
            XLNetConfig(vocab_size=NUM_TOKENS, initializer_range=0.2, pad_token_id=5, **sizes)
        ).save_pretrained(folder)
    save_tokenizer(folder, bert=True)
    return folder


@pytest.fixture
def classifier(xlnet: Path, tmp_path: Path) -> TrialSpec:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": " ".join(WORDS[: 1 + i % 6]), "label": "ab"[i % 2]} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrialSpec.model_validate(
        {
            "model": str(xlnet),
            "adapter": {"r": 4},
            "task": {"type": "sequence_classification", "text": "{text}", "label": "label"},
            "data": {"train": str(path), "validation": str(path), "max_length": 64},
            "training": {"learning_rate": 1e-2, "max_steps": 3},
        }
    )


def test_logits_of_an_xlnet_are_the_same_alone_and_in_a_batch(classifier: TrialSpec) -> None:
    base = load_base(classifier.model, classifier.quantization, classifier.task, labels=["a", "b"])
    rows = [list(range(7, 7 + length)) for length in (3, 9, 6, 1)]
    task = TASKS["sequence_classification"]
    examples = [{"input_ids": row, "label": 0} for row in rows]
    with torch.no_grad():
        alone = [base.model(input_ids=torch.tensor([row], device=base.device)) for row in rows]
        wanted = torch.cat([output.logits for output in alone]).float()
        batch = task.collate(examples, base.tokenizer.pad_token_id)
        batch = {name: value.to(base.device) for name, value in batch.items()}
        losses = task.losses(base.model, batch)
    expected = torch.nn.functional.cross_entropy(wanted, batch["labels"], reduction="none")
    assert torch.allclose(losses, expected, atol=1e-5)
    assert wanted.std(dim=0).min() > 1e-3  # the rows differ
    assert base.tokenizer.padding_side == "left"
    assert "reads the last position" in str(unpackable(classifier, base))


@pytest.mark.parametrize(
    ("family", "summary", "is_right"),
    [
        *(("xlnet", "first", True), ("xlnet", "cls_index", True), ("xlnet", "mean", False)),
        *(("xlm", "first", True), ("xlm", "mean", False), ("xlm", "last", False)),
        *(("flaubert", "first", True), ("flaubert", "mean", False)),
    ],
)
def test_what_a_classifier_says_of_a_row_does_not_depend_on_the_rows_beside_it(
    family: str, summary: str, is_right: bool, tmp_path: Path
) -> None:
    sizes = {"vocab_size": NUM_TOKENS, "n_layer": 2, "pad_token_id": 5, "summary_type": summary}
    sizes |= {"emb_dim": 32, "n_heads": 2} if family != "xlnet" else {"d_model": 32, "n_head": 2}
    config = AutoConfig.for_model(family, **sizes, d_inner=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bert=True)
    spec = SequenceClassificationSpec(type="sequence_classification", text="{t}", label="y")
    model, none = ModelSpec(name_or_path=str(tmp_path)), QuantizationSpec(scheme="none")
    if not is_right:
        with pytest.raises(SpecError, match=rf"takes '{summary}' of the positions of a row"):
            load_base(model, none, spec, labels=["a", "b"])
        return
    base, task = load_base(model, none, spec, labels=["a", "b"]), TASKS["sequence_classification"]
    examples = [{"input_ids": list(range(7, 7 + n)), "label": 0} for n in (3, 9, 1)]
    with torch.no_grad():
        together, *alone = (
            task.losses(base.model, task.collate(some, base.tokenizer.pad_token_id))
            for some in (examples, *([example] for example in examples))
        )
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_an_xlnet_classifier_is_trained_and_its_merge_scores_the_same_in_plain_transformers(
    classifier: TrialSpec, tmp_path: Path
) -> None:
    result, adapter = train(classifier, tmp_path)
    merge_adapter(classifier.to_json(), adapter, tmp_path / "merged", tmp_path / "cache")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    wanted = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    loss = torch.nn.functional.cross_entropy(logits, wanted).item()
    assert tokenizer.padding_side == "left"
    assert loss == pytest.approx(result.metrics["validation/loss"], rel=1e-4)


@pytest.mark.parametrize("last", [0, 2])  # the type that XLNet's tokenizer gives its last token
def test_types_of_tokens_reach_the_model_where_the_tokenizer_tells_them_apart(
    last: int, xlnet: Path, tmp_path: Path, classifier: TrialSpec
) -> None:
    shutil.copytree(xlnet, tmp_path / "typed")
    path = tmp_path / "typed" / "tokenizer.json"
    about = json.loads(path.read_text())
    about["post_processor"]["single"][-1]["SpecialToken"]["type_id"] = last
    path.write_text(json.dumps(about))
    tokenizer = AutoTokenizer.from_pretrained(
        tmp_path / "typed", model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    )
    task = TASKS["sequence_classification"]
    assert ("token_type_ids" in task.features(tokenizer, classifier.task)) == (last == 2)
    example = task.encoder(tokenizer, classifier.task, 64, ["a", "b"])(
        {"text": "cat", "label": "a"}
    )
    assert example is not None
    assert example.get("token_type_ids", [0, 0, 0])[-1] == last


def test_an_xlnet_attends_to_later_tokens_and_is_no_causal_model(xlnet: Path) -> None:
    model, none = ModelSpec(name_or_path=str(xlnet)), QuantizationSpec(scheme="none")
    with pytest.raises(SpecError, match="attends to later tokens"):
        load_base(model, none, CausalLMSpec(response="{text}"))
