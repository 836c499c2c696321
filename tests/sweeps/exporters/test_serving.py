"""What serves an export, or trains it on a cluster: files that hold to what their readers take."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.main import get_command

from peft_jobs import SpecError, TrialSpec
from sweeps import Exported, build_sweep, export_top, export_trial
from sweeps.cli.app import app
from sweeps.exporters import EXPORTERS
from sweeps.exporters.vllm import max_rank, refusals
from sweeps.run import launch
from tests.support.kuberay import JOB, check

RECORDS = {"type": "causal_lm", "prompt": "{record}\n", "response": "{sentence}"}
TRIAL = TrialSpec.model_validate({"model": "demo", "task": RECORDS, "data": {"train": "demo"}})


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two trials, one with DoRA."""
    storage = tmp_path_factory.mktemp("storage")
    sweep = {
        "name": "my-sweep",
        "model": "demo",
        "task": RECORDS,
        "data": {"train": "demo", "validation": "demo", "max_length": 64, "validation_subset": 8},
        "adapter": {"r": 4},
        "evaluation": {"generation": {"max_samples": 4, "max_new_tokens": 24}},
        "space": {"parameters": {"adapter.use_dora": {"choices": [True, False]}}},
        "sampler": "grid",
        "pruner": "none",
        "budget": {"n_trials": 2, "max_samples": 32},
        "resources": {"backend": "inline"},
        "tracking": {"enabled": False},
        "storage": str(storage),
    }
    assert launch(build_sweep(sweep)).status == "complete"
    return storage


@pytest.fixture(scope="module")
def exports(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Exported]:
    """Both trials in all forms that serve, by whether they have DoRA."""
    out = tmp_path_factory.mktemp("out")
    both = export_top(storage, "my-sweep", 2, out, to=("vllm", "rayjob"))
    assert sorted(one.path.name for one in both) == ["trial-0000", "trial-0001"]
    return {trial_of(exported).adapter.use_dora: exported for exported in both}  # type: ignore[attr-defined]


def trial_of(exported: Exported) -> TrialSpec:
    return TrialSpec.model_validate_json((exported.path / "trial.json").read_text())


def test_vllm_is_given_the_adapter_where_it_takes_it(exports: dict[bool, Exported]) -> None:
    plain = exports[False].path
    serve, script = ((plain / "vllm" / name).read_text() for name in ("serve.sh", "generate.py"))
    name = f"my-sweep-{exports[False].number:04d}"
    assert f"--enable-lora --max-lora-rank 8 --lora-modules {name}=." in serve
    assert "--generation-config ." in serve
    assert f'LoRARequest("{name}", 1, str(HERE))' in script
    assert "max_tokens=24" in script
    assert exports[False].merged_path is None


def test_vllm_is_given_the_merged_model_where_it_refuses_the_adapter(
    exports: dict[bool, Exported],
) -> None:
    exported = exports[True]
    assert exported.merged_path is not None
    serve = (exported.path / "vllm" / "serve.sh").read_text()
    assert "vllm serve merged " in serve
    assert "lora-modules" not in serve
    assert "LoRARequest" not in (exported.path / "vllm" / "generate.py").read_text()
    told = "vLLM takes no adapter with use_dora: the merged model is served."
    assert told in exported.differences["vllm"]
    assert told in serve


def test_the_scripts_are_of_their_languages(exports: dict[bool, Exported]) -> None:
    for exported in exports.values():
        script = exported.path / "vllm" / "generate.py"
        compile(script.read_text(), str(script), "exec")
        subprocess.run(["sh", "-n", str(exported.path / "vllm" / "serve.sh")], check=True)


@pytest.mark.parametrize(
    ("params", "rank"),
    [
        ({"adapter.r": 4}, 8),
        ({"adapter.r": 8}, 8),
        ({"adapter.r": 9}, 16),
        ({"adapter.r": 300}, 320),
        (
            {"adapter.r": 200, "adapter.init_lora_weights": "pissa"},
            512,
        ),  # saved with twice the rank
    ],
)
def test_the_rank_that_vllm_is_told_is_one_that_it_takes(params: dict[str, Any], rank: int) -> None:
    spec = TRIAL.with_params(params)
    assert max_rank(spec) == rank
    assert list(refusals(spec)) == []


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"adapter.use_dora": True}, "use_dora"),
        ({"adapter.rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"adapter.alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"adapter.init_lora_weights": "eva"}, "rank_pattern"),
        ({"adapter.bias": "all"}, "bias all"),
        ({"adapter.r": 513}, "r 513"),
        ({"adapter.r": 300, "adapter.init_lora_weights": "pissa"}, "r 600"),
        ({"adapter.method": "ia3"}, "method ia3"),
    ],
)
def test_vllm_s_refusals_are_known(params: dict[str, Any], reason: str) -> None:
    spec = TRIAL.with_params(params)
    (told,) = refusals(spec)
    assert reason in told
    assert EXPORTERS["vllm"].needs(spec) == ("merged",)
    EXPORTERS["vllm"].check(spec)


def test_what_neither_serves_nor_merges_is_refused() -> None:
    prompts = TRIAL.with_params({"adapter.method": "prompt_tuning"})
    for name in ("vllm", "ollama"):
        with pytest.raises(SpecError, match="prompt_tuning cannot be merged"):
            EXPORTERS[name].check(prompts)


def test_the_job_holds_to_the_schemas_and_trains_the_trial(exports: dict[bool, Exported]) -> None:
    exported = exports[False]
    text = (exported.path / "rayjob" / "job.yaml").read_text()
    job = yaml.safe_load(text)
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template})
    errors = Draft202012Validator(JOB).iter_errors(job["spec"])
    assert [error.message for error in errors] == []
    words = shlex.split(job["spec"]["entrypoint"])
    given = ["my-sweep", "--trial", str(exported.number), "--storage", "/shared/runs"]
    assert words == ["peft-sweep", "train", *given, "--address", "auto", "--plain"]
    train = get_command(app).commands["train"]  # type: ignore[attr-defined]
    assert train.make_context("train", words[2:], resilient_parsing=False).params["trial"] == (
        exported.number
    )
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    told = " ".join(exported.differences["rayjob"])
    assert "REGISTRY" in told
    assert "peft-sweep restore sweep.tar --storage /shared/runs" in told


def test_an_ollama_model_is_made_of_the_merged_one(storage: Path, tmp_path: Path) -> None:
    exported = export_trial(storage, "my-sweep", out=tmp_path / "out", to=("ollama",))
    text = (exported.path / "ollama" / "Modelfile").read_text()
    commands = [line for line in text.splitlines() if not line.startswith("#")]
    assert commands == [
        "FROM ../merged",
        'TEMPLATE "{{ .Prompt }}"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        "PARAMETER num_predict 24",
    ]
    assert (exported.path / "merged" / "config.json").is_file()
    about = json.loads((exported.path / "adapter_config.json").read_text())
    assert isinstance(about["lora_alpha"], int)  # its converter's type of adapters


def test_more_than_there_are_is_refused(storage: Path) -> None:
    with pytest.raises(SpecError, match="--top 3: the sweep 'my-sweep' has 2 ranked trials"):
        export_top(storage, "my-sweep", 3)
