"""The embedded default: a data set and a small base model that need no network.

`BASE` is the folder of the base model and its tokenizer, `DATA` maps each split to its JSONL file.

records            makes the data set
pretrain           makes the base model, its tokenizer and its model card
pretraining_text   the text that the base model is pre-trained on
"""

from pathlib import Path

__all__ = ["BASE", "DATA"]

BASE: Path = Path(__file__).parent / "base"
DATA: dict[str, Path] = {
    split: Path(__file__).parent / "data" / f"{split}.jsonl"
    for split in ("train", "validation", "test")
}
