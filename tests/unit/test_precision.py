"""True float32: exact in the block, as the user set it after."""

import pytest
import torch

from kdcache.cache.codecs.basis import ChannelBasis
from kdcache.cache.codecs.precision import _settings, true_float32


def values() -> list[object]:
    return [getattr(owner, name) for owner, name, _ in _settings()]


@pytest.fixture
def fast() -> object:
    """TF32 allowed, as NVIDIA's containers do."""
    before = values()
    for owner, name, exact in _settings():
        setattr(owner, name, "tf32" if exact == "ieee" else True)
    yield
    for (owner, name, _), value in zip(_settings(), before, strict=True):
        setattr(owner, name, value)


@pytest.mark.usefixtures("fast")
def test_tf32_is_off_in_the_block_alone() -> None:
    allowed = values()
    with true_float32():
        assert values() == [exact for _, _, exact in _settings()] != allowed
    assert values() == allowed
    with pytest.raises(ZeroDivisionError), true_float32():
        raise ZeroDivisionError
    assert values() == allowed


@pytest.mark.usefixtures("fast")
def test_codecs_multiply_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    basis, seen = ChannelBasis.fit([torch.randn(2, 4, 3, 3)]), []
    reshape = torch.Tensor.reshape
    monkeypatch.setattr(
        torch.Tensor, "reshape", lambda x, *shape: seen.append(values()) or reshape(x, *shape)
    )
    basis.synthesise(basis.analyse(torch.randn(1, 4, 3, 3)))
    assert seen and all(each == [exact for _, _, exact in _settings()] for each in seen)
