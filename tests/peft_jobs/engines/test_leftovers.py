"""After a failure of any kind nothing is left: no process, thread, file, adapter or memory."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.randomness import tuner_layers
from tests.support.devices import needs_cuda

BROKEN = "def broken(model, tokenizer, rows):\n    raise KeyError('a bug')\n"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    return SoloEngine(str(tmp_path_factory.mktemp("cache")), threads=1, checkpoint_seconds=0)


@pytest.fixture
def spec(trial: Any, rows_path: Path) -> Any:
    return trial(
        {
            "quantization.scheme": "nf4",
            "adapter.r": 4,
            "adapter.lora_dropout": 0.1,
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data.train": {"path": str(rows_path)},
            "data.validation": 0.2,
            "training.learning_rate": 1e-2,
            "training.max_steps": 6,
            "training.logging_steps": 1,
            "evaluation.rungs": [16],
        }
    )


class Fails:
    """Trials that end in each way, on one engine; `None` is an interruption's result."""

    def __init__(self, engine: SoloEngine, listen: Any, watch_forward: Any, spec: Any) -> None:
        self.engine, self.listen, self.watch_forward = engine, listen, watch_forward
        self.spec = spec

    def out_of_memory(self, folder: Path) -> Any:
        def look(training: bool, rows: int) -> None:
            if training:
                torch.empty(2**50)

        base, _ = self.engine.check(self.spec)
        with self.watch_forward(base, look):
            return self.listen(self.engine, folder).run(self.spec)

    def diverged(self, folder: Path) -> Any:
        huge = {"training.learning_rate": 1e12, "adapter.lora_alpha": 1e12}
        spec = self.spec.with_params({**huge, "training.max_loss": None})
        return self.listen(self.engine, folder).run(spec)

    def bug(self, folder: Path) -> Any:
        spec = self.spec.with_params({"evaluation.metrics": ["broken_metric:broken"]})
        return self.listen(self.engine, folder).run(spec)

    def interrupted(self, folder: Path) -> Any:
        run = self.listen(self.engine, folder)

        def interrupt(progress: Any) -> None:
            run.job.cancelled = "interrupted"

        run.on_report = interrupt
        return run.run(self.spec)


@pytest.fixture
def fails(
    engine: SoloEngine,
    listen: Any,
    watch_forward: Any,
    spec: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Fails:
    (tmp_path / "broken_metric.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    return Fails(engine, listen, watch_forward, spec)


def held() -> dict[str, Any]:
    """What this process holds of the system."""
    gc.collect()
    process = psutil.Process()
    return {
        "children": process.children(recursive=True),
        "threads": process.num_threads(),
        "handles": process.num_fds(),
        "files": sorted(file.path for file in process.open_files()),
    }


WAYS = ["out_of_memory", "diverged", "bug", "interrupted"]


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_leaves_nothing(
    fails: Fails, engine: SoloEngine, listen: Any, spec: Any, tmp_path: Path, way: str
) -> None:
    fail: Callable[[Path], Any] = getattr(fails, way)
    fail(tmp_path / "once")  # what is opened once and kept, such as memory-mapped data, is open now
    base, _ = engine.check(spec)
    state, before = base.state_hash(), held()
    classes = [type(module) for module in base.model.modules()]
    result = fail(tmp_path / "again")
    assert (result and result.kind) == (None if way == "interrupted" else way), result
    assert held() == before
    assert engine.check(spec)[0] is base, "the base was not loaded anew"
    assert base.state_hash() == state
    assert list(tuner_layers(base.model)) == []
    assert [type(module) for module in base.model.modules()] == classes
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("way", WAYS)
def test_a_failure_leaves_no_memory_of_the_gpu(fails: Fails, tmp_path: Path, way: str) -> None:
    fail: Callable[[Path], Any] = getattr(fails, way)
    found = []
    for number in range(
        3
    ):  # what the libraries of a GPU take once and keep is there after the first
        fail(tmp_path / str(number))
        gc.collect()  # the Trainer and its callbacks hold each other
        found.append(torch.cuda.memory_allocated())
    assert found[1] == found[2]
