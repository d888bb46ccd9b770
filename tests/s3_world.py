"""A server that speaks S3, for tests: moto's, in this process, on a free port."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SECRETS = {"access_key_id": "flame", "secret_access_key": "not a secret here"}


@dataclass
class S3Server:
    endpoint: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def bucket(self) -> str:
        """A new bucket, as ``FLAME_HUB_OBJECTS_URL`` names it."""
        import boto3

        name = f"flame-{next(self._numbers)}"
        client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=SECRETS["access_key_id"], aws_secret_access_key=SECRETS["secret_access_key"],
        )  # fmt: skip
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}/hub?endpoint={self.endpoint}&region=us-east-1&path-style=true"


@contextmanager
def running() -> Iterator[S3Server]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server(f"http://{host}:{port}")
    finally:
        server.stop()
