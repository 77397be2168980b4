"""Files of the repository that a page links to become pages of the site, so that links work there as on GitHub.

A page of docs/ links to `../configs/track1_gsm8k.yaml`; the site has no such file. Each file or folder that is linked
gets a page under files/, with its text, and the links point there. Nothing is fetched when the site is read.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {
    ".cfg": "ini",
    ".csv": "text",
    ".ipynb": "",
    ".json": "json",
    ".md": "",
    ".py": "python",
    ".toml": "toml",
    ".txt": "text",
    ".yaml": "yaml",
    ".yml": "yaml",
}
# Code first: what stands in code is no link.
LINK = re.compile(
    r"(?P<fence>^ *(?P<ticks>```+|~~~+).*?^ *(?P=ticks) *$)|(?P<code>(?P<tick>`+)(?!`).*?(?<!`)(?P=tick)(?!`))"
    r"|(?P<before>\]\(|href=\"|src=\")(?P<target>[^()<>\s\"#:]+)(?=[)\"#])",
    re.MULTILINE | re.DOTALL,
)


def on_files(files, config):
    """Add a page for each file of the repository that can be reached by links from docs/."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        text = page_text(path)
        for target in targets(text, path):
            if target not in seen and can_be_shown(target):
                seen.add(target)
                waiting.append(target)
        if not is_in_site(path):
            markdown = f"---\nsearch:\n  exclude: true\n---\n{relink(text, path)}"
            files.append(File.generated(config, place(path), content=markdown))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links that lead out of docs/ to those pages."""
    return markdown if page.file.generated_by else relink(markdown, f"docs/{page.file.src_uri}")


def is_in_site(path: str) -> bool:
    """Whether the site has the file at `path`, from the repository's root, by itself."""
    return path.startswith("docs/") and not path.endswith(".py") and not (ROOT / path).is_dir()


def place(path: str) -> str:
    """Where the site has the file or folder at `path`."""
    if is_in_site(path):
        return path.removeprefix("docs/")
    return f"files/{path}/index.md" if (ROOT / path).is_dir() else f"files/{path}.md"


def targets(text: str, path: str) -> Iterator[str]:
    """Paths, from the root, of the files and folders that the page at `path` links to."""
    folder = PurePosixPath(path).parent
    for match in LINK.finditer(text):
        if match["target"]:
            yield os.path.normpath(folder / match["target"])


def relink(text: str, path: str) -> str:
    """The page's text with links that hold on the site."""
    here = PurePosixPath(place(path)).parent

    def replace(match: re.Match) -> str:
        if not match["target"]:
            return match[0]
        (target,) = targets(match[0] + ")", path)
        if not can_be_shown(target) and not is_in_site(target):
            return match[0]  # left to mkdocs, which names what it does not find
        return match["before"] + os.path.relpath(place(target), here)

    return LINK.sub(replace, text)


def can_be_shown(path: str) -> bool:
    """Whether there is a page to be made of the file or folder at `path`."""
    place = ROOT / path
    is_text = place.is_dir() or (place.is_file() and place.suffix in LANGUAGES)
    return is_text and not path.startswith("..") and not is_in_site(path)


def page_text(path: str) -> str:
    """The file or folder at `path` as Markdown."""
    place = ROOT / path
    if place.is_dir():
        return folder_page(path)
    text = place.read_text(encoding="utf-8")
    readers: dict[str, Callable[[str], str]] = {".md": str, ".ipynb": notebook_page}
    if place.suffix in readers:
        return readers[place.suffix](text)
    return f"# `{path}`\n\n``````{LANGUAGES[place.suffix]}\n{text.rstrip()}\n``````\n"


def folder_page(path: str) -> str:
    """A list of what is in a folder."""
    names = sorted(entry.name for entry in (ROOT / path).iterdir() if entry.name[0] not in "._")
    names = [name for name in names if can_be_shown(f"{path}/{name}")]
    folder = PurePosixPath(path).name
    links = "\n".join(f"- [`{name}`]({folder}/{name})" for name in names)
    return f"# `{path}/`\n\n{links}\n"


def notebook_page(text: str) -> str:
    """A notebook's prose, code, and what the code showed: text and pictures."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(equations(source) if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="" src="data:image/png;base64,{image}">')
            elif shown := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(f"```text\n{shown.rstrip()}\n```")
    return "\n\n".join(parts)


def equations(text: str) -> str:
    """A notebook's dollars as the blocks and the dollars with backticks that pages have."""
    text = re.sub(r"\$\$(.+?)\$\$", r"```math\n\1\n```", text, flags=re.DOTALL)
    return re.sub(r"(?<![$`])\$([^$`\n]+)\$(?![$`])", r"$`\1`$", text)
