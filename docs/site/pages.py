"""Hooks of the documentation's site: pages made of what lies elsewhere, and links that work here and on GitHub.

The README, CONTRIBUTING, the changelog, the configs and the API reference are pages too; nothing is written twice. In
the documents links lead to files of the repository; here they are turned to the page that a file is, or to the
repository where `repo_url` says where that is, or else into words.
"""

from __future__ import annotations

import ast
import html
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "softgate"

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents outside of docs/, and the pages that they are."""

ROOMS = ("explainers", "grids", "metrics", "paths")
MODULES = ("gates", "pools", "functional")

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```$)", flags=re.S | re.M)
NODE = re.compile(r'^\s*(\w+)\["([^"]*)"\](?:\s*-->\s*(.*))?$', flags=re.M)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made of other files."""
    made = {page: (ROOT / source).read_text() for source, page in PAGES.items()}
    made["configs.md"] = configs()
    made |= {f"api/{name}.md": text for name, text in reference().items()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turns links to files of the repository into links to pages, and the diagram of floors into boxes."""
    uri = page.file.src_uri
    source = {made: name for name, made in PAGES.items()}.get(uri, f"docs/{uri}")

    def turned(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        place, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), place))
        found = page_of(path)
        if found is None:
            repository = config.repo_url
            return f"[{words}]({repository.rstrip('/')}/blob/main/{path})" if repository else words
        name, _, own = found.partition("#")
        there = posixpath.relpath(name, posixpath.dirname(uri) or ".")
        return f"{mark}[{words}]({there}{f'#{anchor or own}' if anchor or own else ''})"

    parts = CODE.split(markdown)
    for index, part in enumerate(parts):
        if part.startswith("```mermaid"):
            parts[index] = floors(part)
        elif not part.startswith("```"):
            parts[index] = LINK.sub(turned, part)
    return "".join(parts)


def page_of(path: str) -> str | None:
    """The page, with its place in it, that a file of the repository is; None where it is none."""
    if path in PAGES:
        return PAGES[path]
    if path == "conf" or path.startswith("conf/"):
        parts = path.removesuffix(".yaml").split("/")
        return f"configs.md#{parts[1]}" if len(parts) > 1 else "configs.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def configs() -> str:
    """A page with every config of conf/, as it lies there."""
    lines = ["# Configs", "", "Every key that can be typed, with what it means and its default, group by group."]
    top = sorted((ROOT / "conf").glob("*.yaml"))
    groups = sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir() and any(path.rglob("*.yaml")))
    for group in [*top, *groups]:
        lines += ["", f"## {group.stem} {{ #{group.stem} }}"]
        for path in [group] if group.is_file() else sorted(group.rglob("*.yaml")):
            name = path.relative_to(ROOT).as_posix()
            lines += ["", f'```yaml title="{name}"', path.read_text().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def reference() -> dict[str, str]:
    """The pages of the API reference: each public name of the package and of its rooms, from their docstrings."""
    stub = ast.parse((SRC / "__init__.pyi").read_text())
    names = [
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    skip = {*ROOMS, *MODULES, "figures"}
    intro = ast.get_docstring(ast.parse((SRC / "__init__.py").read_text())) or ""
    pages = {"softgate": _page("softgate", _example(intro), [f"softgate.{name}" for name in names if name not in skip])}
    for room in ROOMS:
        tree = ast.parse((SRC / room / "__init__.py").read_text())
        public = next(
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        pages[room] = _page(f"softgate.{room}", ast.get_docstring(tree) or "", [f"softgate.{room}.{n}" for n in public])
    for module in MODULES:
        tree = ast.parse((SRC / "surrogate" / f"{module}.py").read_text())
        public = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        own = [f"softgate.surrogate.{module}.{name}" for name in public if not name.startswith("_")]
        pages[module] = _page(f"softgate.{module}", ast.get_docstring(tree) or "", own)
    return pages


def _page(name: str, intro: str, names: list[str]) -> str:
    return "\n\n".join([f"# {name}", intro, *(f"::: {each}" for each in names)]) + "\n"


def _example(docstring: str) -> str:
    return re.sub(r"((?:^>>>.*\n(?:(?!\n).+\n)*)+)", r"```pycon\n\1```\n", docstring + "\n", count=1, flags=re.M)


def floors(diagram: str) -> str:
    """The diagram of the house as boxes, floor by floor; a page that draws it by itself would need the network."""
    rooms: dict[str, list[str]] = {}
    stands: dict[str, list[str]] = {}
    for key, words, below in NODE.findall(diagram):
        floor = words.split()[0] if words[0].isdigit() else "commands"
        rooms.setdefault(floor, []).append(f"{key}\0{words.removeprefix(floor).strip()}")
        stands.setdefault(key, []).extend(part.strip() for part in below.split("&") if part.strip())
    for key, below in re.findall(r"^\s*(\w+) --> (.*)$", diagram, flags=re.M):
        stands.setdefault(key, []).extend(part.strip() for part in below.split("&"))
    lines = ['<div class="floors">']
    for floor, found in rooms.items():
        lines.append(f'<div class="floor"><b>{html.escape(floor)}</b><div>')
        for room in found:
            key, words = room.split("\0")
            name, _, rest = words.partition("\u2014")
            on = f"<small>on {html.escape(', '.join(dict.fromkeys(stands[key])))}</small>" if stands[key] else ""
            lines.append(f"<div><strong>{html.escape(name.strip())}</strong> {html.escape(rest.strip())} {on}</div>")
        lines.append("</div></div>")
    return "\n".join([*lines, "</div>"])
