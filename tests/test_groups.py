"""Groups that processes share: their means are those of one process, and two rows a process travel."""

from types import SimpleNamespace

import pytest
import torch

from clipo_trl.groups import group_means, in_groups


class Processes:
    """Stand-in for `Accelerator` on each of W processes: a first pass collects what is gathered, a second one gets
    it."""

    def __init__(self, n_processes):
        self.sent = [None] * n_processes

    def of(self, rank):
        def gather(tensor):
            self.sent[rank] = tensor
            return torch.cat([tensor if sent is None else sent for sent in self.sent])

        return SimpleNamespace(process_index=rank, num_processes=len(self.sent), gather=gather)


@pytest.mark.parametrize("n_processes, G", [(1, 4), (2, 4), (3, 4), (4, 6), (6, 8), (12, 8), (8, 3)])
def test_means_of_groups_over_processes(n_processes, G):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(24, 3, generator=generator)
    valid = torch.rand(24, generator=generator) < 0.7
    valid[:G] = False  # a group without anything
    rows[~valid] = 0.0
    sums, counts = rows.view(-1, G, 3).sum(1), valid.view(-1, G).sum(1, keepdim=True)
    expected = (sums / counts.clamp(min=1)).repeat_interleave(G, dim=0)
    processes, B = Processes(n_processes), 24 // n_processes
    for _ in range(2):
        means = [
            group_means(rows[r * B : r * B + B], valid[r * B : r * B + B], G, processes.of(r))
            for r in range(n_processes)
        ]
    torch.testing.assert_close(torch.cat(means), expected)
    assert all(sent is None or sent.shape == (2, 4) for sent in processes.sent)  # sums and a count, not rows
    assert (processes.sent[0] is None) == (B % G == 0)


def test_rows_of_one_process_in_groups():
    rows = torch.arange(1.0, 6.0).unsqueeze(1)  # five rows, the first at place 6 of groups of 4
    groups, present = in_groups(rows, 4, 6)
    assert groups.squeeze(-1).tolist() == [[0, 0, 1, 2], [3, 4, 5, 0]]
    assert present.tolist() == [[False, False, True, True], [True, True, True, False]]
    whole, present = in_groups(torch.arange(8.0).unsqueeze(1), 4, 8)
    assert whole.shape == (2, 4, 1) and present.all()
