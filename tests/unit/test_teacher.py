"""The teacher: identity, targets, precision and factories."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcache.cache.errors import NotFoundError, TeacherError, UsageError, WeightsError
from kdcache.cache.networks.checkpoints import save_network
from kdcache.cache.networks.network import NetworkOutput, build_network, network_config
from kdcache.cache.networks.normalisation import BGR_CAFFE, RGB_IMAGENET
from kdcache.cache.teachers.factory import FactoryTeacher, state_sha256
from kdcache.cache.teachers.teacher import PRECISIONS, Teacher, load_teacher

CLASSES = 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "student.safetensors"
    network = build_network(network_config("pspnet_resnet18", CLASSES))
    save_network(path, network, normalisation=BGR_CAFFE, meta={"dataset": "streets"})
    return path


def load(weights: Path | str | None, name: str = "pspnet_resnet18", **options: Any) -> Teacher:
    return load_teacher(name, weights=weights, **{"dataset_name": "streets", "classes": CLASSES, **options})


@pytest.fixture
def crops() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 64, 96, 3), generator=generator, dtype=torch.uint8)
    return images, torch.tensor([[64, 96], [40, 70]])


def test_targets_are_the_networks_outputs(weights: Path, crops: tuple[Tensor, Tensor]) -> None:
    teacher = load(weights)
    outputs = teacher(*crops)
    assert list(outputs) == ["logits", "features", "aux", "backbone"]
    with torch.no_grad():
        expected = teacher.module(BGR_CAFFE(*crops))
    for name, found in outputs.items():
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert not found.is_inference()
        assert found.shape == (2, *teacher.target_shape(name, (64, 96)))
        torch.testing.assert_close(found, getattr(expected, name))
    chosen = teacher(*crops, targets=["features"])
    assert list(chosen) == ["features"]
    assert torch.equal(chosen["features"], outputs["features"])


def test_targets_take_part_in_a_backward_pass(weights: Path, crops: tuple[Tensor, Tensor]) -> None:
    target = load(weights)(*crops)["logits"]
    student = torch.zeros_like(target, requires_grad=True)
    (student * target).sum().backward()
    assert torch.equal(student.grad, target)


def test_the_module_is_frozen_and_in_evaluation_mode(weights: Path) -> None:
    module = load(weights).module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_padding_does_not_depend_on_what_lies_there(weights: Path, crops: tuple[Tensor, Tensor]) -> None:
    images, valid_size = crops
    other = images.clone()
    other[1, 40:] = 77
    teacher = load(weights)
    assert torch.equal(teacher(images, valid_size)["logits"], teacher(other, valid_size)["logits"])


def test_precision(weights: Path, crops: tuple[Tensor, Tensor]) -> None:
    exact = load(weights)(*crops)["features"]
    rough = load(weights, precision="bfloat16")(*crops)["features"]
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.1 * exact.norm()
    with pytest.raises(UsageError, match="bfloat16"):
        load(weights, precision="int8")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_weights_that_are_cast_once_give_autocast_s_outputs(
    weights: Path, crops: tuple[Tensor, Tensor], precision: str
) -> None:
    teacher = load(weights, precision=precision)
    found = teacher(*crops)
    with torch.inference_mode(), torch.autocast("cpu", PRECISIONS[precision]):
        output = teacher.module(
            teacher.normalisation(*crops).contiguous(memory_format=torch.channels_last), with_aux=True
        )
    for name, value in output._asdict().items():
        if value is not None:
            assert torch.equal(found[name], value.float()), name
    exact = teacher.in_float32()(*crops)
    assert all(torch.equal(exact[name], value) for name, value in load(weights)(*crops).items())


def test_identity_is_json_and_tells_teachers_apart(weights: Path, tmp_path: Path) -> None:
    identity = load(weights).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert str(weights.parent) not in json.dumps(identity)
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert load(copy).identity() == identity
    assert load(weights, precision="bfloat16").identity() != identity
    save_network(copy, build_network(network_config("pspnet_resnet18", CLASSES)), normalisation=BGR_CAFFE)
    assert load(copy).identity()["weights_sha256"] != identity["weights_sha256"]


def test_what_does_not_fit_is_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="5 classes, but cityscapes has 19"):
        load(weights, classes=19, dataset_name="cityscapes")
    with pytest.raises(UsageError, match="contains a pspnet_resnet18") as caught:
        load(weights, "pspnet_resnet50")
    assert caught.value.hint == "--teacher pspnet_resnet18"
    with pytest.raises(UsageError, match="unknown teacher 'pspnet_resnet1001'") as caught:
        load(weights, "pspnet_resnet1001")
    hint = caught.value.hint or ""
    assert hint.startswith("did you mean pspnet_resnet101? one of: pspnet_resnet18, ")
    assert hint.endswith("or your own factory package.module:function")
    with pytest.raises(UsageError, match="needs weights"):
        load(None)
    with pytest.raises(NotFoundError, match="dataset streets"):
        load("auto")
    with pytest.raises(NotFoundError):
        load(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match=r"text\.pth"):
        load(tmp_path / "text.pth")
    with pytest.raises(UsageError, match="does not give attention"):
        load(weights)(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), targets=["attention"])
    with pytest.raises(UsageError, match="does not give attention"):
        load(weights).target_shape("attention", (64, 64))


class Tiny(nn.Module):
    """A network of stride 8 whose logits are upsampled, as torchvision's are; its ReLU works in place."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 4, 8, stride=8)
        self.act = nn.ReLU(inplace=True)
        self.classifier = nn.Conv2d(4, classes, 1)
        self.up = nn.Upsample(scale_factor=8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.up(self.classifier(self.act(self.body(x))))}


TAPS = {"logits": "classifier", "features": "body"}


@pytest.fixture
def factories(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = ModuleType("teacher_factories")
    monkeypatch.setitem(sys.modules, "teacher_factories", module)
    yield module


def from_factory(factories: ModuleType, made: Any, **options: Any) -> Teacher:
    factories.make = lambda: made  # type: ignore[attr-defined]
    return load(None, "teacher_factories:make", **options)


def test_factory_with_taps(factories: ModuleType, crops: tuple[Tensor, Tensor]) -> None:
    made = FactoryTeacher(module=Tiny(), taps=TAPS, version="1.2")
    teacher = from_factory(factories, made)
    assert teacher.channels == {"logits": CLASSES, "features": 4}
    assert teacher.target_shape("features", (64, 96)) == (4, 8, 12)
    outputs = teacher(*crops)
    with torch.no_grad():
        before = made.module.body(RGB_IMAGENET(*crops))
        logits = made.module.classifier(before.relu())
    assert (before < 0).any()  # the tap is the output before the in-place ReLU
    torch.testing.assert_close(outputs["features"], before)
    torch.testing.assert_close(outputs["logits"], logits)
    assert not any(module._forward_hooks for module in made.module.modules())

    identity = teacher.identity()
    assert (identity["source"], identity["version"]) == ("factory teacher_factories:make", "1.2")
    assert identity["weights_sha256"] == state_sha256(Tiny())
    other = from_factory(factories, FactoryTeacher(module=Tiny(), taps=TAPS, version="1.3"))
    assert other.identity() != identity


def test_factory_with_a_class_map(factories: ModuleType, crops: tuple[Tensor, Tensor]) -> None:
    plain = from_factory(factories, FactoryTeacher(module=Tiny(7), taps=TAPS), classes=7)
    made = FactoryTeacher(module=Tiny(7), taps=TAPS, class_map=(6, 0, 3))
    mapped = from_factory(factories, made, classes=3)
    assert mapped.channels["logits"] == 3
    assert torch.equal(mapped(*crops)["logits"], plain(*crops)["logits"][:, [6, 0, 3]])
    assert mapped.identity()["class_map"] == [6, 0, 3]
    with pytest.raises(TeacherError, match="3 classes"):
        from_factory(factories, made, classes=4)
    with pytest.raises(TeacherError, match="from 0 to 6"):
        from_factory(factories, FactoryTeacher(module=Tiny(7), taps=TAPS, class_map=(7,)), classes=1)


class Plain(nn.Module):
    """Returns its logits in one of several forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 8, stride=8)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        logits = self.conv(x)
        forms = {
            "tensor": logits,
            "mapping": {"logits": logits, "aux": logits, "extra": 1},
            "output": NetworkOutput(logits, logits, None, logits),
        }
        return forms[self.form]


@pytest.mark.parametrize(
    ("form", "targets"),
    [("tensor", ["logits"]), ("mapping", ["logits", "aux"]), ("output", ["logits", "features", "backbone"])],
)
def test_a_bare_module_is_enough(
    form: str, targets: list[str], factories: ModuleType, crops: tuple[Tensor, Tensor]
) -> None:
    assert list(from_factory(factories, Plain(form))(*crops)) == targets


def test_factories_that_do_not_work_are_named(factories: ModuleType) -> None:
    name = "teacher_factories:make"
    with pytest.raises(TeacherError, match=rf"{name}: logits .* \(1, 5, 128, 128\)") as caught:
        from_factory(factories, FactoryTeacher(module=Tiny(), taps={"logits": "up"}))
    assert "stride_px" in str(caught.value.hint)
    with pytest.raises(TeacherError, match=f"{name}: its module gives no logits"):
        from_factory(factories, Tiny())
    with pytest.raises(TeacherError, match=f"{name}: its module fails"):
        from_factory(factories, nn.Linear(3, 3))
    with pytest.raises(TeacherError, match=f"{name} returned a int"):
        from_factory(factories, 3)
    with pytest.raises(TeacherError, match="5 classes"):
        from_factory(factories, Plain("tensor"), classes=19)

    def broken() -> nn.Module:
        raise RuntimeError("no weights here")

    factories.broken = broken  # type: ignore[attr-defined]
    with pytest.raises(TeacherError, match="teacher_factories:broken failed: RuntimeError: no weights here"):
        load(None, "teacher_factories:broken")
    with pytest.raises(UsageError, match="has no function 'nothing'"):
        load(None, "teacher_factories:nothing")
    with pytest.raises(UsageError, match="cannot import 'no_such_package'") as usage:
        load(None, "no_such_package:make")
    assert "PYTHONPATH" in str(usage.value.hint)
    with pytest.raises(UsageError, match=f"the factory {name} loads its own weights"):
        load("file.pth", name)


def test_factory_teacher_checks_its_fields() -> None:
    with pytest.raises(TeacherError, match="unknown tap attention"):
        FactoryTeacher(module=Tiny(), taps={"attention": "body"})
    with pytest.raises(TeacherError, match="no submodule 'head'"):
        FactoryTeacher(module=Tiny(), taps={"logits": "head"})
    with pytest.raises(TeacherError, match="stride_px"):
        FactoryTeacher(module=Tiny(), stride_px=0)


def test_state_digest_sees_names_shapes_and_values() -> None:
    first, second = Tiny(), Tiny()
    assert state_sha256(first) == state_sha256(second)
    with torch.no_grad():
        second.body.bias[0] += 1
    assert state_sha256(first) != state_sha256(second)
    assert state_sha256(nn.Linear(2, 8)) != state_sha256(nn.Linear(8, 2))
    assert state_sha256(first) == state_sha256(first.to(memory_format=torch.channels_last))
