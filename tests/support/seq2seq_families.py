"""Small checkpoints of the families of encoders and decoders, with tokenizers of letters."""

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

LETTERS = "abcdefghijklmnopqrstuvwxyz."
FIRST = ["<s>", "<pad>", "</s>", "<unk>", "\N{LOWER ONE EIGHTH BLOCK}"]
LAYERS = {
    **{f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("attention_heads",)},
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "d_model": 64,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
LED = {
    **{name: value for name, value in LAYERS.items() if name != "max_position_embeddings"},
    "max_encoder_position_embeddings": 64,
    "max_decoder_position_embeddings": 64,
    "attention_window": 8,
}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
SWITCH = {**T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}


def words(template: str) -> Any:
    """A tokenizer of letters that puts around a text what the template says."""
    vocabulary = {word: number for number, word in enumerate([*FIRST, *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    marks = [(mark, vocabulary[mark]) for mark in ("<s>", "</s>")]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=marks)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def nllb() -> Any:
    vocabulary = {word: number for number, word in enumerate([*FIRST, *LETTERS])}
    codes = ["eng_Latn", "deu_Latn", "fra_Latn"]
    return tf.NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=codes)


def mbart(of_50: bool) -> Any:
    from transformers.models.mbart import tokenization_mbart as mbart
    from transformers.models.mbart50 import tokenization_mbart50 as mbart50

    codes = (mbart50 if of_50 else mbart).FAIRSEQ_LANGUAGE_CODES
    scores = [(word, -2.0) for word in [*FIRST, *LETTERS, *codes, "<mask>"]]
    return (tf.MBart50Tokenizer if of_50 else tf.MBartTokenizer)(vocab=scores)


GERMAN = {"source_language": "en_XX", "target_language": "de_DE"}
FAMILIES: dict[str, tuple[Any, dict[str, Any], Any, dict[str, str]]] = {
    "T5": (tf.T5Config, T5, lambda: words("$A </s>"), {}),
    "mT5": (tf.MT5Config, T5, lambda: words("$A </s>"), {}),
    "UMT5": (tf.UMT5Config, T5, lambda: words("$A </s>"), {}),
    "LongT5": (tf.LongT5Config, T5, lambda: words("$A </s>"), {}),
    "Switch": (tf.SwitchTransformersConfig, SWITCH, lambda: words("$A </s>"), {}),
    "BART": (tf.BartConfig, LAYERS, lambda: words("<s> $A </s>"), {}),
    "MVP": (tf.MvpConfig, LAYERS, lambda: words("<s> $A </s>"), {}),
    "LED": (tf.LEDConfig, LED, lambda: words("<s> $A </s>"), {}),
    "Pegasus": (tf.PegasusConfig, LAYERS, lambda: words("$A </s>"), {}),
    "Marian": (tf.MarianConfig, LAYERS, lambda: words("$A </s>"), {}),
    "Blenderbot": (tf.BlenderbotConfig, LAYERS, lambda: words("$A </s>"), {}),
    "Blenderbot, small": (tf.BlenderbotSmallConfig, LAYERS, lambda: words("$A </s>"), {}),
    "mBART": (tf.MBartConfig, LAYERS, lambda: mbart(False), GERMAN),
    "mBART-50": (tf.MBartConfig, LAYERS, lambda: mbart(True), GERMAN),
    "NLLB": (
        *(tf.M2M100Config, LAYERS, nllb),
        {"source_language": "eng_Latn", "target_language": "deu_Latn"},
    ),
}


def save(family: str, folder: Path) -> Path:
    """Write a random model of a family, and its tokenizer, into a folder; gives the folder."""
    config, sizes, tokenizer, _ = FAMILIES[family]
    saved = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.AutoModelForSeq2SeqLM.from_config(config(vocab_size=len(saved), **sizes))
    model.save_pretrained(folder)
    saved.save_pretrained(folder)
    return folder
