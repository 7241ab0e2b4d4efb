"""Where a comparison goes: the terminal, CSV files, `results.json`, `report.html`, W&B."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from softgate import files, signals
from softgate.errors import SoftgateError, printable
from softgate.evaluation import runs
from softgate.evaluation.compare import Comparison
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.reports import comparison, methods, results, sentences
from softgate.evaluation.reports.headline import headline
from softgate.tables import Table, console, escaped
from softgate.training.figures import FIGURES, FiguresConfig


def publish(found: Comparison, directory: Path, figures: FiguresConfig = FIGURES) -> dict[str, Any]:
    """Prints the summary and the claims; writes all files.

    Args:
        found: The comparison.
        directory: Where to.
        figures: How charts become files.

    Returns:
        What `results.json` holds.
    """
    with signals.deferred("writing the report"):
        written, tables, path = _write(found, directory, figures)
    if found.options.wandb is not None:
        _log(found, tables, path, str(found.options.wandb), directory)
    return written


def _write(found: Comparison, directory: Path, figures: FiguresConfig) -> tuple[dict[str, Any], dict[str, Table], Path]:
    """Writes all files and prints; gives what `results.json` holds, the tables by their names, and the page."""
    plain = results.plain(found)
    written = {"schema": 1, "runs": [], "comparison": plain}
    files.write_json(written, directory / "results.json")
    shown = found.for_people()
    tables = {
        "summary": comparison.summary(shown),
        "differences": comparison.differences(shown),
        "outlook": comparison.outlook(shown),
        "seeds": comparison.per_seed(shown),
        "timing": comparison.runs(shown),
    }
    numbers = [{key: value for key, value in row.items() if key != "deltas"} for row in plain["differences"]]
    files.write_csv(numbers, directory / "differences.csv")
    # For machines, which read an arm under its own name.
    listed = {"summary": comparison.summary(found), "timing": comparison.runs(found)}
    listed["classes"] = comparison.classes(found)
    for name, table in listed.items():
        files.write_csv(table.records(), directory / f"{name}.csv", table.heads)
    words = HydraConfig.get().overrides.task
    command = runs.command("evaluate.py", words)
    path = directory / "report.html"
    drawn = comparison.charts(shown)
    for name, (_, chart, _) in (pair for part in drawn.values() for pair in part.items()):
        figures.save(chart, files.folder(directory / "figures") / f"{name}.png")
    files.write(comparison.page(found, command, drawn, directory), path)
    files.write(markdown(found, command), directory / "report.md")
    files.write(latex(found), directory / "report.tex")
    terminal = console()
    terminal.print(tables["summary"].rich())
    for line in [*found.notes, *found.tuned, *sentences.claims(shown)]:
        terminal.print(line, soft_wrap=True, markup=False, highlight=False)
    terminal.print(f"report: {path}", soft_wrap=True, markup=False)
    for line in headline(shown):
        terminal.print(line, soft_wrap=True, markup=False, highlight=False, style="bold")
    return written, tables, path


def markdown(found: Comparison, command: str) -> str:
    """Claims, summary, differences in top-1 and how they were made, for a page such as docs/results.md."""
    found = found.for_people()
    every = comparison.differences(found)
    title, ahead = MEASURES[PRIMARY].title, comparison.outlook(found)
    primary = replace(every, rows=[row for row in every.rows if row[1] == title])
    made = found.runs[0].summary.get("environment") or {}
    hours = sum(float(run.summary.get("seconds") or 0) for run in found.runs) / 3600
    started = sorted(str(run.summary.get("started", ""))[:10] for run in found.runs)
    sweeps = list(dict.fromkeys(run.sweep_command for run in found.runs if run.sweep_command))
    about = (
        f"{found.data['name']}, {sentences.measured(found)}; {sentences.counted(len(found.runs), 'run')}, "
        f"{hours:.2f} hours of training in all; {started[0]}, {made.get('hardware', 'hardware not recorded')}."
    )
    lines = [*sentences.claims(found), *found.left, *found.notes, *found.tuned]
    parts = [
        "\n\n".join(map(_bare, headline(found))),
        "\n".join(["```bash", *sweeps, command, "```"]),
        _bare(about),
        "\n".join(f"- {_bare(line)}" for line in lines),
        comparison.summary(found).markdown(),
        primary.markdown() if primary.rows else "",
        ahead.markdown() if ahead.rows else "",
        f"**Methods.** {_bare(methods.methods(found))}",
    ]
    return printable("\n\n".join(filter(None, parts))) + "\n"


def latex(found: Comparison) -> str:
    """The paragraph on methods and the tables, for a document that has the packages booktabs and graphicx."""
    found = found.for_people()
    tables = [comparison.summary(found), comparison.differences(found), comparison.outlook(found)]
    tables.append(comparison.per_seed(found))
    parts = [
        "% \\usepackage{booktabs} and \\usepackage{graphicx} are needed.",
        rf"\paragraph{{Methods.}} {escaped(printable(methods.methods(found)))}",
        *(table.latex(fit=True) for table in tables if table.rows),
    ]
    return "\n\n".join(parts)


def _bare(line: str) -> str:
    """A line of text in Markdown, which takes what stands in angle brackets for HTML."""
    return line.replace("<", "&lt;")


def _log(found: Comparison, tables: Mapping[str, Table], path: Path, project: str, directory: Path) -> None:
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
        f"comparison/{name}": wandb.Table(columns=list(table.heads), data=table.texts) for name, table in tables.items()
    }
    run.log(logged | {"comparison/report": wandb.Html(path.read_text(encoding="utf-8"), inject=False)})
    run.summary["headline"] = headline(found.for_people())
    run.summary["claims"] = sentences.claims(found.for_people())
    run.finish()
