"""The demo's files: made by their generators, self-contained, and small."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_jobs.demo import BASE, DATA
from peft_jobs.demo.records import splits, write

MAX_LENGTH = 128


def rows(split):
    return [json.loads(line) for line in DATA[split].read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True)


def test_generator_reproduces_the_committed_splits(tmp_path):
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in DATA.values())
    for path in DATA.values():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_splits_share_no_records():
    records = [row["record"] for split in DATA for row in rows(split)]
    assert len(records) == len(set(records)) == sum(map(len, splits().values())) >= 1400


def test_every_notice_repeats_what_its_record_says():
    for split in DATA:
        for row in rows(split):
            ship, kind, port, cargo, _, late, berth, _ = row["record"].split("|")
            words, amount = cargo.rsplit(" ", 1)
            said = [ship, kind, port, f"{int(amount):,}", words, berth[1:]]
            assert [word for word in said if word not in row["sentence"]] == []
            delays = ("half an hour" in row["sentence"]) or ("minutes" in row["sentence"])
            assert delays == (0 < int(late) < 60)


def test_files_are_small():
    assert sum(path.stat().st_size for path in DATA.values()) <= 400_000
    assert (BASE / "model.safetensors").stat().st_size <= 2_600_000
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 2_700_000


def test_linear_widths_are_multiples_of_the_4bit_block(model):
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    assert len(layers) == 7 * model.config.num_hidden_layers
    assert {width % 64 for layer in layers for width in layer.weight.shape} == {0}
    assert model.config.tie_word_embeddings


def test_tokenizer_round_trips_every_row(tokenizer):
    for split in DATA:
        for row in rows(split):
            for text in row.values():
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.decode(ids) == text


def test_prompt_and_response_encode_the_same_apart_and_together(tokenizer):
    for row in rows("validation"):
        prompt = tokenizer(row["record"] + "\n")["input_ids"]
        response = tokenizer(row["sentence"], add_special_tokens=False)["input_ids"]
        together = tokenizer(row["record"] + "\n" + row["sentence"])["input_ids"]
        assert prompt + response == together
        assert together[0] == tokenizer.bos_token_id


def test_no_row_is_longer_than_the_demos_max_length(tokenizer, model):
    longest = max(
        len(tokenizer(row["record"] + "\n" + row["sentence"])["input_ids"]) + 1
        for split in DATA
        for row in rows(split)
    )
    assert longest <= MAX_LENGTH <= model.config.max_position_embeddings


def test_special_tokens_are_those_of_the_model(tokenizer, model):
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(tokenizer, name) == getattr(model.config, name) is not None
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pretraining_reproduces_the_committed_weights():
    """With the versions and kernels of the model card; elsewhere the last bits may differ."""
    from peft_jobs.demo.pretrain import reproduces

    card = (BASE / "README.md").read_text()
    for made_with in (torch.__version__, torch.backends.cpu.get_cpu_capability()):
        if made_with not in card:
            pytest.skip(f"the committed weights were made without {made_with}")
    assert reproduces(BASE)
