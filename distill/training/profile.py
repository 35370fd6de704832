"""--profile: torch's trace of a few steps. Open it in https://ui.perfetto.dev.

Recording slows down the recorded steps and does not change their results.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from kdcache.cache.errors import KDCacheError

TRACE = "profile/trace.json"

# The first steps are not typical: workspaces are allocated, kernels chosen, files opened.
_SKIPPED_STEPS, _WARM_UP_STEPS, _TRACED_STEPS = 3, 1, 3


class Tracer:
    """Records a few steps of a run into the file TRACE in its folder. A run that ends before leaves no trace."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        # Else Kineto prints to stderr, and reports a missing GPU as an error.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self.path = folder / TRACE
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(
                skip_first=_SKIPPED_STEPS, wait=0, warmup=_WARM_UP_STEPS, active=_TRACED_STEPS, repeat=1
            ),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> Self:
        self._profile.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._profile.stop()

    def step(self) -> None:
        """Call this after every step. The last recorded one writes the file: KDCacheError if the disk refuses."""
        self._profile.step()

    def _write(self, recorded: profile) -> None:
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(exist_ok=True)
            recorded.export_chrome_trace(str(temporary))
            os.replace(temporary, self.path)
        except OSError as error:
            raise KDCacheError(f"cannot write {self.path}: {error.strerror}") from None
