"""KubeRay: a RayJob that trains the configuration on all of its data, in a cluster of its own."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from peft_jobs import TrialSpec
from peft_jobs.storage.attempt_folder import TRIAL_FILE
from peft_jobs.storage.files import write_whole
from sweeps.exporters.exporter import Draft, Form, differences_of, with_differences
from sweeps.exporters.model_card import ALL_DATA
from sweeps.exporters.names import local_paths
from sweeps.exporters.training_tool import comment

NAME = "rayjob"
_MOUNT = "/etc/peft-sweeps"
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
        lines = list(_differences(draft.spec))
        (draft.path / NAME).mkdir(exist_ok=True)
        intro = (
            f"Trains {draft.title} on all of its data, for one epoch, on one GPU; needs "
            "KubeRay 1.6 or newer, and infra/kuberay/shared.yaml: kubectl apply -f job.yaml"
        )
        text = comment(lines, intro) + yaml.safe_dump_all(_documents(draft), sort_keys=False)
        write_whole(draft.path / NAME / "job.yaml", text)
        return with_differences(draft.record, NAME, lines)

    def form(self, spec: TrialSpec, record: Mapping[str, Any]) -> Form | None:
        """The file, and what it does."""
        if differences_of(record, NAME) is None:
            return None
        return Form(NAME, {}, "`rayjob/job.yaml` trains it on all of its data on Kubernetes.")


def _differences(spec: TrialSpec) -> Iterator[str]:
    yield f"The image is to be named: {_IMAGE} stands for yours."
    unseen = [path for path in local_paths(spec) if not path.startswith(f"{_SHARED}/")]
    if unseen:
        yield f"Pods see only {_SHARED}: put there, and name there, {', '.join(unseen)}."
    yield (
        "The schedule stretches over the longer training; learning rate and warm-up stay as they "
        "were chosen for the trial's length."
    )


def _documents(draft: Draft) -> list[dict[str, Any]]:
    name = draft.slug
    out = f"{_SHARED}/trained/{name}"
    trial = json.dumps(json.loads(draft.spec_json), indent=2, ensure_ascii=False)
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
            {"name": "trial", "mountPath": _MOUNT, "readOnly": True},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": _USER,
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": "peft-sweeps"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
            {"name": "trial", "configMap": {"name": name}},
        ],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
    labels = {"app.kubernetes.io/part-of": "peft-sweeps"}
    settings = " ".join(ALL_DATA)
    job = {
        "entrypoint": f"python -m peft_jobs run {_MOUNT}/{TRIAL_FILE} {settings} --out {out}",
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
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {TRIAL_FILE: trial},
        },
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": job},
    ]
