"""Where a comparison goes: the terminal, CSV files, `results.json`, `report.html`, W&B."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich import box
from rich.console import Console
from rich.table import Table

from softgate import files
from softgate.errors import SoftgateError
from softgate.evaluation import compare, runs
from softgate.evaluation.compare import Comparison
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.reports import comparison, sentences

WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""


def publish(found: Comparison, directory: Path) -> dict[str, Any]:
    """Prints the summary and the claims; writes all files.

    Args:
        found: The comparison.
        directory: Where to.

    Returns:
        What `results.json` holds.
    """
    plain = compare.plain(found)
    results = {"schema": 1, "runs": [], "comparison": plain}
    files.write_json(results, directory / "results.json")
    tables = {
        "summary": comparison.summary(found),
        "differences": comparison.differences(found),
        "timing": comparison.runs(found),
    }
    numbers = [{key: value for key, value in row.items() if key != "deltas"} for row in plain["differences"]]
    files.write_csv(numbers, directory / "differences.csv")
    files.write_csv(_rows(tables["summary"]), directory / "summary.csv")
    files.write_csv(_rows(tables["timing"]), directory / "timing.csv")
    words = HydraConfig.get().overrides.task
    command = runs.command("evaluate.py", words)
    path = comparison.write(found, directory, command)
    (directory / "report.md").write_text(markdown(found, command), encoding="utf-8")
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    console.print(_shown("summary", *tables["summary"]))
    for line in [*found.notes, *found.tuned, *sentences.claims(found)]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {path}", soft_wrap=True, markup=False)
    if found.options.wandb is not None:
        _log(found, tables, path, str(found.options.wandb), directory)
    return results


def markdown(found: Comparison, command: str) -> str:
    """Claims, summary, differences in top-1 and how they were made, for a page such as docs/results.md."""
    heads, rows = comparison.differences(found)
    title = MEASURES[PRIMARY].title
    primary = [row for row in rows if row[1] == title]
    made = found.runs[0].summary.get("environment") or {}
    hours = sum(float(run.summary.get("seconds") or 0) for run in found.runs) / 3600
    started = sorted(str(run.summary.get("started", ""))[:10] for run in found.runs)
    sweeps = list(dict.fromkeys(run.sweep_command for run in found.runs if run.sweep_command))
    about = (
        f"{found.data['name']}, {found.data['images']:,} test images; {sentences.counted(len(found.runs), 'run')}, "
        f"{hours:.2f} hours of training in all; {started[0]}, {made.get('hardware', 'hardware not recorded')}."
    )
    parts = [
        "\n".join(["```bash", *sweeps, command, "```"]),
        about,
        "\n".join(f"- {line}" for line in [*sentences.claims(found), *found.left, *found.notes, *found.tuned]),
        _pipes(*comparison.summary(found)),
        _pipes(heads, primary) if primary else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _pipes(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _rows(table: comparison.Table) -> list[dict[str, str]]:
    heads, rows = table
    return [dict(zip(heads, row, strict=True)) for row in rows]


def _shown(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        made.add_column(head, justify="left" if place == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def _log(found: Comparison, tables: Mapping[str, comparison.Table], path: Path, project: str, directory: Path) -> None:
    """Logs the tables, the charts' page and the claims to W&B, as one run of the type evaluate."""
    import wandb

    offline = os.environ.get("WANDB_MODE") == "offline"
    try:
        run = wandb.init(
            project=project,
            job_type="evaluate",
            dir=directory,
            mode="offline" if offline else None,
            config={"baseline": found.baseline, "arms": found.arms, **found.options.model_dump(mode="json")},
        )
    except wandb.errors.Error as error:
        hint = "log in with `wandb login`, or set WANDB_MODE=offline"
        raise SoftgateError(f"compare.wandb={project}: {error}; {hint}. The report is at {path}.") from None
    logged: dict[str, Any] = {
        f"comparison/{name}": wandb.Table(columns=list(heads), data=[list(row) for row in rows])
        for name, (heads, rows) in tables.items()
    }
    run.log(logged | {"comparison/report": wandb.Html(path.read_text(encoding="utf-8"), inject=False)})
    run.summary["claims"] = sentences.claims(found)
    run.finish()
