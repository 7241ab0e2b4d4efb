"""Tables: one content, and in each of its forms nothing of it lost or taken for markup."""

import csv
import io
import re
import shutil
import subprocess

import pytest
from rich.console import Console

from softgate import files
from softgate.evaluation.reports import pages
from softgate.tables import Cell, Table, cell

NASTY = r"a_b & 50% of $x$ #1 {z} ~ ^ \ <script> | [bold]no[/bold] -- *"


def table(**changes) -> Table:
    settings = {"heads": ["arm", "top-1"], "rows": [["none", "0.8"], [NASTY, Cell("0.9", 0.912345, "better")]]}
    return Table(**settings | changes)


def printed(made, width: int = 120, **options) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(made.rich(**options))
    return console.export_text()


def test_a_row_of_another_length_or_an_unknown_alignment_is_refused():
    with pytest.raises(ValueError, match="a row has 1 cells, the table 2 columns"):
        table(rows=[["none"]])
    for align in ("lc", "l", "lrr"):
        with pytest.raises(ValueError, match=f"align={align}: l or r for each of 2 columns"):
            table(align=align)
    assert table().align == "lr"


def test_a_terminal_shows_every_sign_and_colours_what_is_marked():
    made = table(title="[red]title[/red]", heads=["[i]arm", "top-1"])
    text = printed(made)
    for part in (NASTY, "[red]title[/red]", "[i]arm", "0.9"):
        assert part in text
    console = Console(width=120, record=True, file=io.StringIO(), force_terminal=True)
    console.print(made.rich())
    assert "#008000" in console.export_html(inline_styles=True)  # green


def test_a_table_without_heads_has_no_head_anywhere():
    made = Table(["", ""], [["seed", "3"]], align="ll")
    assert [line.split() for line in printed(made).splitlines() if line.split()] == [["seed", "3"]]
    assert "midrule" not in made.latex()
    assert "<thead>" not in page([made])


def test_a_narrow_terminal_cuts_nothing_off():
    path = "outputs/a/very/long/path/of/a/run/that/has/no/blank"
    lines = printed(Table(["run", "value"], [[path, "0.123"]]), width=30).splitlines()
    assert "".join(line.split()[0] for line in lines if line.strip()).endswith(path)
    assert max(map(len, lines)) <= 30


def test_markdown_keeps_its_columns_whatever_is_in_a_cell():
    lines = table(rows=[[NASTY, "two\nlines"]]).markdown().splitlines()
    assert lines[1] == "| --- | ---: |"
    columns = [len(re.split(r"(?<!\\)\|", line)) for line in lines]
    assert columns == [4, 4, 4]
    assert "<script>" not in lines[2]
    assert lines[2].endswith("| two<br>lines |")


def test_csv_has_the_value_where_a_cell_has_one(tmp_path):
    files.write_csv(table().records(), tmp_path / "a.csv", table().heads)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["arm", "top-1"], ["none", "0.8"], [NASTY, "0.912345"]]
    assert cell(0.123456) == Cell("0.123", 0.123456)
    assert cell(3) == Cell("3")


@pytest.mark.parametrize(
    ("sign", "written"),
    [
        *((sign, rf"\{sign}") for sign in "&%$#_{}"),
        ("\\", r"\textbackslash{}"), ("~", r"\textasciitilde{}"), ("^", r"\textasciicircum{}"),
        ("<", r"\textless{}"), (">", r"\textgreater{}"), ("|", r"\textbar{}"), ("±", r"$\pm$"), ("↑", r"$\uparrow$"),
        ("[1]", "{[}1]"), ("*", "{*}"), ("--x", "-{}-x"), ("---", "-{}-{}-"), ("a-b", "a-b"), ("a\nb", "a b"),
    ],
)  # fmt: skip
def test_no_sign_means_anything_to_latex(sign, written):
    made = Table([sign], [[sign]], sign)
    assert made.latex().count(written) == 3
    assert made.latex().splitlines()[2] == rf"\caption{{{written}}}"


def test_latex_is_a_table_of_booktabs():
    assert table(rows=[["a", "1"], ["b", Cell("2", mark="better")]]).latex().splitlines() == [
        r"\begin{table}", r"\centering", r"\begin{tabular}{lr}", r"\toprule", r"arm & top-1 \\", r"\midrule",
        r"a & 1 \\", r"b & \textbf{2} \\", r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_sets_it(tmp_path):
    head, end = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}", "\\end{document}"
    (tmp_path / "a.tex").write_text(head + table(title=NASTY).latex() + end)
    subprocess.run(["pdflatex", "-halt-on-error", "a"], cwd=tmp_path, check=True, capture_output=True)


def page(tables) -> str:
    return pages.render("paths.html", tables=tables, pictures=[])


def test_a_page_shows_words_as_words_and_marks_as_classes():
    text = page([table(title="<script>alert(1)</script>")])
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<td class=better>0.9</td>" in text
