"""`validate`: what a sweep would do, or every mistake of its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Cli = Callable[..., Result]


def test_the_plan_has_rows_rungs_and_points(cli: Cli) -> None:
    result = cli("validate", "waves.yaml", "--json")
    plan = json.loads(result.stdout)
    assert result.exit_code == 0
    assert plan["train_rows"] == 1000
    assert plan["rungs"] == [100, 300]
    assert plan["distinct_points"] is None


def test_a_finite_space_is_counted(cli: Cli) -> None:
    finite = "space.parameters.training.learning_rate={choices: [0.001, 0.002, 0.003]}"
    plan = json.loads(cli("validate", "waves.yaml", finite, "--fast", "--json").stdout)
    assert plan["distinct_points"] == 4 * 2 * 3
    assert "train_rows" not in plan


def test_people_read_it_too(cli: Cli) -> None:
    result = cli("validate", "waves.yaml")
    assert "waves.yaml is a valid sweep file." in result.stdout
    assert "successive_halving at 100 and 300 samples" in result.stdout


def test_nothing_is_started(cli: Cli, folder: Path) -> None:
    cli("validate", "waves.yaml")
    assert not (folder / "runs").exists()


def test_every_mistake_is_told_at_once(cli: Cli) -> None:
    result = cli("validate", "waves.yaml", "samplr=tpe", "budget.n_trials=0")
    assert result.exit_code == 2
    assert "did you mean 'sampler'?" in result.stderr
    assert "budget.n_trials" in result.stderr


def test_what_only_a_host_can_tell_is_bad_input(cli: Cli) -> None:
    nothing = "space.parameters.adapter.target_modules=nothing"
    assert cli("validate", "--fast", "waves.yaml", nothing).exit_code == 0
    result = cli("validate", "waves.yaml", nothing)
    assert result.exit_code == 2
    assert "matches no module" in result.stderr


def test_an_outline_serves_all_sets_of_targets(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    built: list[object] = []
    build = LlamaForCausalLM.__init__

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        built.append(self)
        build(self, *arguments, **options)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", counted)
    counts = []
    for sets in ("[attention, all-linear]", "[attention, all-linear, attention-qv, attention+mlp]"):
        built.clear()
        space = f"space.parameters.adapter.target_modules={{choices: {sets}}}"
        result = cli("validate", "waves.yaml", "resources.engine=solo", space, "--json")
        assert len(json.loads(result.stdout)["targets"]) == sets.count(",") + 1
        counts.append(len(built))
    assert counts[0] == counts[1]


def test_a_mixture_of_experts_is_told_what_is_not_quantized_and_not_adapted(
    cli: Cli, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    from peft_jobs.demo import BASE

    sizes = {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_local_experts": 4,
    }
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path / "mixtral")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path / "mixtral")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"a": f"row {i}"}) + "\n" for i in range(20)))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"""
model: {tmp_path / "mixtral"}
quantization: none
task: {{type: causal_lm, response: "{{a}}"}}
data: {{train: {rows}, validation: 0.5, max_length: 32}}
space: {{parameters: {{quantization.scheme: {{choices: [nf4, int8]}}}}}}
budget: {{n_trials: 1, max_steps: 2}}
resources: {{backend: inline}}
tracking: none
"""
    )
    result = cli("validate", str(sweep), "--json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)
    # 2 layers of q, o 64 x 64 and k, v 64 x 32; experts and routers beside them
    assert sorted(line.partition(" of ")[0] for line in plan["quantized"]) == [
        "int8 quantizes 24,576",
        "nf4 quantizes 24,576",
    ]
    assert "experts.gate_up_proj 131,072" in plan["quantized"][0]
    (left,) = plan["left_out"]["all-linear"]
    assert "197,120 of 353,088 weights (55.8 %)" in left


def test_a_sampler_that_draws_at_random_says_so(cli: Cli) -> None:
    result = cli("validate", "waves.yaml", "sampler=cmaes", "--fast")
    assert "cmaes draws adapter.r, adapter.target_modules at random" in " ".join(
        result.stdout.split()
    )
