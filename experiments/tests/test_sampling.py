import numpy as np
import pytest
import torch
from diffstride_experiments.sampling import SeededSamples, StepSampler, random_seed
from torch.utils.data import DataLoader, Dataset


class Noise(Dataset):
    """Samples that are random numbers themselves."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.rand(2), index


def sampler(steps, rank=0, processes=1, seed=3):
    return StepSampler(
        count=10,
        steps=steps,
        steps_per_epoch=2,
        batch_size=4,
        seed=seed,
        rank=rank,
        processes=processes,
    )


def test_each_epoch_has_its_own_order_of_different_samples():
    first, second, third, fourth = sampler(range(4))
    for epoch, keys in enumerate([first + second, third + fourth]):
        assert [key[0] for key in keys] == [epoch] * 8
        assert len({key[1] for key in keys}) == 8
    assert [key[1] for key in first + second] != [key[1] for key in third + fourth]
    assert list(sampler(range(4), seed=4)) != [first, second, third, fourth]


@pytest.mark.parametrize("start", range(5))
def test_going_on_gives_the_same_steps(start):
    assert list(sampler(range(start, 4))) == list(sampler(range(4)))[start:]
    assert len(sampler(range(start, 4))) == 4 - start


def test_processes_share_the_batches_of_one():
    whole = list(sampler(range(4)))
    shares = [list(sampler(range(4), rank=rank, processes=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [len(part) for part in parts] == [2, 2]
        assert sorted(parts[0] + parts[1]) == sorted(batch)


def batches(workers, steps=range(4)):
    loader = DataLoader(
        SeededSamples(Noise(), seed=3), batch_sampler=sampler(steps), num_workers=workers
    )
    return list(loader)


def test_random_samples_do_not_depend_on_workers_or_on_where_a_run_goes_on():
    expected = batches(0)
    torch.rand(5)
    for found in (batches(0), batches(2)):
        for (a, i), (b, j) in zip(found, expected, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(i, j)
    for (a, _), (b, _) in zip(batches(0, range(3, 4)), expected[3:], strict=True):
        assert torch.equal(a, b)


def test_random_samples_differ_between_epochs_and_samples():
    samples = SeededSamples(Noise(), seed=3)
    values = [samples[epoch, index][0] for epoch in range(3) for index in range(3)]
    assert len({tuple(value.tolist()) for value in values}) == 9


def test_seeds_are_for_torch_and_differ():
    seeds = {random_seed(*key) for key in np.ndindex(5, 5, 5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
