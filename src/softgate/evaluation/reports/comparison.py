"""`report.html`: one file with everything in it, for a reader with no network and perhaps a phone."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softgate.evaluation.compare import Comparison
from softgate.evaluation.generalization.measures import MEASURES, PRIMARY
from softgate.evaluation.reports import sentences
from softgate.evaluation.runs import flatten

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 12px 48px; max-width: 1180px; font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 24px 0 4px; }
h2 { font-size: 1.15rem; margin: 36px 0 8px; border-bottom: 1px solid #ddd; padding-bottom: 4px; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.small { color: #555; font-size: .87rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .87rem; }
th, td { padding: 4px 10px 4px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th { font-weight: 600; vertical-align: bottom; }
.better { color: #0a6b2d; font-weight: 600; } .worse { color: #a3123a; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 12px; }
figure { margin: 0; } figcaption { font-size: .87rem; color: #555; }
.charts img { width: 100%; max-width: 480px; height: auto; } .grids img { width: 100%; height: auto; }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 16px; }
.key span { display: inline-block; margin-right: 14px; white-space: nowrap; font-size: .87rem; }
.key i { display: inline-block; width: 12px; height: 12px; margin-right: 5px; border-radius: 2px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; background: #f6f6f6; padding: 8px; }
details { margin: 6px 0; } summary { cursor: pointer; }
"""

GRID_WIDTH = 1000
"""Pixels that a grid's picture is shrunk to."""


def page(found: Comparison, command: str) -> str:
    """The report as HTML: no script, no address of another file.

    Args:
        found: The comparison.
        command: What made the report.
    """
    data = found.data
    shown = (
        f"{data['name']}, {data['images']:,} test images, {len(data['classes'])} classes; "
        f"{sentences.counted(len(found.runs), 'run')}, {sentences.counted(len(found.arms), 'arm')}; "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
    parts = [
        f"<h1>Which arm generalises better than {_text(found.baseline)}?</h1><p class=small>{_text(shown)}</p>",
        listed(sentences.claims(found)),
        section("Left out", listed([*found.left, *found.notes])) if found.left or found.notes else "",
        section("What was chosen for each arm", listed(found.tuned)) if found.tuned else "",
        section("Summary", SUMMARY + tabled(*summary(found))),
        section("Differences", _how(found) + _charts(sentences.forests(found)) + tabled(*differences(found))),
        _epochs(found),
        _efficiency(found),
        _scatters(found),
        section("Pullback grids of the best epoch", _grids(found)) if found.grids else "",
        section("Recipe", _recipe(found)),
        section("Runs: time, cost, hardware", tabled(*runs(found)) + _total(found)),
        section("Versions", _versions(found)),
        section("Commands", _commands(found, command)),
    ]
    return document(f"softgate: {data['name']}, {', '.join(found.arms)}", parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts in HTML, those that are empty left out: no script, no address of another file."""
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
    head += "<link rel=icon href='data:,'>"  # or the browser asks for one
    head += f"<title>{_text(title)}</title><style>{STYLE}</style>"
    body = "\n".join(filter(None, parts))
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def photograph(path: Path, name: str) -> str:
    """A picture in a file, shrunk to fit and put into the page."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((GRID_WIDTH, 10 * GRID_WIDTH))
    file = BytesIO()
    image.save(file, "JPEG", quality=88)
    caption = f"<figcaption>{_text(name)}</figcaption>"
    return f"<figure><img alt='{_text(name)}' src='{_uri(file.getvalue(), 'jpeg')}'>{caption}</figure>"


SUMMARY = (
    "<p class=small>Mean over seeds, and the standard deviation of one seed. ↑ more is better, ↓ less is better.</p>"
)

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def summary(found: Comparison) -> Table:
    """Measures down, arms across."""
    places = [(arm, c) for c in found.conditions for arm in found.arms if found.of(arm, c)]
    heads = ["measure", *(" at ".join(filter(None, place)) for place in places)]
    rows = []
    for key in found.keys:
        cells = []
        for arm, condition in places:
            values = np.array([each.values[key] for each in found.of(arm, condition).values() if key in each.values])
            spread = f" ± {sentences.number(key, float(values.std(ddof=1)))}" if len(values) > 1 else ""
            cells.append(f"{sentences.number(key, float(values.mean()))}{spread}" if len(values) else "–")
        rows.append([f"{MEASURES[key].title} {'↑' if MEASURES[key].better else '↓'}", *cells])
    counts = [sentences.counted(len(found.of(*place)), "seed") for place in places]
    return heads, [*rows, ["seeds", *counts]]


def differences(found: Comparison) -> Table:
    """One line for each arm and measure."""
    heads = ["arm", "measure", "difference", f"{found.options.level:.0%} interval", "p", "Holm p", "sign p"]
    heads += ["seeds", "detectable", "seeds needed", "verdict"]
    rows = []
    for row in found.rows:
        one, key = row.difference, row.measure
        ends = f"{sentences.number(key, one.low, signed=True)} … {sentences.number(key, one.high, signed=True)}"
        p = ["–" if math.isnan(value) else f"{value:.2g}" for value in (one.p, one.adjusted, one.sign_p)]
        least = sentences.number(key, one.detectable, signed=True).lstrip("+")
        needed = "–" if one.variance is None or not math.isfinite(one.detectable) else str(one.needed or "no number")
        label = " at ".join(filter(None, (row.arm, row.condition)))
        mean = sentences.number(key, one.mean, signed=True)
        rows.append([label, MEASURES[key].title, mean, ends, *p, str(len(row.seeds)), least, needed, row.verdict])
    return heads, rows


def runs(found: Comparison) -> Table:
    """One line for each run."""
    heads = ["run", "arm", "seed", "top-1", "best epoch", "seconds", "device-hours", "cost", "hardware", "started"]
    rows = []
    for run, each in zip(found.runs, found.measured, strict=True):
        made, seconds = run.summary.get("environment") or {}, float(run.summary.get("seconds") or 0)
        hours, price = seconds * made.get("devices", 1) / 3600, found.options.price
        hardware = f"{made.get('devices', 1)} × {made['hardware']}" if made else "not recorded"
        arm = " at ".join(filter(None, (run.arm, run.condition)))
        cells = [run.label, arm, str(run.seed), sentences.number(PRIMARY, each.values[PRIMARY])]
        cells += [str(run.summary.get("best/epoch", "–")), f"{seconds:.0f}", f"{hours:.3f}"]
        cells += ["–" if price is None else f"{hours * price:.2f}", hardware, str(run.summary.get("started", "–"))]
        rows.append(cells)
    return heads, rows


def _total(found: Comparison) -> str:
    seconds = [float(run.summary.get("seconds") or 0) for run in found.runs]
    devices = [(run.summary.get("environment") or {}).get("devices", 1) for run in found.runs]
    hours = sum(s * d for s, d in zip(seconds, devices, strict=True)) / 3600
    return f"<p class=small>Training alone: {hours:.2f} device-hours in all.</p>"


def _how(found: Comparison) -> str:
    options = found.options
    level = options.level
    said = (
        f"Each arm minus {found.baseline}, paired by seed and by image. An arm is called better or worse only where "
        f"its {level:.0%} interval excludes 0 and p, after Holm's correction over the arms of that measure, is at most "
        f"{1 - level:.2g}. Intervals are by a bootstrap over seeds × images, widened to Student's t for the few seeds; "
        f"measures without a value for each image (ECE, gap, sharpness) vary over seeds only. Claims rest on "
        f"{MEASURES[PRIMARY].title}; the other measures say where a difference lies. Marks below a line are seeds; red "
        f"is told apart. Detectable: the least true difference that is found four times in five; seeds needed: to "
        f"find one as large as the one seen. pp: percentage points."
    )
    corruptions, attack = options.corruptions, options.attack
    severities = ", ".join(map(str, corruptions.severities))
    families = ", ".join(corruptions.families)
    radii = [f"Linf {attack.linf}"] if attack.linf is not None else []
    radii += [f"L2 {attack.l2} at 32 px"] if attack.l2 is not None else []
    few = options.sharpness.images
    sizes = ""
    if families and severities:
        sizes += f"Corrupted: {families}, severities {severities}, {corruptions.images or 'all'} images. "
    if radii:
        sizes += (
            f"Attacks: {attack.steps} steps, {sentences.counted(attack.restarts, 'restart')}, "
            f"{attack.images or 'all'} images, {', '.join(radii)}. "
        )
    if few != 0:
        sizes += f"Sharpness: {few or 'all'} training images. "
    sizes += f"Checkpoint: {options.checkpoint}."
    return f"<p class=small>{_text(said)}</p><p class=small>{_text(sizes)}</p>"


def _key(found: Comparison) -> str:
    spans = [f"<span><i style='background:{colour}'></i>{_text(arm)}</span>" for arm, colour in sentences.legend(found)]
    return f"<p class=key>{''.join(spans)}</p>"


BANDS = "<p class=small>Means over seeds, bands: 95 % t intervals over seeds; on log scales, of logarithms.</p>"


def _epochs(found: Comparison) -> str:
    made = sentences.curves(found)
    return section("Over epochs", _key(found) + BANDS + _charts(made)) if made else ""


def _efficiency(found: Comparison) -> str:
    chart = sentences.efficiency(found)
    return (
        section("Data efficiency", _key(found) + BANDS + _charts({"top-1 over the share of data": chart}))
        if chart
        else ""
    )


def _scatters(found: Comparison) -> str:
    made = sentences.scatters(found)
    if not made:
        return ""
    figures = "".join(_figure(chart, title, said) for title, (chart, said) in made.items())
    return section("Alignment against accuracy", f"{_key(found)}<div class=charts>{figures}</div>")


def _grids(found: Comparison) -> str:
    figures = [photograph(path, arm) for arm, path in found.grids.items()]
    said = "Left block: the gradient, right block: the excitation pullback. Rows: images, columns: classes."
    return f"<p class=small>{said}</p><div class=grids>{''.join(figures)}</div>"


def _recipe(found: Comparison) -> str:
    flat = [flatten(run.config) for run in found.runs]
    same = {k: v for k, v in flat[0].items() if all(each.get(k) == v for each in flat)}
    rows = [[key, str(value)] for key, value in same.items() if not key.startswith(("callbacks", "readout", "hydra"))]
    return (
        "<p class=small>What all runs share; the rest is in the arms' names and in each run's config.yaml.</p>"
        f"<details><summary>{len(rows)} keys</summary>{tabled(['key', 'value'], rows)}</details>"
    )


def _versions(found: Comparison) -> str:
    kinds: dict[str, list[str]] = {}
    for label, made in [
        *((run.label, run.summary.get("environment")) for run in found.runs),
        ("this report", found.environment),
    ]:
        kinds.setdefault(_made_with(made), []).append(label)
    return listed([f"{kind} ({_several(names)})" for kind, names in kinds.items()])


def _made_with(made: Mapping[str, Any] | None) -> str:
    if not made:
        return "not recorded"
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items() if version)
    commit = f", commit {made['commit']}" if made.get("commit") else ""
    where = f"{made['devices']} × {made['hardware']}, {made['cores']} cores, {made['threads']} threads"
    return f"Python {made['python']}, {packages}{commit}; {made['platform']}; {where}"


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _commands(found: Comparison, command: str) -> str:
    sweeps = list(dict.fromkeys(run.sweep_command for run in found.runs if run.sweep_command))
    every = "\n".join(run.command for run in found.runs)
    return (
        f"<pre>{_text(chr(10).join([*sweeps, command]))}</pre>"
        f"<details><summary>every run by itself</summary><pre>{_text(every)}</pre></details>"
    )


def section(title: str, body: str) -> str:
    """A part of a page under a heading; the body is HTML."""
    return f"<h2>{_text(title)}</h2>{body}"


def listed(lines: Sequence[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def tabled(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of words that scrolls sideways on a narrow screen."""
    top = "".join(f"<th>{_text(head)}</th>" for head in heads)
    marked = ("better", "worse")
    body = "".join(
        f"<tr>{''.join(f'<td{_class(cell, marked)}>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _class(cell: str, marked: Sequence[str]) -> str:
    return f" class={cell}" if cell in marked else ""


def _charts(made: Mapping[str, bytes]) -> str:
    figures = "".join(_figure(chart, MEASURES[key].title if key in MEASURES else key) for key, chart in made.items())
    return f"<div class=charts>{figures}</div>"


def _figure(chart: bytes, title: str, said: str = "") -> str:
    caption = f"<figcaption>{_text(said)}</figcaption>" if said else ""
    return f"<figure><img alt='{_text(title)}' src='{_uri(chart, 'svg+xml')}'>{caption}</figure>"


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _text(words: str) -> str:
    return html.escape(words, quote=True)


def write(found: Comparison, directory: Path, command: str) -> Path:
    """Writes `report.html`; returns its path."""
    path = directory / "report.html"
    partial = path.with_suffix(".partial")
    partial.write_text(page(found, command), encoding="utf-8")
    partial.replace(path)
    return path
