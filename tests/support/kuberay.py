"""What manifests are held against: Kubernetes' own schemas, and a list of KubeRay's fields.

No package carries KubeRay's schemas; the fields below are those of its API reference, 1.6, as far
as the manifests may use them.
"""

from typing import Any

import kubernetes_validate

VERSION = kubernetes_validate.latest_version()
TEXT, WHOLE, YES_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
PART: dict[str, Any] = {"type": "object"}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


PARAMETERS = {"type": "object", "additionalProperties": TEXT}
CLUSTER = fields(
    ("headGroupSpec", "rayVersion"),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=YES_NO,
    autoscalerOptions=fields(
        idleTimeoutSeconds=WHOLE,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources=PART,
        securityContext=PART,
    ),
    headGroupSpec=fields(("template", "rayStartParams"), template=PART, rayStartParams=PARAMETERS),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            rayStartParams=PARAMETERS,
            template=PART,
        ),
    },
)
JOB = fields(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes=YES_NO,
    ttlSecondsAfterFinished=WHOLE,
    backoffLimit=WHOLE,
    submitterPodTemplate=PART,
    rayClusterSpec=CLUSTER,
)


def check(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)
