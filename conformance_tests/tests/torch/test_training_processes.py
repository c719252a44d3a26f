"""Training whole PyTorch models: averages, resuming, several processes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffstride_torch import (
    complexity_penalty,
    param_groups,
    project_strides,
)
from support.torch_training import (
    assert_close,
    batch,
    each_network,
    layers_of,
    network,
    sizes_of,
    small,
    strides_of,
    with_group_norm,
)
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

"""Relative error of logits."""


@each_network
def test_averaged_strides_decide_the_sizes_of_the_average(make):
    model = network(make)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    average.eval()
    images, _ = batch(make)
    expected, differed = None, False
    for step in range(4):
        with torch.no_grad():
            for layer in layers_of(model):
                layer.strides += 0.15
        average.update_parameters(model)
        # The first update copies.
        own = strides_of(model)
        expected = (
            own if step == 0 else [0.8 * e + 0.2 * s for e, s in zip(expected, own, strict=True)]
        )
        for found, wanted in zip(strides_of(average), expected, strict=True):
            assert_close(found, wanted, 1e-6)
        by_hand = copy.deepcopy(model).eval()
        for layer, strides in zip(layers_of(by_hand), strides_of(average), strict=True):
            layer.strides.data.copy_(strides)
        sizes = sizes_of(average, images)
        assert sizes == sizes_of(by_hand, images)
        differed |= sizes != sizes_of(model, images)
    assert differed
    # In the place of the model's own values they give what the average gives.
    model.load_state_dict(average.module.state_dict())
    assert torch.equal(model.eval()(images), average(images))


class Run:
    """A training run that draws its batches and noise from random state.

    The loss drives the first block's strides up and down again, so that the map of the second
    block, whose strides are driven up to their bound, becomes smaller and then larger.
    """

    STEPS = 24

    def __init__(self):
        self.model = small(strides=(1.5, 2.0), channels=(3, 4, 5))
        groups = param_groups(self.model, lr=0.01, stride_lr=0.2, weight_decay=0.01)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.9))
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 2 * self.STEPS)
        self.generator = torch.Generator().manual_seed(3)
        self.images, self.labels = batch(small, 12)
        self.images = self.images[..., :28, :]

    def state_dict(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "batches": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        self.generator.set_state(state["batches"])

    def step(self, number):
        """Train one step; return the loss and the size of the second block's input."""
        chosen = torch.randperm(len(self.images), generator=self.generator)[:4]
        images = self.images[chosen]
        images = images + 0.1 * torch.randn(images.shape)
        first, second = layers_of(self.model)
        outward = 1 if number < self.STEPS // 2 else -1
        loss = cross_entropy(self.model(images), self.labels[chosen])
        loss = loss + 0.1 * complexity_penalty(self.model)
        loss = loss - outward * first.strides.sum() - 2 * second.strides.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        project_strides(self.model)
        self.scheduler.step()
        return loss.item(), first.output_sizes(self.images.shape)


def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path):
    torch.manual_seed(7)
    whole = Run()
    records, states = [], []
    for number in range(Run.STEPS):
        torch.save(whole.state_dict(), tmp_path / f"{number}.pt")
        records.append((*whole.step(number), *map(torch.Tensor.tolist, strides_of(whole.model))))
        states.append(copy.deepcopy(whole.state_dict()))
    sizes = [size for _, size, *_ in records]
    smallest = sizes.index(min(sizes))
    # Through several sizes there and back: what the smallest was must not bind later.
    assert len(set(sizes[: smallest + 1])) > 2
    assert len(set(sizes[smallest:])) > 2

    for start in (1, smallest, smallest + 3, Run.STEPS - 2):
        torch.manual_seed(1000 + start)
        resumed = Run()
        resumed.load_state_dict(torch.load(tmp_path / f"{start}.pt", weights_only=True))
        for number in range(start, Run.STEPS):
            record = (*resumed.step(number), *map(torch.Tensor.tolist, strides_of(resumed.model)))
            assert record == records[number]
            for name, value in resumed.state_dict()["model"].items():
                assert torch.equal(value, states[number]["model"][name])
            assert torch.equal(resumed.state_dict()["random"], states[number]["random"])


RANKS, DISTRIBUTED_STEPS, RANK_BATCH = 2, 6, 3


def distributed_run(wrap, images, labels, first_strides=None):
    """Train a model; return its strides and sizes after every step, and its last state."""
    model = with_group_norm(network(small, torch.float64))
    if first_strides is not None:
        for layer in layers_of(model):
            layer.strides.data.fill_(first_strides)
    trained = wrap(model)
    optimizer = torch.optim.SGD(param_groups(trained, lr=0.05, stride_lr=3.0), momentum=0.5)
    strides, sizes = [], []
    for part, classes in zip(images, labels, strict=True):
        optimizer.zero_grad()
        loss = cross_entropy(trained(part), classes) + 0.1 * complexity_penalty(trained)
        loss.backward()
        optimizer.step()
        project_strides(trained)
        strides.append(strides_of(model))
        sizes.append(sizes_of(model, part[:1]))
    return {"strides": strides, "sizes": sizes, "state": model.state_dict()}


def joint_batches():
    return zip(
        *(
            batch(small, RANKS * RANK_BATCH, torch.float64, seed=20 + step)
            for step in range(DISTRIBUTED_STEPS)
        ),
        strict=True,
    )


def run_rank(rank, folder):
    """Be one process of a distributed training, on every second image, and save what came out."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), RANKS)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    images, labels = joint_batches()
    result = distributed_run(
        torch.nn.parallel.DistributedDataParallel,
        [part[rank::RANKS] for part in images],
        [classes[rank::RANKS] for classes in labels],
        # The wrapper hands out the first process's values.
        first_strides=None if rank == 0 else 1.1,
    )
    torch.save(result, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel_equals_one_process_on_the_joint_batch(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * RANKS, errors
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    alone = distributed_run(lambda model: model, *joint_batches())

    assert ranks[0]["sizes"] == ranks[1]["sizes"] == alone["sizes"]
    assert len(set(map(tuple, alone["sizes"]))) > 2
    for step in range(DISTRIBUTED_STEPS):
        one, other, single = (result["strides"][step] for result in (*ranks, alone))
        for a, b, c in zip(one, other, single, strict=True):
            assert torch.equal(a, b)
            assert_close(a, c, 1e-10)
    for name, value in alone["state"].items():
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
        assert_close(ranks[0]["state"][name], value, 1e-10)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
