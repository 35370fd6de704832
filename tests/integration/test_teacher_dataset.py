"""A store in a training loop of your own: the entries of the store, in the order of the seed, checked; and a method's loss."""

import shutil
from pathlib import Path

import pytest
import torch
from training import small_config

from kdcache.cache.errors import StoreDamagedError, StoreMismatchError, UsageError
from kdcache.cache.images import streets
from kdcache.cache.store.reader import StoreReader
from kdcache.distill import DistillationLoss, LossConfig, TeacherDataset
from kdcache.distill.data.inputs import open_inputs
from kdcache.distill.data.loader import read_batches
from kdcache.distill.losses.region import share_totals
from kdcache.distill.losses.terms import LossConfig as Config

TARGETS = ["logits", "features"]
CHANNELS = {"logits": 19, "features": 64}


def maps(n: int = 2) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return {name: torch.randn(n, channels, 8, 8, generator=draws) for name, channels in CHANNELS.items()}


def test_its_batches_are_those_of_a_run(shared_store: str, tmp_path: Path) -> None:
    """Same order, crops, labels, sizes and targets as `kdcache distill` with the same seed reads."""
    config = small_config(tmp_path, shared_store, method="logit+feature", seed=5)
    inputs = open_inputs(config, device=torch.device("cpu"))
    theirs = read_batches(inputs.views, batch_size=2, start_step=0)
    data = TeacherDataset(shared_store, TARGETS, seed=5)
    for step, mine in enumerate(data.batches(batch_size=2, steps=7)):
        expected = next(theirs)
        assert mine.step == step
        for name in ("image", "label", "valid_size"):
            assert torch.equal(getattr(mine, name), getattr(expected, name))
        decoded = inputs.targets(expected)
        assert mine.targets.keys() == decoded.keys() == set(TARGETS)
        assert all(torch.equal(mine.targets[name], decoded[name]) for name in TARGETS)
    assert step == 6
    assert data.channels == inputs.target_channels and data.class_names == inputs.images.classes.names


def test_a_loop_resumes_by_its_step(shared_store: str) -> None:
    data = TeacherDataset(shared_store, ["logits"])
    whole = list(data.batches(batch_size=2, steps=5))
    rest = list(data.batches(batch_size=2, steps=5, start_step=3))
    assert [batch.step for batch in rest] == [3, 4]
    for mine, again in zip(whole[3:], rest, strict=True):
        assert torch.equal(mine.image, again.image)
        assert torch.equal(mine.targets["logits"], again.targets["logits"])


def test_a_process_has_its_part_of_the_batch(shared_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TeacherDataset(shared_store, ["logits"])
    (whole,) = data.batches(batch_size=4, steps=1)
    place = "kdcache.distill.data.teacher_dataset"
    monkeypatch.setattr(f"{place}.count_processes", lambda: 2)
    monkeypatch.setattr(f"{place}.process_rank", lambda: 1)
    (part,) = data.batches(batch_size=4, steps=1)
    assert torch.equal(part.image, whole.image[2:])
    assert torch.equal(part.targets["logits"], whole.targets["logits"][2:])
    with pytest.raises(UsageError, match="2 processes cannot share a batch_size of 3"):
        data.batches(batch_size=3, steps=1)


def test_other_pixels_are_refused(shared_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = streets.Streets.image
    monkeypatch.setattr(streets.Streets, "image", lambda self, index: 255 - image(self, index))
    with pytest.raises(StoreMismatchError, match=r"crop .*the teacher"):
        next(TeacherDataset(shared_store, ["logits"]).batches(batch_size=2, steps=1))


def test_a_repaired_pass_ends_the_loop_at_its_epoch(shared_store: str, tmp_path: Path) -> None:
    url = shutil.copytree(shared_store, tmp_path / "store")
    data = TeacherDataset(str(url), ["logits"])
    batches = data.batches(batch_size=2, steps=9)  # three steps an epoch
    next(batches)
    for index in data.reader.passes:
        for manifest in (url / "kd" / "passes" / f"{index:03}").glob("manifest-*.json"):
            manifest.unlink()
    next(batches), next(batches)
    with pytest.raises(StoreDamagedError, match="was repaired or"):
        next(batches)


def test_what_cannot_work_is_refused_at_once(shared_store: str) -> None:
    with pytest.raises(StoreMismatchError, match="aux"):
        TeacherDataset(shared_store, ["aux"])
    with pytest.raises(UsageError, match="check_crops is one of always, sample, off, not 'never'"):
        TeacherDataset(shared_store, [], check_crops="never")
    with pytest.raises(UsageError, match="1 processes cannot share a batch_size of 0"):
        TeacherDataset(shared_store, []).batches(batch_size=0, steps=1)


@pytest.fixture(scope="module")
def batch(shared_store: str):
    return next(TeacherDataset(shared_store, TARGETS).batches(batch_size=2, steps=1))


def test_the_loss_is_the_methods(batch) -> None:
    """The terms of losses.terms.Method, with this batch's own counts of pixels: padding takes no part."""
    loss = DistillationLoss("logit+feature", CHANNELS, {"logits": 19, "features": 128})
    found = loss(maps(), batch)
    method = loss.method
    assert method.config == Config()
    totals = share_totals(method.count(batch.label, batch.valid_size), 1)
    expected = method(loss._network_output(maps()), batch.targets, batch.label, batch.valid_size, totals)
    assert found.keys() == {"ce", "logit", "feature"}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert {name for name, _ in loss.named_parameters()} == {"method._terms.feature.projector.weight"}


def test_padding_has_no_gradient(batch) -> None:
    """Whatever the student says outside of a crop's valid part changes no term."""
    batch = batch._replace(valid_size=torch.tensor([[32, 64], [64, 40]]))
    label = batch.label.clone()
    label[0, 32:], label[1, :, 40:] = 255, 255
    output = {name: value.requires_grad_() for name, value in maps().items()}
    loss = DistillationLoss("logit+feature", CHANNELS, {"logits": 19, "features": 128})
    terms = loss(output, batch._replace(label=label))
    (terms["logit"] + terms["feature"]).backward()
    for value in output.values():
        assert value.grad is not None and value.grad[0, :, :4].any() and value.grad[1, :, :, :5].any()
        assert not value.grad[0, :, 4:].any() and not value.grad[1, :, :, 5:].any()


def test_logits_alone_will_do(batch) -> None:
    loss = DistillationLoss("logit", {"logits": 19}, {"logits": 19})
    assert loss(maps()["logits"], batch).keys() == {"ce", "logit"}


def test_draws_follow_the_seed_and_the_step(batch) -> None:
    channels, teacher = {**CHANNELS, "backbone": 64}, {"logits": 19, "backbone": 64}
    output = {**maps(), "backbone": maps()["features"]}
    batch = batch._replace(targets={"logits": batch.targets["logits"], "backbone": output["backbone"] + 1})

    def masked(step: int, seed: int) -> float:
        torch.manual_seed(0)
        loss = DistillationLoss("mgd", channels, teacher, seed=seed)
        return float(loss(output, batch._replace(step=step))["generated"].detach())

    assert masked(3, 0) == masked(3, 0)
    assert len({masked(3, 0), masked(4, 0), masked(3, 1)}) == 3


def test_a_loss_that_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match="needs the student's features; student_channels names only logits"):
        DistillationLoss("feature", {"logits": 19}, {"features": 128})
    with pytest.raises(UsageError, match=r"trains a discriminator \(.*\), which only") as refused:
        DistillationLoss("skd", CHANNELS, {"logits": 19, "features": 128})
    assert refused.value.hint
    without = LossConfig(kd_terms="holistic=0")
    DistillationLoss("skd", CHANNELS, {"logits": 19, "features": 128}, config=without)
    loss = DistillationLoss("feature", CHANNELS, {"features": 128})
    with pytest.raises(UsageError, match="the student's output has no 'features'"):
        loss({"logits": torch.zeros(2, 19, 8, 8)}, None)


def test_entries_are_those_of_the_reader(shared_store: str) -> None:
    data = TeacherDataset(shared_store, ["logits"])
    (batch,) = data.batches(batch_size=6, steps=1)
    reader = StoreReader(shared_store, ["logits"])
    for i, (pass_index, position) in enumerate(data.order.batch_entries(0, 6)):
        entry = reader.entry(pass_index, position)
        decoded = reader.codecs["logits"].decode(torch.from_numpy(entry.codes["logits"])[None])[0]
        assert torch.equal(batch.targets["logits"][i], decoded)
        assert batch.valid_size[i].tolist() == [entry.row.view.height, entry.row.view.width]
