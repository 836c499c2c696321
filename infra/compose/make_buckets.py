"""Make the buckets that are named on the command line; waits a minute for the store."""

import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

store = boto3.client("s3")  # where and as whom: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID ...
deadline = time.monotonic() + 60
while True:
    try:
        there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
        break
    except (BotoCoreError, ClientError) as error:
        if time.monotonic() > deadline:
            sys.exit(f"no bucket can be listed: {error}")
        time.sleep(1)
for name in sys.argv[1:]:
    if name not in there:
        store.create_bucket(Bucket=name)
