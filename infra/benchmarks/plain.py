"""What people run without this project: HF Trainer + PEFT, and Ray Tune around it.

    python infra/benchmarks/plain.py trial.json     one trial in a process of its own
    python infra/benchmarks/plain.py tune.json      Ray Tune + OptunaSearch + ASHAScheduler

Written as the documentation of transformers, PEFT and Ray Tune shows it, with two cures without
which it would lose for reasons that have nothing to do with speed: bitsandbytes' repacking of
4-bit weights at the first evaluation on a CPU is switched off (gradients are wrong after it), and
nothing is reported to trackers.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.time()


def train(
    config: dict[str, Any], report: Callable[[dict[str, float]], None] | None = None
) -> dict[str, Any]:
    """One trial: its loss, its adapter's folder, its times; `report` gets each evaluation."""
    began = time.time()
    import torch
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(config["threads"])
    imported = time.time()
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base: Any = AutoModelForCausalLM.from_pretrained(
        config["model"],
        dtype=torch.float32,
        quantization_config=quantization if config["quantization"] == "nf4" else None,
    )
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if config["quantization"] == "nf4":
        base = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            base, use_gradient_checkpointing=False
        )
    base.config.use_cache = False
    torch.manual_seed(config["seed"])
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config["r"],
        lora_alpha=2 * config["r"],
        target_modules=config["target_modules"],
    )
    model = get_peft_model(base, lora)
    loaded = time.time()

    prompt_of, response_of, limit = config["prompt"], config["response"], config["max_length"]

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer(prompt_of.format(**row), add_special_tokens=False)["input_ids"]
        answer = tokenizer(response_of.format(**row), add_special_tokens=False)["input_ids"]
        opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        context, answer = [*opening, *prompt], [*answer, tokenizer.eos_token_id]
        tokens = [*context, *answer][:limit]
        labels = [*[-100] * len(context), *answer][:limit]
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}

    files = {split: config[split] for split in ("train", "validation")}
    rows = load_dataset(
        "json", data_files=files, cache_dir=str(Path(config["output"]).parent / "rows")
    )
    rows = rows.map(tokenize, remove_columns=rows["train"].column_names)
    rows = rows.filter(lambda row: any(label != -100 for label in row["labels"]))
    tokenized = time.time()
    supervised = sum(label != -100 for row in rows["train"]["labels"] for label in row)

    seconds = {
        "import": imported - began,
        "load": loaded - imported,
        "tokenize": tokenized - loaded,
    }
    adapter = str(Path(config["output"], "adapter"))

    class Report(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if report is None:
                return
            if state.global_step >= state.max_steps:
                given["model"].save_pretrained(adapter)
            spent = seconds | {"train and evaluate": time.time() - tokenized}
            Path(config["output"], "seconds.json").write_text(json.dumps(spent))
            report({"eval_loss": given["metrics"]["eval_loss"], "step": state.global_step})

    every = config.get("eval_steps")
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(config["output"]),
            max_steps=config["steps"],
            per_device_train_batch_size=config["batch"],
            per_device_eval_batch_size=16,
            learning_rate=config["learning_rate"],
            seed=config["seed"],
            eval_strategy="steps" if every else "no",
            eval_steps=every,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Report()],
    )
    trainer.train()
    trained = time.time()
    loss = trainer.evaluate()["eval_loss"] if report is None else None
    model.save_pretrained(adapter)
    seconds |= {"train": trained - tokenized, "evaluate and save": time.time() - trained}
    seen = config["steps"] * config["batch"] / len(rows["train"])  # epochs
    return {
        "eval_loss": loss,
        "adapter": adapter,
        "seconds": seconds,
        "supervised_tokens": round(supervised * seen),
    }


def tune(config: dict[str, Any]) -> dict[str, Any]:
    """A sweep with pruning; as many trials at a time as there are cores."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    imported = time.time()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    started = time.time()

    def trainable(params: dict[str, Any]) -> None:
        folder = Path(config["output"], tune.get_context().get_trial_id())
        trial = {**config["trial"], **params, "output": str(folder), "threads": 1}
        folder.mkdir(parents=True)
        sys.path.insert(0, str(Path(config["script"]).parent))
        import plain

        plain.train(trial, lambda metrics: tune.report(metrics | {"folder": str(folder)}))

    evaluations = config["trial"]["steps"] // config["trial"]["eval_steps"]
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={
            "r": tune.choice(config["space"]["r"]),
            "target_modules": tune.choice(config["space"]["target_modules"]),
            "learning_rate": tune.loguniform(*config["space"]["learning_rate"]),
        },
        tune_config=tune.TuneConfig(
            metric="eval_loss",
            mode="min",
            search_alg=OptunaSearch(seed=config["trial"]["seed"]),
            scheduler=ASHAScheduler(max_t=evaluations, grace_period=1, reduction_factor=4),
            num_samples=config["trials"],
        ),
        run_config=tune.RunConfig(storage_path=str(Path(config["output"], "ray")), verbose=0),
    )
    results = tuner.fit()
    ended = time.time()
    ray.shutdown()
    found = [results[index].metrics for index in range(len(results))]
    last = [metrics for metrics in found if metrics]
    whole = [one for one in last if one["step"] >= config["trial"]["steps"]]
    spent = [json.loads(path.read_text()) for path in Path(config["output"]).glob("*/seconds.json")]
    return {
        "adapters": {str(Path(one["folder"], "adapter")): one["eval_loss"] for one in whole},
        "steps_done": sum(int(one["step"]) for one in last),
        "phases": spent,
        "errors": results.num_errors,
        "where": {"import ray": imported - STARTED, "ray.init": started - imported,
                  "fit": ended - started, "shutdown": time.time() - ended},
    }  # fmt: skip


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    found = tune(given) if "space" in given else train(given)
    Path(given["output"], "result.json").write_text(json.dumps(found))
