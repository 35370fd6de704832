"""The loader: workers start clean, use one thread each and read ahead within bounds; a worker's death is reported."""

import os
import signal
import time

import pytest
import torch
from numcodecs import blosc

from kdcache.cache.codecs.registry import fit_codec
from kdcache.cache.errors import TrainingError
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.distill.data.loader import BATCHES_AHEAD, DeviceCopier, InFlight, read_batches
from kdcache.distill.data.targets import Batch, CachedTargets, ViewDataset

SET_IN_THE_PARENT = []


def entry_of(*numbers: int) -> Batch:
    values = torch.tensor(numbers)
    return Batch(image=values, label=values, valid_size=values, codes={"logits": values})


class Facts(ViewDataset):
    """Entries that say what the process is like that made them."""

    on_device = False

    def __init__(self) -> None:
        pass

    def entries(self, positions):
        facts = (torch.get_num_threads(), blosc.use_threads, len(SET_IN_THE_PARENT), os.getpid())
        return [entry_of(*map(int, facts)) for _ in positions]


class Logged(ViewDataset):
    """Entries that are their position; whoever makes a batch writes a line into a file."""

    on_device = False

    def __init__(self, path) -> None:
        self.path = path

    def entries(self, positions):
        with open(self.path, "a") as file:
            file.write(f"{positions[0]}\n")
        return [entry_of(t) for t in positions]

    def made(self) -> int:
        return len(self.path.read_text().splitlines())


class Mortal(ViewDataset):
    """The process that makes the third batch is killed over it, or raises what it was given."""

    on_device = False

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def entries(self, positions):
        if positions[0] == 4 and self.error is not None:
            raise self.error
        if positions[0] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return [entry_of(t) for t in positions]


def test_a_worker_runs_on_one_thread_and_inherits_nothing():
    torch.set_num_threads(2)  # of the student; a fixture of all tests restores it
    SET_IN_THE_PARENT.append(1)
    batches = read_batches(Facts(), batch_size=2, start_step=0, workers=2)
    facts = [next(batches).image[0].tolist() for _ in range(4)]
    batches.close()
    SET_IN_THE_PARENT.clear()
    assert [fact[:3] for fact in facts] == [[1, False, 0]] * 4
    assert len({fact[3] for fact in facts} - {os.getpid()}) == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_in_flight_are_bounded(tmp_path, workers):
    dataset = Logged(tmp_path / "made")
    batches = read_batches(dataset, batch_size=3, start_step=0, workers=workers)
    bound = InFlight.of(workers=workers, batch_entries=3, entry_bytes=10)
    for step in range(3):
        batch = next(batches)
        assert batch.image.tolist() == [[t] for t in range(3 * step, 3 * step + 3)]
        ahead = step + 1 + workers * BATCHES_AHEAD
        deadline = time.monotonic() + 60
        while dataset.made() < ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # time for a batch that should not come
        assert dataset.made() == ahead
        assert 3 * (ahead - step) <= bound.entries
    batches.close()


def test_memory_in_flight_counts_slots_and_entries_about_to_be_stacked():
    assert InFlight.of(workers=0, batch_entries=4, entry_bytes=100) == InFlight(
        entries=8, entry_bytes=100, bytes=1200
    )
    assert InFlight.of(workers=3, batch_entries=2, entry_bytes=1) == InFlight(
        entries=14, entry_bytes=1, bytes=30
    )


@pytest.mark.parametrize("taken", [0, 2], ids=["at once", "when the others are taken"])
def test_a_killed_worker_is_one_clear_error(taken):
    """A finished batch of the dead worker may be lost too, before or during its transfer."""
    batches = read_batches(Mortal(), batch_size=2, start_step=0, workers=1)
    with pytest.raises(TrainingError, match="a loader process died") as caught:
        for _ in range(taken):
            next(batches)
        time.sleep(0.5)
        for _ in range(3 - taken):
            next(batches)
    assert "\n" not in str(caught.value) and "--resume" in caught.value.hint


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("a bug"), EOFError("a bug")])
def test_what_a_living_worker_raises_is_not_its_death(error):
    batches = read_batches(Mortal(error), batch_size=2, start_step=0, workers=1)
    with pytest.raises(type(error), match="a bug"):
        for _ in range(3):
            next(batches)


def test_on_a_cpu_nothing_is_copied():
    batch = entry_of(1, 2)
    moved = DeviceCopier(torch.device("cpu"))(batch)
    assert moved.image is batch.image and moved.codes["logits"] is batch.codes["logits"]


@pytest.mark.gpu
@pytest.mark.parametrize("request_", ["fp16", "uniform", "delta", "pca:4", "dct", "dct-range"])
def test_bytes_and_codes_travel_and_become_floats_on_the_gpu_without_waiting(request_):
    target = torch.randn(2, 5, 8, 16, generator=torch.Generator().manual_seed(0))
    codec = fit_codec(request_, [target])
    codes = codec.encode(target)[0]
    assert not codes.is_floating_point() or codes.dtype == torch.float16
    on_cpu = Batch(
        image=torch.arange(2 * 64 * 128 * 3, dtype=torch.int32).to(torch.uint8).reshape(2, 64, 128, 3),
        label=torch.zeros(2, 64, 128, dtype=torch.uint8),
        valid_size=torch.tensor([[64, 128], [64, 100]]),
        codes={"logits": codes},
    )
    pinned = Batch(*(tensor.pin_memory() for tensor in on_cpu[:3]), {"logits": codes.pin_memory()})
    device = torch.device("cuda")
    copy, targets = DeviceCopier(device), CachedTargets({"logits": codec})
    for mode in ("default", "error"):  # the second time nothing may wait for the device
        torch.cuda.set_sync_debug_mode(mode)
        try:
            batch = copy(pinned)
            decoded = targets(batch)["logits"]
            pixels = RGB_IMAGENET(batch.image, batch.valid_size)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert batch.image.dtype == torch.uint8 and batch.codes["logits"].dtype == codes.dtype
    assert {tensor.device.type for tensor in (*batch[:3], batch.codes["logits"], decoded, pixels)} == {"cuda"}
    torch.testing.assert_close(decoded.cpu(), codec.decode(codes), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pixels.cpu(), RGB_IMAGENET(on_cpu.image, on_cpu.valid_size))
