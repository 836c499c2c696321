"""KubeRay: a RayJob that runs `peft-sweep train` of the trial, in a cluster of its own."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from peft_jobs import TrialSpec
from peft_jobs.storage.files import write_whole
from peft_jobs.storage.object_store import is_url
from sweeps.exporters.exporter import Draft, Form, differences_of, with_differences
from sweeps.exporters.names import local_paths
from sweeps.exporters.training_tool import comment

NAME = "rayjob"
_SHARED = "/shared"
_IMAGE = "REGISTRY/peft-sweeps:0.1.0"
_USER = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


class RayJobExporter:
    """`rayjob/job.yaml`."""

    def check(self, spec: TrialSpec) -> None:
        """Every trial can be trained again."""

    def needs(self, spec: TrialSpec) -> tuple[str, ...]:
        """Nothing but the trial."""
        return ()

    def write(self, draft: Draft) -> dict[str, Any]:
        """The file, and what is to be seen to."""
        if differences_of(draft.record, NAME) is not None:
            return {}
        lines = list(_differences(draft))
        (draft.path / NAME).mkdir(exist_ok=True)
        intro = (
            f"Trains {draft.title} on all of its data, under three fresh seeds, on one GPU; needs "
            "KubeRay 1.6 or newer, and infra/kuberay/shared.yaml: kubectl apply -f job.yaml"
        )
        text = comment(lines, intro) + yaml.safe_dump(_job(draft), sort_keys=False, width=1000)
        write_whole(draft.path / NAME / "job.yaml", text)
        return with_differences(draft.record, NAME, lines)

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        """The file, and what it does."""
        if differences_of(record, NAME) is None:
            return None
        return Form(
            NAME,
            {},
            "`rayjob/job.yaml` trains its configuration on all of its data on Kubernetes "
            "(`peft-sweep train`).",
        )


def _differences(draft: Draft) -> Iterator[str]:
    yield f"The image is to be named: {_IMAGE} stands for yours."
    trained = draft.record["trained_by"]
    if _storage(draft) != trained["storage"]:
        sweep = shlex.quote(trained["sweep"])
        yield (
            f"Pods see only {_SHARED}, and the sweep is in {trained['storage']}: `peft-sweep "
            f"archive {sweep} --out sweep.tar`, and in a pod `peft-sweep restore sweep.tar "
            f"--storage {_storage(draft)}`."
        )
    unseen = [path for path in local_paths(draft.spec) if not _is_shared(path)]
    if unseen:
        yield (
            f"Put there {', '.join(unseen)}, and name the new places at the end of the "
            f"entrypoint, such as data.train={_SHARED}/rows.jsonl."
        )


def _is_shared(path: str) -> bool:
    return path.startswith(f"{_SHARED}/")


def _storage(draft: Draft) -> str:
    """Where pods find the sweep."""
    storage: str = draft.record["trained_by"]["storage"]
    return storage if is_url(storage) or _is_shared(storage) else f"{_SHARED}/runs"


def _job(draft: Draft) -> dict[str, Any]:
    trained = draft.record["trained_by"]
    words = ["peft-sweep", "train", trained["sweep"], "--trial", str(trained["trial"])]
    words += ["--storage", _storage(draft), "--address", "auto", "--plain"]
    container = {
        "name": "ray-head",
        "image": _IMAGE,
        "securityContext": _UNPRIVILEGED,
        "resources": {
            "requests": {"cpu": "8", "memory": "32Gi"},
            "limits": {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": 1},
        },
        "env": [{"name": "HF_HOME", "value": f"{_SHARED}/huggingface"}],
        "envFrom": [{"secretRef": {"name": "peft-sweeps", "optional": True}}],
        "volumeMounts": [
            {"name": "shared", "mountPath": _SHARED},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": _USER,
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": "peft-sweeps"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
        ],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
    labels = {"app.kubernetes.io/part-of": "peft-sweeps"}
    job = {
        "entrypoint": shlex.join(words),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": {
            "rayVersion": "2.60.0",
            "authOptions": {"mode": "token", "secretName": "peft-sweeps-token"},
            "headGroupSpec": {
                "rayStartParams": {},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
    }
    metadata = {"name": draft.slug}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": job}
