"""Slots: batches in shared memory that is written again and again, and never before its reader is done with it."""

import os

import pytest
import torch

from kdcache.cache.errors import UsageError
from kdcache.distill.data.loader import read_batches
from kdcache.distill.data.slots import Slot
from kdcache.distill.data.targets import Batch, ViewDataset


class Numbers(ViewDataset):
    """Entries that are their position, of a size that changes from batch to batch; position 40 is refused."""

    on_device = False

    def __init__(self, *, changing: bool = False) -> None:
        self.changing = changing

    def entries(self, positions: list[int]) -> list[Batch]:
        if 40 in positions:
            raise UsageError("position 40 is refused", hint="take another")
        length = 1 + (positions[0] * 997 % 5000 if self.changing else 999)
        return [
            Batch(
                image=torch.full((length, 3), t, dtype=torch.uint8),
                label=torch.full((length,), t, dtype=torch.int32),
                valid_size=torch.tensor([t, t + 1]),
                codes={"logits": torch.full((2, 5), t, dtype=torch.int16), "features": torch.tensor([t / 2])},
            )
            for t in positions
        ]


def require_step(batch: Batch, step: int, size: int) -> None:
    positions = torch.arange(step * size, (step + 1) * size)
    assert batch.image[:, 0, 0].tolist() == positions.tolist()
    assert (batch.image == positions[:, None, None]).all() and (batch.label == positions[:, None]).all()
    assert batch.valid_size.tolist() == [[t, t + 1] for t in positions.tolist()]
    assert (batch.codes["logits"] == positions[:, None, None]).all()
    assert batch.codes["features"].flatten().tolist() == [t / 2 for t in positions.tolist()]


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_stays_as_it_is_while_the_next_is_taken(workers: int, changing: bool) -> None:
    batches = read_batches(Numbers(changing=changing), batch_size=2, start_step=0, workers=workers)
    taken: list[Batch] = []
    for step in range(12):
        taken.append(next(batches))
        for back in range(min(2, step + 1)):
            require_step(taken[step - back], step - back, 2)
    batches.close()
    require_step(taken[-1], 11, 2)  # the memory outlives the workers as long as somebody has it


def test_memory_is_used_again() -> None:
    batches = read_batches(Numbers(), batch_size=2, start_step=0, workers=1)
    places = [next(batches).image.data_ptr() for _ in range(12)]
    batches.close()
    assert len(set(places)) == 4 and places[:4] == places[4:8] == places[8:]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_as_it_was_raised_and_in_its_turn(workers: int) -> None:
    batches = read_batches(Numbers(), batch_size=4, start_step=0, workers=workers)
    for step in range(10):
        require_step(next(batches), step, 4)
    with pytest.raises(UsageError, match="position 40 is refused") as caught:
        next(batches)
    assert caught.value.hint == "take another"


def test_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        batches = read_batches(Numbers(), batch_size=2, start_step=0, workers=2)
        next(batches)
        batches.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # the fork server's own


def test_both_sides_of_a_slot_see_the_same_and_it_grows() -> None:
    writer = Slot.create()
    reader = Slot(os.dup(writer.descriptor))
    kept = []
    for length in (1, 3, 5000, 10, 100_000):
        stack = {"a": [torch.arange(length)] * 3, "b": [torch.ones(7, 2, dtype=torch.bfloat16)] * 2}
        found = reader.read(writer.write(stack))
        assert all(torch.equal(found[name], torch.stack(tensors)) for name, tensors in stack.items())
        assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
        kept.append(found["a"])
    reader.close()
    writer.close()
    assert kept[-1].sum() == 3 * sum(range(100_000))
