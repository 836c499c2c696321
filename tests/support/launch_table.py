"""Prints what packed steps ask of a device, as the tables of `infra/benchmarks/launches.md`.

    python -m tests.support.launch_table

Operators of small models with many layers, counted on a CPU: what counts is their number, which the
sizes of tensors do not change. The tests in `tests/peft_jobs/engines/packed/` hold the bounds.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from peft_jobs import TrialSpec
from peft_jobs.engines.packed.row import step_rows
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.tasks import TASKS
from tests.peft_jobs.conftest import save_tokenizer
from tests.peft_jobs.engines.packed.conftest import CAUSAL, CLASSES
from tests.peft_jobs.engines.packed.test_architectures import RATES, SIZES
from tests.support.operators import Operators
from tests.support.packed_runs import Driven

LAYERS = {"Llama": 24, "Bert": 12, "GPT2": 12, "OPT": 12}
NUMBERS = (1, 4, 8, 16, 32)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(row("base", "adapter drops", "bf16", *(f"K={number}" for number in NUMBERS), "waits"))
        for name in LAYERS:
            for rate in (0.0,) if name == "Llama" else (0.0, 0.2):
                base, rows, spec = made(name, rate, Path(folder))
                for dropout in (0.0, 0.1):
                    for bf16 in (False, True) if name == "Llama" else (False,):
                        params = {"adapter.lora_dropout": dropout, "training.bf16": bf16}
                        found = [
                            step(base, rows, spec.with_params(params), number) for number in NUMBERS
                        ]
                        counts = [of_step.launches.total() for of_step, _ in found]
                        told = "drops" if rate else "drops nothing"
                        # One of them is the batch's, on the host: the losses' is not among them.
                        waits = found[-1][0].waits["_local_scalar_dense"]
                        words = f"{name}, {LAYERS[name]} layers, {told}"
                        print(row(words, f"{dropout:g}", "yes" if bf16 else "", *counts, waits))
        print()
        print(row("optimizer", *(f"K={number}" for number in NUMBERS)))
        print(row("operators", *(of_rows.launches.total() for _, of_rows in found)))


def row(*cells: object) -> str:
    return f"| {' | '.join(f'{c:,}' if isinstance(c, int) else str(c) for c in cells)} |"


def made(name: str, rate: float, folder: Path) -> tuple[Any, Any, TrialSpec]:
    """A random base that drops so much everywhere, rows of one length, and a trial on it."""
    is_encoder, place = name == "Bert", folder / f"{name}-{rate}"
    depths = dict.fromkeys(("num_hidden_layers", "n_layer"), LAYERS[name])
    sizes = SIZES | dict.fromkeys(RATES, rate) | depths | {"word_embed_proj_dim": 32}
    scheme = "nf4" if name == "Llama" else "none"
    config = getattr(transformers, f"{name}Config")(**sizes)
    auto = transformers.AutoModel if is_encoder else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(place)
    save_tokenizer(place, bert=is_encoder)
    rows = folder / "rows.jsonl"
    content = ({"q": "red cat", "a": "sees dog", "class": "ab"[n % 2]} for n in range(80))
    rows.write_text("".join(f"{json.dumps(one)}\n" for one in content))
    spec = TrialSpec.model_validate(
        {
            "model": str(place),
            "quantization": {"scheme": scheme},
            "task": CLASSES if is_encoder else CAUSAL,
            "adapter": {"r": 8, "target_modules": "all-linear"},
            "data": {"train": str(rows), "validation": 0.2},
            "training": {"per_device_train_batch_size": 2, "max_steps": 4},
        }
    )
    base, data = SoloEngine(str(folder / "cache"), threads=1).check(spec)
    return base, data.train, spec


def step(base: Any, rows: Any, spec: TrialSpec, number: int) -> tuple[Operators, Operators]:
    """Of so many slots: the second step, from which on all costs the same, and its optimizers."""
    specs: Sequence[TrialSpec] = [spec.with_params({"seed": seed}) for seed in range(number)]
    with Driven(base, rows, specs, 4) as driven:
        for _ in range(2):
            works = [Work(n, own, driven.feeds[n].take(2)) for n, own in enumerate(specs)]
            with Operators() as of_step:
                packed_step(
                    driven.pack,
                    base.model,
                    TASKS[spec.task.type],
                    works,
                    pad_token_id=base.tokenizer.pad_token_id,
                    device=base.device,
                    training=spec.training,
                )
            with Operators() as of_rows:
                step_rows(driven.pack_rows)
    return of_step, of_rows


if __name__ == "__main__":
    main()
