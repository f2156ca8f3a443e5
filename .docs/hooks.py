"""Additions of the build: reference, command line, tutorials, links of names, and mathematics without scripts.

MkDocs calls the functions `on_...`; https://www.mkdocs.org/dev-guide/plugins/#events says when.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parent.parent
PAGES = ROOT / ".docs" / "pages"
# Modules that are public and not imported by the package's face: they need other packages or several processes.
MORE_MODULES = ("distributed", "harness", "serving")
# Words of every-day prose or of methods, too, so that only `rl.fit` is a link.
COMMON_WORDS = {"fit", "report", "compose", "collect", "evaluate", "steer", "datasets", "detectors", "errors"} | {
    "evaluation", "policies", "studies", "viz",
}  # fmt: skip


def public_names() -> dict[str, str]:
    """Names of `radiant_lens/__init__.pyi`, in its order, each with the folder of its page.

    The folder is the kind of the name, which also parts `Report` from `report` where a disk knows no capitals.
    """
    stub = ast.parse((ROOT / "radiant_lens" / "__init__.pyi").read_text())
    kinds: dict[str, str] = {}
    for node in stub.body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            kind = "classes" if alias.name[0].isupper() else "functions"
            kinds[alias.name] = kind if isinstance(node, ast.ImportFrom) and node.module else "modules"
    package = ROOT / "radiant_lens"
    more = [n for n in MORE_MODULES if (package / f"{n}.py").exists() or (package / n / "__init__.py").exists()]
    return kinds | dict.fromkeys(more, "modules")


NAMES = public_names()


def reference_path(name: str) -> str:
    """Source path of a name's page."""
    return f"reference/{NAMES[name]}/{name}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation by the pages that `on_files` adds, and by how-to guides that it does not name."""
    nav: dict[str, list[Any]] = {title: items for entry in config.nav or [] for title, items in entry.items()}
    nav["Tutorials"] += [f"tutorials/{path.name}" for path in notebooks()]
    for kind in ("functions", "classes", "modules"):
        pages: list[Any] = [{name: reference_path(name)} for name in sorted(NAMES) if NAMES[name] == kind]
        nav["Reference"].append({kind.capitalize(): pages})
    guides = sorted(f"how-to/{path.name}" for path in (PAGES / "how-to").glob("*.md"))
    nav["How to"] += [path for path in guides if path not in str(nav["How to"])]
    return config


# Pages that live where others read them, too, by their place in the site.
ELSEWHERE = {
    "changelog.md": ".github/CHANGELOG.md",
    "contributing.md": ".github/CONTRIBUTING.md",
    "results/tiny.md": "radiant_lens/tiny/model/README.md",
    "results/data.md": "data/README.md",
}


# Before the plugin that renders notebooks looks for them.
@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in the folder of pages."""
    package: Any = griffe.load("radiant_lens", search_paths=[ROOT], resolve_aliases=True)
    contents = {
        "reference/index.md": overview(package),
        "reference/command-line.md": command_line(),
    }
    for name, kind in NAMES.items():
        contents[reference_path(name)] = module_page(package[name]) if kind == "modules" else f"::: radiant_lens.{name}"
    for path, text in contents.items():
        files.append(File.generated(config, path, content=text))
    for path, source in ELSEWHERE.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    for path in notebooks():
        files.append(File(f"tutorials/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def notebooks() -> list[Path]:
    """The tutorials, in order."""
    return sorted((ROOT / "tutorials").glob("*.ipynb"))


def first_line(member: Any) -> str:
    """The first line of a docstring."""
    return member.docstring.value.split("\n", 1)[0] if member.docstring else ""


def overview(package: Any) -> str:
    """A table of all public names."""
    lines = [
        "# Reference", "", "`import radiant_lens as rl` gives these names; the [command line](command-line.md) has "
        "the same work as commands.",
    ]  # fmt: skip
    for kind in ("functions", "classes", "modules"):
        lines += ["", f"## {kind.capitalize()}", "", "| name | what it is |", "|-|-|"]
        for name in sorted(name for name in NAMES if NAMES[name] == kind):
            lines.append(f"| [`{name}`]({kind}/{name}.md) | {first_line(package[name])} |")
    return "\n".join(lines)


def module_page(module: Any) -> str:
    """A module with its public members; those that are also names of the package have their own pages."""
    members = [name for name, member in module.members.items() if is_public(name, member, module)]
    own = [name for name in members if name not in NAMES or NAMES[name] == "modules" or module.name == "viz"]
    lines = [f"# radiant_lens.{module.name}", "", module.docstring.value if module.docstring else "", ""]
    elsewhere = [f"[`{name}`](../{NAMES[name]}/{name}.md)" for name in members if name not in own]
    lines += [f"On pages of their own: {', '.join(elsewhere)}." if elsewhere else "", ""]
    for name in own:
        path = f"radiant_lens.{module.name}.{name}"
        if is_found(module.members[name]):
            lines += [f"::: {path}", "    options: {heading_level: 2}", ""]
        else:
            value = getattr(import_module(f"radiant_lens.{module.name}"), name)
            lines += [f"## `{name}` {{#{path}}}", "", f"The text `{value!r}`.", ""]
    return "\n".join(lines)


def is_found(member: Any) -> bool:
    """Return False for names that are assigned several at once (`A, B = ...`), which Griffe does not read."""
    try:
        return not member.is_alias or bool(member.final_target)
    except griffe.AliasResolutionError:
        return False


def is_public(name: str, member: Any, module: Any) -> bool:
    """Return True for what a face re-exports (`from ... import x as x`) and what a module without a face defines."""
    if name.startswith("_"):
        return False
    if module.is_init_module:
        return bool(member.is_alias) and member.target_path.startswith("radiant_lens.")
    return not member.is_alias and bool(member.docstring)


def command_line() -> str:
    """A section for each command, from the definitions that `--help` reads."""
    from typer.main import get_command

    from radiant_lens.cli.app import app

    lines = ["# Command line", "", "`radiant-lens COMMAND --help` prints the same. `--json` prints one object."]
    commands: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009 (of groups only)
    for name, command in commands.items():
        text = re.sub(r"^(.*?: )?(radiant-lens .*)$", r"\1`\2`", command.help.strip(), flags=re.M)
        lines += ["", f"## {name}", "", text, "", "| option | default | meaning |", "|-|-|-|"]
        for option in command.params:
            if getattr(option, "hidden", False) or not getattr(option, "help", None):
                continue
            flags = " ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
            default = "" if option.default is None or option.default is False else option.default
            default = "required" if option.required else default
            lines.append(f"| {flags} | {default} | {option.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link names in text, and write mathematics as MathML, which browsers show without a script."""
    if page.file.src_uri.endswith(".ipynb"):
        content = outside_code(without_mathjax(content), with_mathml)
        # Notebooks link each other by the names of their files.
        content = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="../\1/"', content)

    def link(match: re.Match[str]) -> str:
        shown, prefix, name = match[0], match[1], match[2]
        if name not in NAMES or (name in COMMON_WORDS and not prefix) or page.file.src_uri == reference_path(name):
            return shown
        target = files.get_file_from_path(reference_path(name))
        return shown if target is None else f'<a href="{get_relative_url(target.url, page.file.url)}">{shown}</a>'

    return outside_code(content, lambda text: re.sub(r"<code>(rl\.)?(\w+)(?:\([^<]*\))?</code>", link, text))


def outside_code(content: str, change: Callable[[str], str]) -> str:
    """Change a page except for its code, headings, links, scripts and styles."""
    skipped = r"(<(pre|a|h[1-6]|script|style)\b.*?</\2>)"
    parts = re.split(skipped, content, flags=re.S)
    # Each match adds its text and the name of its tag to what lies between matches.
    return "".join(change(text) + (block or "") for text, block in zip(parts[::3], [*parts[1::3], ""]))


def without_mathjax(content: str) -> str:
    """Take out the scripts of MathJax, which would come from another host."""
    return re.sub(
        r'<script src="">\s*</script>|<script type="text/x-mathjax-config">.*?</script>', "", content, flags=re.S
    )


def with_mathml(text: str) -> str:
    """Write `$$...$$` and `$...$` as MathML."""
    for pattern, display in ((r"\$\$(.+?)\$\$", "block"), (r"\$([^$\n]+?)\$", "inline")):
        text = re.sub(pattern, lambda m: convert(html.unescape(m[1]), display=display), text, flags=re.S)  # noqa: B023
    return text
