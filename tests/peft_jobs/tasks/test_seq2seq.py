"""Sources and targets of every family of encoders and decoders, against plain transformers."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from peft_jobs.base.loading import Base, load_base
from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import ModelSpec, QuantizationSpec, Seq2SeqSpec, TrialSpec
from peft_jobs.tasks import IGNORED, TASKS
from tests.support.seq2seq_families import FAMILIES, LAYERS, save, words

TASK = TASKS["seq2seq"]
ROWS = [{"q": "a red fox", "a": "ein fuchs."}, {"q": "an owl", "a": "eine sehr alte eule ruft."}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name of a family -> its folder"""

    @functools.cache
    def build(family: str) -> Path:
        return save(family, tmp_path_factory.mktemp("family"))

    return build


def section(family: str, **fields: Any) -> Seq2SeqSpec:
    given = {"type": "seq2seq", "source": "{q}", "target": "{a}", **FAMILIES[family][3], **fields}
    return Seq2SeqSpec(**given)


def loaded(folder: Path, task: Seq2SeqSpec) -> Base:
    return load_base(ModelSpec(name_or_path=str(folder)), QuantizationSpec(scheme="none"), task)


def plain(folder: Path, task: Seq2SeqSpec) -> Any:
    """The tokenizer as a person would set it up."""
    languages = {}
    if task.target_language:
        languages = {"src_lang": task.source_language, "tgt_lang": task.target_language}
    return tf.AutoTokenizer.from_pretrained(folder, **languages)


@pytest.mark.parametrize("max_target_length", [6, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_loss_are_those_of_plain_transformers(
    family: str, max_target_length: int, checkpoint: Any
) -> None:
    folder = checkpoint(family)
    task = section(family, max_target_length=max_target_length)
    base = loaded(folder, task)
    encode = TASK.encoder(base.tokenizer, task, 8, ())
    examples: list[Any] = [encode(row) for row in ROWS]
    tokenizer = plain(folder, task)
    model = tf.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    total, count = 0.0, 0
    for row, example in zip(ROWS, examples, strict=True):
        inputs = tokenizer(row["q"], truncation=True, max_length=8)
        cut = {"truncation": True, "max_length": max_target_length}
        labels = tokenizer(text_target=row["a"], **cut)["input_ids"]
        assert example["input_ids"] == inputs["input_ids"]
        assert example["labels"] == labels
        text = tokenizer.decode(labels, skip_special_tokens=True)
        assert example["num_bytes"] == len(text.encode())
        with torch.no_grad():
            given = {name: torch.tensor([values]) for name, values in inputs.items()}
            loss = model(**given, labels=torch.tensor([labels])).loss
        total, count = total + loss.item() * len(labels), count + len(labels)
    batch = TASK.collate(examples, base.tokenizer.pad_token_id)
    kept = batch["labels"].clone()
    with torch.no_grad():
        together = TASK.metrics(TASK.scores(base.model, batch))["loss"]
    assert together == pytest.approx(total / count, rel=1e-5 if "Switch" in family else 1e-6)
    assert torch.equal(batch["labels"], kept), "a batch is nobody's to write into"
    assert TASK.count(batch) == count


@pytest.mark.parametrize("family", ["T5", "BART", "mBART", "mBART-50", "NLLB"])
def test_special_tokens_that_are_written_too_stand_once(family: str, checkpoint: Any) -> None:
    task = section(family)
    tokenizer = loaded(checkpoint(family), task).tokenizer
    expected: Any = TASK.encoder(tokenizer, task, 64, ())(ROWS[0])

    def around(text: str, target: bool) -> str:
        name = "text_target" if target else "text"
        whole = tokenizer.convert_ids_to_tokens(tokenizer(**{name: "a"})["input_ids"])
        place = whole.index("a")
        before = "".join(whole[: place - 1])
        return f"{before}{before}{text}{' '.join(whole[place + 1 :])}</s> \n"

    written = {"q": around("a red fox", False), "a": around("ein fuchs.", True)}
    assert written["a"] != ROWS[0]["a"]
    found = TASK.encoder(tokenizer, task, 64, ())(written)
    assert found == expected
    inside: Any = TASK.encoder(tokenizer, task, 64, ())({"q": "a", "a": "b</s>c"})
    assert inside["labels"].count(tokenizer.eos_token_id) == 2, "within a text it stays"
    assert inside["num_bytes"] == len("bc")


def test_fsmt_reads_the_targets_of_its_batch_and_leaves_them_alone() -> None:
    sizes = {"src_vocab_size": 40, "tgt_vocab_size": 40, "langs": ["en", "de"]}
    fsmt = {name: value for name, value in LAYERS.items() if name != "decoder_start_token_id"}
    torch.manual_seed(0)
    model = tf.FSMTForConditionalGeneration(tf.FSMTConfig(**fsmt, **sizes)).eval()
    examples = [{"input_ids": [5, 2], "labels": [6, 7, 2]}, {"input_ids": [5], "labels": [8, 2]}]
    batch = TASK.collate([example | {"num_bytes": 1} for example in examples], 1)
    shifted = torch.tensor([[2, 6, 7], [2, 8, 2]])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=shifted, use_cache=False).logits.transpose(1, 2)
        theirs = torch.nn.functional.cross_entropy(logits, batch["labels"])
        ours = TASK.losses(model, batch).sum() / TASK.count(batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert batch["labels"][1, -1] == IGNORED


def test_a_loss_of_several_tokens_at_a_time_is_not_ours(tmp_path: Path) -> None:
    """ProphetNet predicts some tokens ahead too, unless its checkpoint says otherwise."""
    sizes = {name: value for name, value in LAYERS.items() if name not in ("dropout", "d_model")}
    settings = {f"num_{name}": n for name, n in sizes.items() if name.endswith(("layers", "heads"))}
    settings |= {name: n for name, n in sizes.items() if f"num_{name}" not in settings}
    task, tokenizer = section("T5"), words("$A </s>")
    for disabled, message in ((False, "set disable_ngram_loss to true"), (True, None)):
        config = tf.ProphetNetConfig(
            hidden_size=16, vocab_size=len(tokenizer), disable_ngram_loss=disabled, **settings
        )
        tf.ProphetNetForConditionalGeneration(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        if message is not None:
            with pytest.raises(SpecError, match=message):
                loaded(tmp_path, task)
            continue
        base = loaded(tmp_path, task)
        batch = TASK.collate([TASK.encoder(tokenizer, task, 8, ())(row) for row in ROWS], 1)  # type: ignore[misc]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with torch.no_grad():
            theirs = base.model(**inputs).loss
            ours = TASK.losses(base.model, batch).sum() / TASK.count(batch)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_texts_of_nothing_but_marks_and_room_for_nothing_else_are_told() -> None:
    tokenizer, task = words("<s> $A </s>"), section("BART", target="{a}</s>")
    encode = TASK.encoder(tokenizer, task, 64, ())
    with pytest.raises(DataError, match=r"the target is empty \(column 'a'\)"):
        encode({"q": "a", "a": " "})
    with pytest.raises(DataError, match=r"the source is empty \(column 'q'\)"):
        encode({"q": "<s> </s>", "a": "b"})
    with pytest.raises(SpecError, match=r"data.max_length must be > 2, .* got 2"):
        TASK.encoder(tokenizer, task, 2, ())
    with pytest.raises(SpecError, match=r"task.max_target_length must be > 2, .* got 1"):
        TASK.encoder(tokenizer, section("BART", max_target_length=1), 64, ())


@pytest.mark.parametrize("family", ["T5", "BART", "NLLB"])
def test_a_decoder_that_nothing_begins_is_told(family: str, checkpoint: Any) -> None:
    base = loaded(checkpoint(family), section(family))
    base.model.config.decoder_start_token_id = None
    batch = TASK.collate([{"input_ids": [5, 2], "labels": [6, 2], "num_bytes": 1}], 1)
    with pytest.raises(SpecError, match=r"give the decoder_start_token_id in its config\.json"):
        TASK.losses(base.model, batch)


def test_a_target_that_nothing_ends_is_told(tmp_path: Path) -> None:
    tokenizer = words("<s> $A")
    encode = TASK.encoder(tokenizer, section("T5"), 64, ())
    with pytest.raises(DataError, match=r"nothing ends the target.* in task.target \(\{a\}</s>\)"):
        encode(ROWS[0])
    ended: Any = TASK.encoder(tokenizer, section("T5", target="{a}</s>"), 64, ())(ROWS[0])
    assert ended["labels"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("family", "languages", "message"),
    [
        ("NLLB", {"source_language": None}, r"task.source_language must be given.*eng_Latn"),
        ("NLLB", {"target_language": None}, r"task.target_language must be given.*eng_Latn"),
        ("NLLB", {"target_language": "deu_Latin"}, r"'deu_Latin' is no .* did you mean 'deu_Latn'"),
        ("NLLB", {"target_language": "a"}, r"task.target_language: 'a' is no language of"),
        ("mBART", {"source_language": "de"}, r"task.source_language: 'de' is no .*known: ar_AR"),
        ("mBART-50", {"target_language": "xx_XX"}, r"'xx_XX' is no language of"),
        ("BART", {"target_language": "de_DE"}, r"knows no languages, got 'de_DE'; leave it out"),
    ],
)
def test_languages_are_asked_for_where_they_are_needed(
    family: str, languages: dict[str, Any], message: str, checkpoint: Any
) -> None:
    with pytest.raises(SpecError, match=message):
        loaded(checkpoint(family), section(family, **languages))


def test_a_checkpoint_that_names_its_languages_needs_no_more(
    checkpoint: Any, tmp_path: Path
) -> None:
    import shutil

    asked = loaded(checkpoint("NLLB"), section("NLLB")).tokenizer
    shutil.copytree(checkpoint("NLLB"), tmp_path, dirs_exist_ok=True)
    asked.save_pretrained(tmp_path)
    bare = section("NLLB", source_language=None, target_language=None)
    again = loaded(tmp_path, bare).tokenizer
    encoders = [TASK.encoder(t, bare, 64, ()) for t in (asked, again)]
    first, second = (encode(ROWS[0]) for encode in encoders)
    assert first == second


def test_languages_are_in_a_spec_only_where_they_are_given() -> None:
    trial = {"model": "m", "task": {"type": "seq2seq", "source": "{q}", "target": "{a}"}}
    spec = TrialSpec.model_validate({**trial, "data": {"train": "x.jsonl"}})
    assert "source_language" not in spec.to_json()
    german = spec.with_params({"task.target_language": "deu_Latn"})
    assert german.task.target_language == "deu_Latn"  # type: ignore[attr-defined]
    assert TrialSpec.model_validate_json(german.to_json()) == german != spec
