"""The README's commands, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
def test_the_commands_without_downloads_run(root: Path, tmp_path: Path) -> None:
    text = (root / "README.md").read_text()
    (block,) = re.findall(r"Nothing downloaded.*?```sh\n(.*?)```", text, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
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
    exec(python.replace('"runs/', f'"{tmp_path}/runs/'), names)  # noqa: S102 - the README itself
    assert names["classes"].shape == (48, 64)
