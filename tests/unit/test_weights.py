"""Weights from a file, a URL or `auto`, against a server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdcache.cache.errors import NotFoundError, UsageError, WeightsError
from kdcache.cache.teachers import weights
from kdcache.cache.teachers.weights import (
    PUBLIC_WEIGHTS,
    PublicWeights,
    digest_in_name,
    fetch,
    resolve_weights,
)

CONTENT = bytes(range(256)) * 9000  # more than two chunks
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Server(ThreadingHTTPServer):
    requests: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests += 1
        folder = self.path.split("/")[1]
        if folder == "gone":
            self.send_error(404)
            return
        self.send_response(200)
        if folder != "unsized":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:-1000] if folder == "cut" else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_once_with_its_digest_checked(server: Server, folder: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    path = fetch(f"{server.url}/whole/{NAME}", progress=lambda *call: calls.append(call))
    assert path == folder / NAME
    assert path.read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), len(CONTENT), f"weights {NAME}")
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert fetch(f"{server.url}/whole/{NAME}") == path
    assert server.requests == 1


def test_a_damaged_cache_is_fetched_again(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT[:-1])
    assert fetch(f"{server.url}/whole/{NAME}").read_bytes() == CONTENT
    assert server.requests == 1


def test_another_content_than_the_name_says(server: Server, folder: Path) -> None:
    with pytest.raises(WeightsError, match="its name says 00000000"):
        fetch(f"{server.url}/whole/net-00000000.pth")
    assert names(folder) == []


def test_a_truncated_download(server: Server, folder: Path) -> None:
    with pytest.raises(WeightsError, match=f"ended after {len(CONTENT) - 1000} of {len(CONTENT)} bytes"):
        fetch(f"{server.url}/cut/{NAME}")
    with pytest.raises(WeightsError, match="ended after"):
        fetch(f"{server.url}/cut/net.pth")
    assert names(folder) == []


def test_a_server_that_tells_no_size(server: Server) -> None:
    totals: set[int] = set()
    fetch(f"{server.url}/unsized/{NAME}", progress=lambda _done, total, _note: totals.add(total))
    assert totals == {0}


def test_names_without_a_digest_do_not_meet(server: Server) -> None:
    first, second = (fetch(f"{server.url}/{folder}/net.pth") for folder in ("one", "two"))
    assert first != second
    assert first.name.endswith("-net.pth")


def test_unreachable_urls_say_what_to_do(server: Server, folder: Path) -> None:
    with pytest.raises(NotFoundError, match="HTTP 404"):
        fetch(f"{server.url}/gone/{NAME}")
    with pytest.raises(NotFoundError, match="cannot download") as caught:
        fetch("http://127.0.0.1:9/net.pth")
    assert "--weights FILE" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="nosuchscheme"):
        fetch("nosuchscheme://bucket/net.pth")
    assert names(folder) == []


def test_no_secret_of_a_url_is_shown(server: Server) -> None:
    url = f"http://user:secret@127.0.0.1:{server.server_port}/gone/net.pth?token=secret"
    with pytest.raises(NotFoundError) as caught:
        fetch(url)
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_fsspec_serves_other_schemes(folder: Path) -> None:
    import fsspec

    with fsspec.open(f"memory://weights/{NAME}", "wb") as file:
        file.write(CONTENT)
    assert fetch(f"memory://weights/{NAME}").read_bytes() == CONTENT


def test_an_unusable_cache_folder(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="cannot keep weights") as caught:
        fetch(f"{server.url}/whole/{NAME}")
    assert "KDCACHE_CACHE" in str(caught.value.hint)


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.touch()
    assert resolve_weights(path, network="x", dataset_name="y") == path
    assert resolve_weights(path.as_uri(), network="x", dataset_name="y") == path
    with pytest.raises(NotFoundError, match="does not exist"):
        resolve_weights(tmp_path / "b.pth", network="x", dataset_name="y")
    with pytest.raises(NotFoundError, match="is a folder"):
        resolve_weights(tmp_path, network="x", dataset_name="y")


def test_auto(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    public = {("pspnet_resnet101", "cityscapes"): PublicWeights(url=f"{server.url}/whole/{NAME}", miou=79.76)}
    monkeypatch.setattr(weights, "PUBLIC_WEIGHTS", public)
    path = resolve_weights("auto", network="pspnet_resnet101", dataset_name="cityscapes")
    assert path.read_bytes() == CONTENT
    with pytest.raises(NotFoundError, match="pspnet_resnet18 on dataset cityscapes") as caught:
        resolve_weights("auto", network="pspnet_resnet18", dataset_name="cityscapes")
    assert "--teacher pspnet_resnet101" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="dataset streets") as caught:
        resolve_weights("auto", network="pspnet_resnet101", dataset_name="streets:96x192:40")
    command = (
        "kdcache distill --method none --dataset streets:96x192:40 --fresh-views --student pspnet_resnet101"
    )
    assert command in str(caught.value.hint)


def test_every_public_checkpoint_has_a_digest_in_its_name() -> None:
    assert ("pspnet_resnet101", "cityscapes") in PUBLIC_WEIGHTS
    assert ("pspnet_resnet101", "ade20k") in PUBLIC_WEIGHTS
    for public in PUBLIC_WEIGHTS.values():
        assert len(digest_in_name(public.url) or "") == 8


def test_digest_in_name() -> None:
    assert digest_in_name("resnet18-f37072fd.pth") == "f37072fd"
    assert digest_in_name("deeplabv3_resnet101_citys_best_model.pth") is None
    assert digest_in_name("run-20200606.safetensors") == "20200606"
