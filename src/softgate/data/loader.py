"""The loader: from a split to batches as the network takes them, in an order that a resumed run can take up anywhere.

Which images a batch holds, and how they are augmented, is a function of the seed, the epoch and the batch's number. All
processes draw the same order and the same numbers and each takes its share, so that two processes train on the batches
of one. There is no state to save: an iteration starts where the trainer says it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from softgate.data import augment
from softgate.data.images import ImageFiles, Request

Batch = tuple[Tensor, Tensor]
Drawn = tuple[Tensor, Tensor | None]
"""The indices of a batch, and uniform numbers for each of its images where they are augmented."""

ORDER, AUGMENTATION = 0, 1
"""What a seed is drawn for."""


@dataclass(frozen=True)
class Share:
    """Which of several processes this is."""

    rank: int = 0
    world: int = 1

    def of(self, items: Tensor) -> Tensor:
        """Every `world`-th item, so that the shares together are the whole, none twice."""
        return items[self.rank :: self.world]


@dataclass(frozen=True)
class Process:
    """Who loads batches.

    Attributes:
        share: Which of several processes this is.
        workers: Further processes that decode files for it.
        device: Where its batches go.
    """

    share: Share = Share()
    workers: int = 0
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Finish:
    """From uint8 images to what the network takes, on the device.

    Attributes:
        size: Height and width of the result.
        mean: Subtracted from pixels in [0, 1], per channel.
        std: Divided by then, per channel.
        scale: Least and greatest share of the area that random crops cover; None does not crop.
        flip: Mirror half of the images at random.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    scale: Sequence[float] | None = None
    flip: bool = False

    def __call__(self, images: Tensor, u: Tensor | None = None) -> Tensor:
        """Normalised float32 [N, C, size, size].

        Args:
            images: uint8 [N, C, S, S]; S is `size` where nothing is cropped.
            u: [N, COLUMNS] uniform numbers; None does not augment.
        """
        if u is not None and self.scale is not None:
            box = augment.boxes(u, images.shape[2], images.shape[3], self.scale)
            x = augment.crop(images, box, self.size)
        else:
            x = images.float()
        if u is not None and self.flip:
            mirrored = augment.flips(u).to(x.device).view(-1, 1, 1, 1)
            x = torch.where(mirrored, x.flip(3), x)
        mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return x.div(255).sub_(mean).div_(std)


class ImageLoader:
    """Batches of one split: images [B, C, size, size], labels [B], on the device.

    Args:
        images: uint8 [N, C, S, S], or files that are decoded by workers.
        labels: [N].
        finish: Turns uint8 images into what the network takes.
        batch_size: Images for each process and batch.
        seed: Of the order and the augmentation; None is a fixed order without augmentation, every image exactly once.
        process: Which process this is, its helpers, and where its batches go.
        position: Says the epoch, and the batch to begin with; asked when the first batch is.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        labels: Tensor,
        finish: Finish,
        batch_size: int,
        seed: int | None = None,
        process: Process = Process(),  # it is frozen
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.images, self.labels, self.finish = images, labels, finish
        self.batch_size, self.seed, self.share = batch_size, seed, process.share
        self.device, self._position = torch.device(process.device), position
        self._files: DataLoader[Tensor] | None = None
        self._asked = _Asked()
        if isinstance(images, ImageFiles):
            self._files = DataLoader(
                images,
                batch_sampler=self._asked,  # requests in the place of bare indices
                num_workers=process.workers,
                persistent_workers=process.workers > 0,
                pin_memory=self.device.type == "cuda",
                collate_fn=images.collate,
                generator=torch.Generator(),  # or every iteration would draw from the global one
            )

    def __len__(self) -> int:
        total, world = len(self.labels), self.share.world
        if self.seed is None:
            return -(-len(range(0, total, world)) // self.batch_size)
        return max(1, total // (self.batch_size * world))

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that all of this happens when the first batch is asked for: a trainer makes the iterator
        # before it knows from its checkpoint where to begin.
        epoch, first = self._position()
        batches = ((own, self._draws(epoch, n, len(own))) for n, own in enumerate(self.plan(epoch)) if n >= first)
        for own, u, images in self._decoded(batches):
            if self.device.type == "cuda" and not images.is_pinned():
                images = images.pin_memory()
            images = images.to(self.device, non_blocking=True)
            yield self.finish(images, u), self.labels[own].to(self.device, non_blocking=True)

    def plan(self, epoch: int) -> list[Tensor]:
        """The indices of this process's images, batch by batch."""
        total, world, batches = len(self.labels), self.share.world, len(self)
        if self.seed is None:
            own = self.share.of(torch.arange(total))
            parts = list(torch.split(own, self.batch_size))
            # Every process has equally many batches, or those with fewer would wait for ever for the others.
            return parts if len(parts) == batches else list(torch.tensor_split(own, batches))
        generator = torch.Generator().manual_seed(augment.seed_of(self.seed, epoch, ORDER))
        order = torch.randperm(total, generator=generator)
        together = min(self.batch_size * world, total - total % world)
        return [self.share.of(order[b * together : (b + 1) * together]) for b in range(batches)]

    def _draws(self, epoch: int, number: int, own: int) -> Tensor | None:
        if self.seed is None:
            return None
        # For the images of all processes: the same for an image however many processes there are.
        return self.share.of(augment.draw(own * self.share.world, self.seed, epoch, AUGMENTATION, number))

    def _decoded(self, batches: Iterator[Drawn]) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        if self._files is None:
            assert isinstance(self.images, Tensor)
            for own, u in batches:
                yield own, u, self.images[own]
            return
        self._asked.batches = batches
        for images in self._files:
            own, u = self._asked.sent.popleft()
            yield own, u, images


class _Asked:
    """A batch sampler for workers that outlive an epoch: hands out what the loader asks for now, and notes it."""

    def __init__(self) -> None:
        self.batches: Iterator[Drawn] = iter(())
        self.sent: deque[Drawn] = deque()

    def __iter__(self) -> Iterator[list[Request]]:
        self.sent.clear()
        for own, u in self.batches:
            self.sent.append((own, u))
            rows = [None] * len(own) if u is None else u.numpy()
            yield list(zip(own.tolist(), rows, strict=True))
