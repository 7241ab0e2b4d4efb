"""Where a reader finds more of a run: its directory beside the page, and its page in Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlsplit

from softgate.evaluation.runs import Run
from softgate.training.tracking import ID

SERVER = "https://wandb.ai"
"""Of W&B's own service, whose API has another address."""


def beside(path: Path | None, page: Path | None) -> str | None:
    """A relative address from the directory of a page; None where there is no way from one to the other.

    Args:
        path: What is linked to.
        page: The page's directory.
    """
    if path is None or page is None:
        return None
    try:
        way = Path(os.path.relpath(path.resolve(), page.resolve())).as_posix()
    except ValueError:  # on another drive
        return None
    return quote(way if way.startswith("..") else f"./{way}")  # or a name with a colon would be a scheme


def tracked(run: Run) -> str | None:
    """The address of a run in W&B; None where it has none that is certain.

    A run written offline has none before it is synced, and one in the user's default entity does not say which that is.
    """
    options = (run.config.get("logger") or {}).get("wandb") or {}
    entity, project = options.get("entity"), options.get("project")
    if not (run.directory and entity and project) or options.get("offline"):
        return None
    try:
        name = (run.directory / ID).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    if not name or any((run.directory / "wandb").glob(f"offline-run-*-{_literal(name)}")):
        return None
    return "/".join([_server(), quote(str(entity), ""), quote(str(project), ""), "runs", quote(name, "")])


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name if letter not in "/\\")


def _server() -> str:
    given = os.environ.get("WANDB_BASE_URL", "").rstrip("/")
    own = urlsplit(given).scheme in ("http", "https") and urlsplit(given).hostname != "api.wandb.ai"
    return given if own else SERVER
