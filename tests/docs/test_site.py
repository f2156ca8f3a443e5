"""The documentation builds without a warning or a network; every public name has a page; no link is dead."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import radiant_lens as rl

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        loaded = {"script": "src", "img": "src", "iframe": "src", "link": "href"}.get(tag)
        # The canonical address and the neighbours of a page are told, not loaded.
        if loaded in values and values.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.loads.append(values[loaded])


def read_pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def dead_links(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Links within the site that lead to no file, or to no anchor of its page."""
    for path, page in pages.items():
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            # The page of missing addresses is served anywhere, so its links begin at the root of the host.
            start = site if path.name == "404.html" else path.parent
            target = (start / unquote(parts.path).removeprefix("/radiant_lens/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{path.relative_to(site)}: {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.relative_to(site)}: {link} (no such anchor)"


def test_every_public_name_has_a_page_with_its_signature(site):
    pages = {path.parent.name: path for path in site.glob("reference/*/*/index.html")}
    stub = (ROOT / "radiant_lens" / "__init__.pyi").read_text()
    for name in dir(rl):
        assert f" as {name}\n" in stub
        text = pages[name].read_text()
        if isinstance(getattr(rl, name), ModuleType):
            assert f'id="radiant_lens.{name}.' in text, name
        else:
            assert f'id="radiant_lens.{name}"' in text, name
            # A named tuple has its fields in place of a signature.
            assert "doc-signature" in text or issubclass(getattr(rl, name), tuple), name


def test_arguments_have_types_and_examples_are_code(site):
    text = (site / "reference/functions/load_dataset/index.html").read_text()
    assert "Examples:" in text and "&gt;&gt;&gt;" in text
    assert "radiant_lens.datasets.contexts.Contexts" in text
    # Arguments that share a description each have an entry.
    evaluate = (site / "reference/functions/evaluate/index.html").read_text()
    assert "<code>temperature</code></b>" in evaluate and "<code>seed</code></b>" in evaluate


def test_no_link_is_dead(site):
    assert list(dead_links(site, read_pages(site))) == []


def test_a_dead_link_is_seen(tmp_path):
    (tmp_path / "index.html").write_text(
        '<a href="gone/">x</a> <a href="#here">y</a> <a id="there" href="#there">z</a>'
    )
    assert list(dead_links(tmp_path, read_pages(tmp_path))) == [
        "index.html: gone/",
        "index.html: #here (no such anchor)",
    ]


def test_nothing_is_loaded_from_another_host(site):
    loads = {load for page in read_pages(site).values() for load in page.loads if urlsplit(load).netloc}
    assert loads == set()


def test_links_to_other_hosts_are_of_known_hosts(site):
    """A new host is a decision: add it here once its address was opened."""
    hosts = {urlsplit(link).netloc for page in read_pages(site).values() for link in page.links}
    assert hosts - {""} <= {
        "arxiv.org", "colab.research.google.com", "github.com", "radiant-lens.github.io", "semver.org",
        "squidfunk.github.io", "developer.mozilla.org",
    }  # fmt: skip


def test_mathematics_needs_no_script(site):
    text = (site / "tutorials/06_the_mathematics/index.html").read_text()
    assert text.count("<math") > 20
    assert "MathJax.Hub" not in text


def test_every_command_is_described(site):
    from typer.main import get_command

    from radiant_lens.cli.app import app

    text = (site / "reference/command-line/index.html").read_text()
    for name in get_command(app).commands:
        assert f'<h2 id="{name}">' in text


def test_every_checked_type_is_in_the_table():
    from radiant_lens.sites import PROJECTION_PATHS

    table = (ROOT / ".docs/pages/results/models.md").read_text().split("## Refused")[0]
    assert {name for name in PROJECTION_PATHS if f"`{name}`" not in table} == set()
    assert f"{len(PROJECTION_PATHS)} types" in (ROOT / ".docs/pages/limits.md").read_text()


def test_every_error_is_in_the_table():
    from radiant_lens import errors

    table = (ROOT / ".docs/pages/errors.md").read_text()
    raised = [name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")]
    assert {name for name in raised if f"`{name}`" not in table} == set()


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_templates_parse(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        # YAML 1.1 reads the key `on` as true.
        assert {"name", True, "jobs", "permissions"} <= set(content)
        for job in content["jobs"].values():
            assert job["steps"] and all({"run", "uses"} & set(step) for step in job["steps"])


def test_tests_run_on_every_supported_python():
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert 'requires-python = ">=3.10,<3.14"' in (ROOT / "pyproject.toml").read_text()


def test_the_home_of_the_project_is_the_same_everywhere():
    home = "https://github.com/radiant-lens/radiant_lens"
    for name in ("pyproject.toml", ".docs/mkdocs.yml", ".github/CITATION.cff"):
        assert home in (ROOT / name).read_text(), name


def test_versions_agree():
    citation = yaml.safe_load((ROOT / ".github/CITATION.cff").read_text())
    assert citation["version"] == rl.__version__
    assert f"## {rl.__version__}" in (ROOT / ".github/CHANGELOG.md").read_text()
