"""The command `softgate`: `softgate train`, `softgate evaluate`, `softgate app` and `softgate init`."""

from __future__ import annotations

import runpy
import shutil
import sys
from importlib import resources
from pathlib import Path

from softgate.cli.exits import refuse
from softgate.errors import unknown

COMMANDS = {
    "train": "train a network with a backward rule: softgate train --help",
    "evaluate": "look at trained networks and compare them: softgate evaluate --help",
    "app": "look at trained networks in a browser: softgate app --help",
    "init": "write a starter folder with a network and data of your own: softgate init FOLDER",
}


def main() -> None:
    """Runs the command that the first word names, with the words behind it."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print("usage: softgate COMMAND ...\n")
        print("\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items()))
        return
    name, *rest = words
    if name not in COMMANDS:
        refuse(str(unknown("softgate", name, COMMANDS)))
    if name == "init":
        start(rest)
        return
    if name == "app":
        from softgate.cli import app

        app.run(rest, script_of("evaluate").parent / "conf")
        return
    script = script_of(name)
    sys.argv[:] = [str(script), *rest]  # processes that it starts run the script by its path
    runpy.run_path(str(script), run_name="__main__")


def script_of(name: str) -> Path:
    """`train.py` or `evaluate.py`, with `conf/` beside it: in the package where it is installed, else in the tree."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / f"{name}.py", package.parents[1] / f"{name}.py") if path.is_file())


def start(words: list[str]) -> None:
    """Writes the starter folder.

    Args:
        words: The folder; none is `my-softgate`.
    """
    if len(words) > 1 or words[:1] == ["--help"]:
        refuse("softgate init FOLDER: one folder is needed, or none for my-softgate.")
    folder = Path(*words or ["my-softgate"])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        refuse(f"softgate init {folder}: there is something in it already; name a folder that is new or empty.")
    try:
        with resources.as_file(resources.files("softgate.cli") / "starter") as starter:
            shutil.copytree(starter, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        refuse(f"softgate init {folder}: it cannot be written ({error.strerror}).")
    print(f"{folder}: " + ", ".join(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())))
    print(f"next: cd {folder} && softgate train experiment=first")
