"""--profile: torch's trace of a few steps, beside the clock's account of a step's parts in the metrics.

A trace opens in https://ui.perfetto.dev. Recording it slows the steps that it shows, and changes no number.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from kdcache.cache.errors import KDCacheError

TRACE = "profile/trace.json"

# The first steps are unlike the others: workspaces are allocated, kernels chosen, files opened.
_SKIPPED_STEPS, _WARM_UP_STEPS, _TRACED_STEPS = 3, 1, 3


class Tracer:
    """Records some steps of a run into its folder, as TRACE; a run that is shorter leaves none."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        # It speaks on stderr, and calls a missing GPU an error.
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
        """A step is done."""
        self._profile.step()

    def _write(self, recorded: profile) -> None:
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(exist_ok=True)
            recorded.export_chrome_trace(str(temporary))
            os.replace(temporary, self.path)
        except OSError as error:
            raise KDCacheError(f"cannot write {self.path}: {error.strerror}") from None
