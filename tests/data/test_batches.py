"""The stream of samples and the draws that go with it."""

from collections import Counter

import torch
from lumina2_trainer.trainer_core.data.batches import SampleStream, sample_generator
from lumina2_trainer.trainer_core.seeds import derive_seed


def test_every_pass_holds_each_sample_as_often_as_its_repeats():
    stream = SampleStream([1, 3, 2], seed=5)
    for epoch in range(4):
        counts = Counter(stream.sample_at(epoch * 6 + i) for i in range(6))
        assert counts == {0: 1, 1: 3, 2: 2}


def test_passes_are_shuffled_differently_and_repeatably():
    first, second = SampleStream([1] * 20, seed=1), SampleStream([1] * 20, seed=1)
    order = [first.sample_at(i) for i in range(40)]
    assert order == [second.sample_at(i) for i in range(40)]
    assert order[:20] != order[20:]
    assert order[:20] != [SampleStream([1] * 20, seed=2).sample_at(i) for i in range(20)]


def test_positions_can_be_read_in_any_order():
    stream = SampleStream([1] * 7, seed=0)
    forward = [stream.sample_at(i) for i in range(35)]
    assert [stream.sample_at(i) for i in reversed(range(35))] == forward[::-1]


def test_draws_depend_on_seed_and_position_only():
    a = torch.rand(3, generator=sample_generator(1, 10))
    assert torch.equal(a, torch.rand(3, generator=sample_generator(1, 10)))
    assert not torch.equal(a, torch.rand(3, generator=sample_generator(1, 11)))
    assert not torch.equal(a, torch.rand(3, generator=sample_generator(2, 10)))


def test_seeds_of_different_purposes_differ():
    assert derive_seed(1, "order", 2) != derive_seed(1, "draws", 2)
    assert 0 <= derive_seed(2**63 - 1, "x") < 2**63
