"""The README's commands and code, run unchanged."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.cache.codecs.registry import codec_from_dict
from kdcache.cache.teachers.teacher import load_teacher


def code_after(root: Path, words: str, language: str) -> str:
    """The first code block in a language after some words."""
    match = re.search(
        re.escape(words) + rf".*?```{language}\n(.*?)```", (root / "README.md").read_text(), re.DOTALL
    )
    assert match, words
    return match[1]


def test_the_teacher_of_its_own_loads(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_teacher.py").write_text(code_after(root, "## A teacher of your own", "python"))
    monkeypatch.syspath_prepend(tmp_path)
    teacher = load_teacher("my_teacher:make", weights=None, dataset_name="cityscapes", classes=19)
    outputs = teacher(torch.zeros((1, 64, 96, 3), dtype=torch.uint8), torch.tensor([[64, 96]]))
    assert outputs["logits"].shape == (1, 19, 8, 12)


@pytest.mark.slow
def test_the_commands_without_downloads_run(root: Path, tmp_path: Path) -> None:
    block = code_after(root, "Nothing downloaded", "sh")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["sh", "-e", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = re.search(r"^report: (.*)$", done.stdout, re.MULTILINE)
    assert report, done.stdout
    assert (tmp_path / report[1]).exists()
    assert (tmp_path / "runs" / "sheet.png").read_bytes().startswith(b"\x89PNG")

    names = {"image": np.zeros((48, 64, 3), np.uint8)}
    python = code_after(root, "In Python:", "python")
    exec(python.replace('"runs/', f'"{tmp_path}/runs/'), names)  # noqa: S102 - the README itself
    assert names["classes"].shape == (48, 64)

    (store,) = (tmp_path / "stores").glob("streets*")
    plain: dict[str, object] = {"store": store}
    exec(code_after(root, "## A store without kdcache", "python"), plain)  # noqa: S102 - the README itself
    codes, codec = plain["logits"][3], codec_from_dict(plain["codec"])  # type: ignore[index, arg-type]
    assert codec.name == "dct"
    decoded = codec.decode(torch.from_numpy(codes)[None])[0].numpy()
    np.testing.assert_allclose(plain["values"], decoded, atol=1e-4 * np.abs(decoded).max())
