"""Batches: the right crops in the right order, checked against the store, and errors that arrive unchanged."""

import numpy as np
import pytest
import torch

from kdcache.cache.codecs.registry import Uniform
from kdcache.cache.errors import DataError, StoreMismatchError, TrainingError
from kdcache.cache.store.reader import Entry
from kdcache.cache.views.device_replay import replay_boxes
from kdcache.cache.views.drawing import draw_view
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import EntryRow, crop_digest, replay
from kdcache.distill.data import targets
from kdcache.distill.data.loader import DeviceCopier, read_batches
from kdcache.distill.data.order import EntryOrder, FreshOrder
from kdcache.distill.data.targets import CachedTargets, FreshViews, OnlineTargets, StoredViews, ViewDataset

POLICY = ViewPolicy(crop_height_px=24, crop_width_px=32, photometric=True)
N_IMAGES = 5


class Images:
    """Five noisy images of different sizes; `edited` names one whose pixels changed, `broken` one that cannot be read."""

    image_ids = tuple(f"image-{n}" for n in range(N_IMAGES))

    def __init__(self, edited: int | None = None, broken: int | None = None) -> None:
        self.edited, self.broken = edited, broken

    def __len__(self) -> int:
        return N_IMAGES

    def image(self, index):
        if index == self.broken:
            raise DataError(f"image-{index} is cut off", hint="fetch it again")
        pixels = np.random.default_rng(index).integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        return 255 - pixels if index == self.edited else pixels

    def label(self, index):
        if index == 3:
            return None
        return np.random.default_rng(index).integers(0, 5, (40 + index, 50), dtype=np.uint8)


class Reader:
    """Two passes, in normal and reversed order. The codes of an entry identify it."""

    n_images = N_IMAGES
    url = "stores/a"
    has_crops = False

    class spec:
        views = POLICY

    def entries(self, pass_index, positions):
        return [self.entry(pass_index, position) for position in positions]

    def entry(self, pass_index, position):
        images, index = Images(), (position, N_IMAGES - 1 - position)[pass_index]
        image, label = images.image(index), images.label(index)
        view = draw_view(POLICY, 0, images.image_ids[index], pass_index, image.shape[:2], label)
        digest = crop_digest(replay(view, POLICY, image, label))
        codes = np.full((2, 3, 4), 10 * pass_index + index, np.int16)
        return Entry(EntryRow(index, pass_index, view, digest), {"logits": codes})


def stored(images=None, check_crops="always"):
    order = EntryOrder(passes=(0, 1), n_images=N_IMAGES, unit_entries=2, pool_units=2, seed=7)
    return ViewDataset(images or Images(), StoredViews(Reader(), order, check_crops))


def take(dataset, steps, **where):
    batches = read_batches(dataset, **{"batch_size": 4, "start_step": 0, **where})
    return [next(batches) for _ in range(steps)]


def test_a_batch_is_what_its_entries_say():
    dataset = stored()
    (batch,) = take(dataset, 1)
    assert batch.image.shape == (4, 24, 32, 3) and batch.image.dtype == torch.uint8
    assert batch.label.shape == (4, 24, 32) and batch.label.dtype == torch.uint8
    assert batch.codes["logits"].shape == (4, 2, 3, 4) and batch.codes["logits"].dtype == torch.int16
    images = dataset.images
    for t in range(4):
        entry = Reader().entry(*dataset.views.order.entry(t))
        index = entry.row.image_index
        crop = replay(entry.row.view, POLICY, images.image(index), images.label(index))
        assert np.array_equal(batch.image[t].numpy(), crop.image)
        assert np.array_equal(batch.label[t].numpy(), crop.label)
        assert batch.valid_size[t].tolist() == [crop.height, crop.width]
        assert int(batch.codes["logits"][t, 0, 0, 0]) == 10 * entry.row.view_index + index


def test_an_image_without_a_label_is_all_void():
    dataset = stored()
    crops = [crop for crop, _ in dataset.views.cut(range(10), dataset.images)]
    unlabelled = [t for t, crop in enumerate(crops) if crop.label.min() == 255]
    assert ["image-3" in dataset.describe([t]) for t in unlabelled] == [True, True]


def test_processes_share_every_step_and_starting_later_changes_nothing():
    whole = take(stored(), 5)
    halves = [take(stored(), 5, rank=rank, processes=2) for rank in (0, 1)]
    for step in range(5):
        joined = torch.cat([halves[0][step].image, halves[1][step].image])
        assert torch.equal(whole[step].image, joined)
    later = take(stored(), 2, start_step=3)
    assert torch.equal(later[0].image, whole[3].image) and torch.equal(later[1].image, whole[4].image)


def test_a_batch_is_read_at_once_by_pass(monkeypatch):
    dataset, asked = stored(), []
    entries = Reader.entries
    monkeypatch.setattr(
        Reader, "entries", lambda self, *places: (asked.append(places), entries(self, *places))[1]
    )
    list(take(dataset, 2))
    order = [dataset.views.order.entry(t) for t in range(8)]
    first, second = order[0][0], order[5][0]
    assert {first, second} == {0, 1}
    assert asked == [
        (first, [position for _, position in order[:4]]),
        (first, [order[4][1]]),
        (second, [position for _, position in order[5:]]),
    ]


def test_an_epoch_shows_every_image_once():
    entries = [stored().describe([t]) for t in range(4 * N_IMAGES)]
    for epoch in range(4):
        names = [entry.split()[0] for entry in entries[epoch * N_IMAGES : (epoch + 1) * N_IMAGES]]
        assert sorted(names) == list(Images.image_ids)


def test_a_changed_image_stops_with_its_name():
    with pytest.raises(StoreMismatchError, match=r"image-2 view [01] .*another image") as caught:
        take(stored(Images(edited=2)), 3)
    assert "`kdcache info stores/a`" in (caught.value.hint or "")
    assert len(take(stored(Images(edited=2), check_crops="off"), 3)) == 3


def test_sampling_checks_every_sixteenth_entry():
    dataset = stored(check_crops="sample")
    seen = [int(dataset.views.reader.entry(*dataset.views.order.entry(t)).row.image_index) for t in range(17)]
    edited = ViewDataset(Images(edited=seen[16]), dataset.views)
    if seen[0] != seen[16]:
        edited[0]
    with pytest.raises(StoreMismatchError):
        edited[16]
    unchecked = next(t for t in range(1, 16) if seen[t] == seen[16])
    assert edited[unchecked].image.shape == (24, 32, 3)


def test_an_error_arrives_as_it_was_raised():
    with pytest.raises(DataError) as caught:
        take(stored(Images(broken=1)), 3)
    assert str(caught.value) == "image-1 is cut off" and caught.value.hint == "fetch it again"


def test_fresh_views_never_come_back():
    views = FreshViews(POLICY, FreshOrder(n_images=N_IMAGES, seed=7), seed=0)
    dataset = ViewDataset(Images(), views)
    names = {dataset.describe([t]) for t in range(4 * N_IMAGES)}
    assert names == {f"{name} view {k}" for name in Images.image_ids for k in range(4)}
    crops = {dataset[t].image.numpy().tobytes() for t in range(4 * N_IMAGES)}
    assert len(crops) == 4 * N_IMAGES


def test_cached_targets_are_decoded_codes():
    (batch,) = take(stored(), 1)
    codec = Uniform(step=0.5, offsets=(1, -2))
    decoded = CachedTargets({"logits": codec})(batch)
    assert torch.equal(decoded["logits"], codec.decode(batch.codes["logits"]))
    assert decoded["logits"].dtype == torch.float32


def test_online_targets_ask_the_teacher_for_the_crops_of_the_batch():
    (batch,) = take(stored(), 1)

    def teacher(crops, valid_size, wanted):
        return {name: crops.float().mean(dim=(1, 2, 3)) + valid_size[:, 0] for name in wanted}

    targets = OnlineTargets(teacher, ("features",))(batch)
    assert list(targets) == ["features"]
    assert torch.equal(targets["features"], batch.image.float().mean(dim=(1, 2, 3)) + batch.valid_size[:, 0])


def on_device(dataset: ViewDataset) -> ViewDataset:
    """The same stream, its crops made by the device; a CPU can be that too."""
    return ViewDataset(dataset.images, dataset.views, on_device=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["stored", "fresh"])
def test_a_device_makes_the_same_batches(kind, workers):
    dataset = stored()
    if kind == "fresh":
        dataset = ViewDataset(Images(), FreshViews(POLICY, FreshOrder(n_images=N_IMAGES, seed=7), seed=0))
    wanted = take(dataset, 6)
    batches = read_batches(on_device(dataset), batch_size=4, start_step=0, workers=workers)
    copy = DeviceCopier(torch.device("cpu"), POLICY)
    for batch in wanted:
        came = next(batches)
        assert came.boxes is not None and came.image.numel() == 0
        found = copy(came)
        assert torch.equal(found.image, batch.image) and torch.equal(found.label, batch.label)
        assert torch.equal(found.valid_size, batch.valid_size) and found.codes.keys() == batch.codes.keys()
        assert all(torch.equal(found.codes[name], codes) for name, codes in batch.codes.items())
    batches.close()


def test_boxes_are_checked_as_crops_are():
    with pytest.raises(StoreMismatchError, match=r"image-2 view [01] .*another image"):
        take(on_device(stored(Images(edited=2))), 3)
    dataset = stored(check_crops="sample")
    first = [int(dataset.views.reader.entry(*dataset.views.order.entry(t)).row.image_index) for t in range(4)]
    edited = on_device(ViewDataset(Images(edited=first[1]), dataset.views))
    take(edited, 1)  # position 1 is none of every sixteenth
    with pytest.raises(StoreMismatchError, match=f"image-{first[1]} "):
        take(edited.checking(until=4), 1)


def test_a_device_that_computes_wrongly_is_found_at_the_first_batch(monkeypatch):
    made = []

    def wrong(boxes, policy):
        image, label, valid_size = replay_boxes(boxes, policy)
        made.append(image)
        return (image + 1 if len(made) == 1 else image), label, valid_size

    monkeypatch.setattr(targets, "replay_boxes", wrong)
    with pytest.raises(TrainingError, match="makes another image of the first batch's boxes"):
        DeviceCopier(torch.device("cpu"), POLICY)(take(on_device(stored()), 1)[0])
