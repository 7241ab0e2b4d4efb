"""The options of `softgate app`, composed as the command does it."""

from pathlib import Path

from configs import composed
from softgate.app import config


def options(*words: str) -> config.AppConfig:
    return config.options(composed(*words, name="app", directory=Path()))
