"""An S3-compatible server (moto) in a process of its own, and what is in it, read by boto3."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
from botocore.exceptions import EndpointConnectionError

from tests.support.mlflow_server import Gate
from tests.support.ray_nodes import free_port

BUCKET = "sweeps"
_KEYS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "s3-key-of-the-tests"}


@dataclass
class ObjectStore:
    """The server, behind a gate at which it can go away and come back."""

    port: int
    gate: Gate
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)
    """What a process needs to reach it through the gate."""

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/runs"

    @property
    def client(self) -> Any:
        """boto3's, which goes past the gate."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def keys(self, prefix: str = "") -> list[str]:
        """All objects under a prefix of `url`, without those that stand for folders."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=f"runs/{prefix}"
        )
        found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key.removeprefix("runs/") for key in found if not key.endswith("/"))

    def read(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=BUCKET, Key=f"runs/{key}")["Body"].read()
        return body


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A server that runs with an empty bucket; this process's environment leads to it."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "object-store.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    gate = Gate(port)
    environment = {
        **_KEYS,
        "AWS_ENDPOINT_URL": gate.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    store = ObjectStore(port, gate, process, environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                store.client.create_bucket(Bucket=BUCKET)
                break
            except EndpointConnectionError:
                assert time.monotonic() < deadline, (folder / "object-store.log").read_text()
                time.sleep(0.1)
        gate.open()
        with patch.dict(os.environ, environment):
            yield store
    finally:
        gate.close()
        process.kill()
        process.wait(10)
