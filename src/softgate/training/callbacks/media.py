"""Grids in the loggers that take pictures: W&B and TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from softgate.grids.reading import Grid
from softgate.grids.scaling import colours

COLUMNS = ("read-out", "image", "class", "target", "pullback", "logit before", "logit after", "predicted after", "flip")


def log_grid(trainer: pl.Trainer, grid: Grid, picture: Image.Image, caption: str, scalars: dict[str, float]) -> None:
    """Hands a grid to every logger that takes pictures; others are passed over.

    In W&B picture, table and the epoch's scalars stand in one step, so that sliders line up: what is logged here waits
    for Lightning's own row of this epoch. `scalars` go with them.
    """
    step = trainer.global_step - 1  # the step Lightning gives the epoch's metrics
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            values: dict[str, Any] = {"grids/pullbacks": wandb.Image(picture, caption=caption)}
            values["grids/cells"] = wandb.Table(columns=list(COLUMNS), data=_rows(grid))
            logger.experiment.log(values | scalars, commit=False)
        elif isinstance(logger, TensorBoardLogger):
            writer = logger.experiment
            writer.add_image("grids/pullbacks", _pixels(picture), step, dataformats="HWC")
            writer.add_text("grids/caption", caption, step)
            for key, value in scalars.items():
                writer.add_scalar(key, value, step)


def log_film(trainer: pl.Trainer, paths: list[Path]) -> None:
    """Hands the film strip to the loggers, and the animation to W&B."""
    step = max(0, trainer.global_step - 1)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            films = {"grids/film": wandb.Image(str(paths[0])), "grids/animation": wandb.Video(str(paths[1]))}
            logger.experiment.log(films, commit=False)
        elif isinstance(logger, TensorBoardLogger):
            with Image.open(paths[0]) as strip:
                logger.experiment.add_image("grids/film", _pixels(strip.convert("RGB")), step, dataformats="HWC")


def log_artifact(trainer: pl.Trainer, path: Path, epoch: int) -> None:
    """Uploads a grid's raw tensors to W&B, as a version of the run's artifact `grids-RUN`."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            artifact = wandb.Artifact(f"grids-{run.id}", type="grids", metadata={"epoch": epoch})
            artifact.add_file(str(path))
            run.log_artifact(artifact, aliases=["latest", f"epoch-{epoch}"])


def _pixels(picture: Image.Image) -> torch.Tensor:
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3)


def _rows(grid: Grid) -> list[list[Any]]:
    import wandb

    def shown(values: torch.Tensor) -> Any:
        return wandb.Image((values.expand(3, -1, -1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())

    images = [shown(image) for image in grid.images]
    rows = []
    for index, row in enumerate(grid.table()):
        b, k = row["image"], index % len(grid.targets)  # by place: two of ImageNet's classes share a name
        cell = shown(colours(grid.readings[row["read-out"]].values[b, k].float(), "cell"))
        named = {**row, "image": images[b], "pullback": cell}
        rows.append([named[column] for column in COLUMNS])
    return rows
