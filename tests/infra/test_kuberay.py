"""The manifests: Kubernetes' own parts against its schemas, KubeRay's against its field list."""

from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from tests.support.documents import documents, found
from tests.support.kuberay import CLUSTER, JOB, check

DOCUMENTS = [document for path in found("kuberay/*.yaml") for document in documents(path)]


def of_kind(kind: str) -> dict[str, Any]:
    (document,) = [document for document in DOCUMENTS if document["kind"] == kind]
    return document


def clusters() -> list[dict[str, Any]]:
    return [of_kind("RayCluster")["spec"], of_kind("RayJob")["spec"]["rayClusterSpec"]]


def templates() -> list[dict[str, Any]]:
    specs = clusters()
    heads = [spec["headGroupSpec"]["template"] for spec in specs]
    workers = [group["template"] for spec in specs for group in spec["workerGroupSpecs"]]
    return [*heads, *workers, of_kind("RayJob")["spec"]["submitterPodTemplate"]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_kubernetes_parts_hold_to_its_schemas(document: dict[str, Any]) -> None:
    if not document["apiVersion"].startswith("ray.io/"):
        check(document)
    assert document["metadata"]["name"]


@pytest.mark.parametrize("template", templates())
def test_pods_hold_to_kubernetes_schema(template: dict[str, Any]) -> None:
    check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template})


@pytest.mark.parametrize(("kind", "schema"), [("RayCluster", CLUSTER), ("RayJob", JOB)])
def test_kuberays_parts_use_its_fields(kind: str, schema: dict[str, Any]) -> None:
    assert of_kind(kind)["apiVersion"] == "ray.io/v1"
    errors = Draft202012Validator(schema).iter_errors(of_kind(kind)["spec"])
    assert [error.message for error in errors] == []


def test_a_misspelled_field_would_be_found() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containrs": []}})
    assert [*Draft202012Validator(CLUSTER).iter_errors({"headGroupSpecs": {}})]


def test_job_and_cluster_are_the_same_cluster() -> None:
    first, second = clusters()
    assert first == second


@pytest.mark.parametrize("spec", clusters())
def test_the_head_takes_no_trial_and_workers_have_gpus(spec: dict[str, Any]) -> None:
    assert spec["authOptions"]["mode"] == "token"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert 0 == group["minReplicas"] == group["replicas"] < group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize("template", templates())
def test_pods_are_unprivileged_and_bounded(template: dict[str, Any]) -> None:
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for bounds in ("requests", "limits"):
        assert {"cpu", "memory"} <= container["resources"][bounds].keys()


def test_ray_pods_share_a_volume_and_memory() -> None:
    claim = of_kind("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for template in templates()[:-1]:
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def test_only_the_sweeps_pods_and_the_operator_reach_them() -> None:
    policy = of_kind("NetworkPolicy")["spec"]
    ours = policy["podSelector"]["matchLabels"]
    assert policy["policyTypes"] == ["Ingress"]
    for template in templates():
        assert ours.items() <= template["metadata"]["labels"].items()
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": ours}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
