"""In which order a training sees its examples: like lengths share a step, drawn anew every epoch by the seed alone."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from keylayers.data.batches import epoch_order


class LikeLengths(Sampler[int]):
    """The order of each epoch; `set_epoch` says which, so that a resumed training goes on in the order it left.

    transformers' own grouping draws from the global generator and goes from long to short within each of its pools.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self.lengths, self.size, self.seed, self.epoch = lengths, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Turns to that epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.lengths, self.size, seed=self.seed, epoch=self.epoch))


def padding(lengths: Sequence[int], batch_size: int, accumulate: int, steps: int, seed: int) -> float:
    """Tokens computed for each real one over so many steps of such a training, at least 1."""
    computed = real = done = epoch = 0
    while done < steps:
        order = epoch_order(lengths, batch_size * accumulate, seed=seed, epoch=epoch)
        batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        for batch in batches[: (steps - done) * accumulate]:
            each = [lengths[index] for index in batch]
            computed += len(each) * max(each)
            real += sum(each)
        done, epoch = done - (-len(batches) // accumulate), epoch + 1
    return computed / real
