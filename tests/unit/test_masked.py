"""Weighted operations: equal to torch's if all weights are 1, and right for fractional weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdcache.distill.losses import relations
from kdcache.distill.losses.masked import (
    MaskedBatchNorm,
    average_pool,
    log_softmax_over_cells,
    max_pool,
    normalise_maps,
)
from kdcache.distill.losses.relations import relation_divergence

N, C, H, W = 2, 3, 5, 7


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(N, C, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


ALL = torch.ones(N, H, W)


class TestWhereAllTakePart:
    def test_softmax(self, maps: torch.Tensor) -> None:
        expected = maps.flatten(2).log_softmax(dim=2)
        torch.testing.assert_close(log_softmax_over_cells(maps, ALL), expected, rtol=0, atol=0)

    def test_norm(self, maps: torch.Tensor) -> None:
        expected = F.normalize(maps[:, 0].flatten(1), dim=1).reshape(N, H, W)
        torch.testing.assert_close(normalise_maps(maps[:, 0], ALL), expected)

    @pytest.mark.parametrize("kernel", [(2, 2), (3, 5)])
    def test_pools(self, maps: torch.Tensor, kernel: tuple[int, int]) -> None:
        mean, area = average_pool(maps, ALL, kernel)
        torch.testing.assert_close(mean, F.avg_pool2d(maps, kernel, ceil_mode=True))
        assert (area == 1).all()
        for ceil_mode in (False, True):
            largest, area = max_pool(maps, ALL, kernel, ceil_mode=ceil_mode)
            assert torch.equal(largest, F.max_pool2d(maps, kernel, ceil_mode=ceil_mode))
            assert (area == 1).all()

    def test_batch_norm(self, maps: torch.Tensor) -> None:
        ours, theirs = MaskedBatchNorm(C).double(), nn.BatchNorm2d(C).double()
        for norm in (ours, theirs):
            nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
            nn.init.uniform_(norm.bias, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(ours(maps, ALL), theirs(maps))


class TestAreas:
    """A map with every column twice, each with half the weight, gives the same as the map."""

    def halved(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return maps.repeat_interleave(2, dim=-1), torch.full((N, H, 2 * W), 0.5)

    def test_softmax_is_of_areas(self, maps: torch.Tensor) -> None:
        whole = log_softmax_over_cells(maps, ALL).exp()
        parts = log_softmax_over_cells(*self.halved(maps)).exp()
        torch.testing.assert_close(parts.reshape(N, C, H, W, 2).sum(dim=-1).flatten(2), whole)

    def test_norms_and_statistics_are_of_areas(self, maps: torch.Tensor) -> None:
        doubled, halves = self.halved(maps)
        torch.testing.assert_close(
            normalise_maps(doubled[:, 0], halves)[..., ::2], normalise_maps(maps[:, 0], ALL)
        )
        norm = MaskedBatchNorm(C).double()
        torch.testing.assert_close(norm(doubled, halves)[..., ::2], norm(maps, ALL))

    def test_pools_see_only_what_takes_part(self, maps: torch.Tensor) -> None:
        weights = torch.zeros(N, H, W)
        weights[:, :3, :4] = 1
        for pool in (average_pool, lambda *given: max_pool(*given, ceil_mode=True)):
            painted = torch.where(weights[:, None] > 0, maps, 99.0)
            found, area = pool(painted, weights, (2, 2))
            assert (found < 9).all() and (found[..., 2:] == 0).all()
            assert area[0].tolist() == [[1, 1, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]


class TestRelations:
    @pytest.fixture
    def given(self) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
        weights, key_weights = torch.tensor([1.0, 0.0, 0.5, 1.0]), torch.tensor([1, 0, 0.5, 1, 1.0, 0.25])
        return [draw(4, 3), draw(6, 3), draw(4, 5), draw(6, 5), weights.double(), key_weights.double()]

    def plain(self, given: list[torch.Tensor], temperature: float) -> torch.Tensor:
        own, own_keys, teacher, teacher_keys, weights, key_weights = given
        kept = key_weights > 0
        logs = [
            (a @ b[kept].T / temperature + key_weights[kept].log()).log_softmax(dim=1)
            for a, b in ((own, own_keys), (teacher, teacher_keys))
        ]
        return (weights * (logs[1].exp() * (logs[1] - logs[0])).sum(dim=1)).sum()

    @pytest.mark.parametrize("block", [1, 13, 2**20])
    def test_are_the_plain_divergence_whatever_the_block(
        self, given: list[torch.Tensor], block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relations, "BLOCK", block)
        wanted = [given[0].requires_grad_(), given[1].requires_grad_()]
        losses = [relation_divergence(*given, 0.3), self.plain(given, 0.3)]
        torch.testing.assert_close(*losses)
        for mine, theirs in zip(*(torch.autograd.grad(2 * loss, wanted) for loss in losses), strict=True):
            torch.testing.assert_close(mine, theirs)

    def test_keys_without_a_gradient(self, given: list[torch.Tensor]) -> None:
        given[0].requires_grad_()
        (gradient,) = torch.autograd.grad(relation_divergence(*given, 0.3), given[0])
        (expected,) = torch.autograd.grad(self.plain(given, 0.3), given[0])
        torch.testing.assert_close(gradient, expected)
