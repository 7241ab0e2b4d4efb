"""A data set of your own: a function that returns data sets of (image, label) for training and validation.

Images are Pillow's, uint8 tensors [C, H, W], or floats from 0 to 1; softgate resizes, augments, normalises and batches
them as conf/experiment/first.yaml says. A LightningDataModule will do too. Arguments are keys under `data.`.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset


class Digits(Dataset[tuple[Tensor, int]]):
    """Handwritten digits, 8 x 8 px, as scikit-learn brings them: put your own images in their place."""

    classes = tuple("0123456789")  # what grids and reports call them; without it they are numbers

    def __init__(self, numbers: range) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[numbers] * (255 / 16)).round().byte()
        self.targets = digits.target[numbers].tolist()  # the labels; without it every image is read once to know them

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.images[number][None], self.targets[number]


def make(training: int = 1400) -> tuple[Digits, Digits]:
    """The first `training` digits to train on, the others to validate."""
    return Digits(range(training)), Digits(range(training, 1797))
