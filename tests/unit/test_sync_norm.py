"""BatchNorm over several processes computes what one process computes on the whole batch."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdcache.distill.training.sync_norm import SyncNorm, synchronise_norms

SHARE = 3  # images a process
PART = """
import sys, torch
from torch.distributed import destroy_process_group, init_process_group

sys.path.insert(0, sys.argv[1])
import test_sync_norm
from kdcache.distill.training.sync_norm import synchronise_norms

if __name__ == "__main__":
    torch.set_num_threads(1)
    init_process_group("gloo")
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    network = synchronise_norms(test_sync_norm.make_network())
    part = slice(rank * test_sync_norm.SHARE, (rank + 1) * test_sync_norm.SHARE)
    torch.save(test_sync_norm.learn(network, part, processes), f"{sys.argv[2]}/{rank}.pt")
    destroy_process_group()
"""


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5, momentum=0.3)
    )
    for norm in (network[1], network[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return network.double()


def learn(network: nn.Module, part: slice, processes: int) -> dict[str, Tensor]:
    """Outputs, gradients and buffers after two steps on a part of a batch whose values lie far from zero."""
    torch.manual_seed(1)
    images = torch.randn(SHARE * processes, 3, 9, 7, dtype=torch.float64) * 2 + 50
    weights = torch.randn(SHARE * processes, 5, 7, 5, dtype=torch.float64)
    found = {}
    for step in range(2):
        network.zero_grad()
        mine = (images[part] * (1 + step)).requires_grad_()
        output = network(mine)
        (output * weights[part]).sum().backward()
        assert mine.grad is not None
        found |= {f"output {step}": output.detach(), f"input {step}": mine.grad}
    found |= {f"sum {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": buffer for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_shares_together_are_the_whole_batch(tmp_path: Path, processes: int) -> None:
    (tmp_path / "part.py").write_text(PART)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    command = [sys.executable, str(tmp_path / "part.py"), str(Path(__file__).parent), str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    whole = learn(make_network(), slice(None), processes)
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * processes
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for key, wanted in whole.items():
        shares = [part[key] for part in parts]
        kind = key.split()[0]
        if kind == "buffer":
            for share in shares:  # every process keeps the whole batch's statistics
                torch.testing.assert_close(share, wanted, msg=key, rtol=1e-12, atol=1e-12)
            continue
        found = torch.stack(shares).sum(dim=0) if kind == "sum" else torch.cat(shares)
        torch.testing.assert_close(found, wanted, msg=key, rtol=1e-10, atol=1e-10)


def test_one_process_and_evaluation_are_plain_batch_norm() -> None:
    plain, network = make_network(), synchronise_norms(make_network())
    assert [type(norm) for norm in (network[1], network[4])] == [SyncNorm, SyncNorm]
    wanted, found = (learn(each, slice(None), 1) for each in (plain, network))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    images = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    assert torch.equal(network.eval()(images), plain.eval()(images))


def test_keys_and_parameters_stay() -> None:
    network = make_network()
    parameters, keys = list(network.parameters()), list(network.state_dict())
    twin = copy.deepcopy(network)
    synchronise_norms(network)
    assert list(network.state_dict()) == keys
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    twin.load_state_dict(network.state_dict())


AGREEMENT = """
import os, sys, torch
from torch.distributed import destroy_process_group, init_process_group
from kdcache.distill.losses.processes import first_process_first, of_first_process

if __name__ == "__main__":
    init_process_group("gloo")
    rank, folder = torch.distributed.get_rank(), sys.argv[1]
    with first_process_first():
        found = sorted(os.listdir(folder))
        open(f"{folder}/{rank}", "w").close()
    assert (found == []) if rank == 0 else ("0" in found), found
    assert of_first_process((rank, "passes")) == (0, "passes")
    destroy_process_group()
"""


def test_the_first_process_looks_first_and_decides(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(AGREEMENT)
    (tmp_path / "seen").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "3"}
    command = [sys.executable, str(tmp_path / "part.py"), str(tmp_path / "seen")]
    ranks = [subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank)}) for rank in range(3)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * 3
