"""The embedded default: a data set and a small base model that need no network.

`BASE` is the folder of the base model and its tokenizer, `DATA` maps each split to its JSONL file.
The files are made by `peft_jobs.demo.records` and `peft_jobs.demo.pretrain`.
"""

from pathlib import Path

__all__ = ["BASE", "DATA"]

BASE: Path = Path(__file__).parent / "base"
DATA: dict[str, Path] = {
    split: Path(__file__).parent / "data" / f"{split}.jsonl"
    for split in ("train", "validation", "test")
}
