"""Links in the docs lead somewhere: each relative one to a file that is there, each anchor to a heading of it. The
site has all pages, and all that is exported."""

import importlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
LINK = re.compile(r"\]\(<?([^()<>\s]+)|(?:href|src)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.*?) *#* *$", re.MULTILINE)


def links(page: Path) -> Iterator[str]:
    """Targets of the page's relative links; what stands in code is no link."""
    text = CODE.sub("", FENCE.sub("", page.read_text()))
    targets = (markdown or html for markdown, html in LINK.findall(text))
    return (target for target in targets if not re.match(r"[a-z+]+:", target))


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives the headings of a page: small letters, hyphens for spaces, a number where one comes
    again."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        n, free = 0, name
        while free in found:
            n, free = n + 1, f"{name}-{n + 1}"
        found.add(free)
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(f"{link}: there is no such file")
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            broken.append(f"{link}: there is no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `name`, of_two words\n\n## Again\n\n## Again\n```\n# not a heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[there](other.md) [`code`](other.md#a-name-of_two-words) [twice](other.md#again-1) [here](#here)\n"
        '`[in code](nowhere.md)` [web](https://nowhere.org) <a href="gone.png"></a>\n'
        "```\n[in a block](nowhere.md)\n```\n"
        "![picture](gone.svg) [gone](gone.md#a) [file](page.md#gone) [thrice](other.md#again-2) [no](other.md#not-a-heading)\n"
    )
    assert [link.partition(":")[0] for link in broken_links(page)] == [
        "gone.png", "gone.svg", "gone.md#a", "page.md#gone", "other.md#again-2", "other.md#not-a-heading",
    ]  # fmt: skip


def test_every_page_of_the_docs_can_be_reached():
    """From the README, by any number of links."""
    reached, waiting = set(), [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if link[0] != "#"]
    assert {page for page in PAGES if ROOT / "docs" in page.parents} <= reached


def test_the_list_of_fields_is_that_of_the_code():
    pytest.importorskip("trl")
    written = runpy.run_path(str(ROOT / "docs" / "configuration.py"))["page"]()
    assert written == (ROOT / "docs" / "configuration.md").read_text(), "run `python docs/configuration.py`"


def test_the_site_has_every_page():
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents}
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\n\n")[0]
    named = re.findall(r"(?<= )(?!files/)(\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(named) == sorted(pages), "a page of docs/ takes one line under `nav` in mkdocs.yml"


@pytest.mark.parametrize("name", ["clipo_trl", "reward_funcs"])
def test_the_page_of_the_api_has_every_export(name):
    described = re.findall(rf"^::: {name}\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    exported = importlib.import_module(name).__all__
    assert sorted(described) == sorted(exported)
