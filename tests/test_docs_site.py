"""The docs as a site: it can be built without a warning, and read without a network."""

import contextlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
HOOKS = ROOT / "docs" / "hooks"
# What a browser fetches by itself; links are not.
FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"?([^\s\">]+)|<link\b[^>]*?\bhref=\"?([^\s\">]+)")
CHROMIUM_OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def build(folder: Path, site: Path) -> subprocess.CompletedProcess:
    """Build the site of `folder` into `site` as `make docs` does. (`--quiet` would let warnings pass.)"""
    pytest.importorskip("latex2mathml")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_fetched_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    fetched = {a or b for page in pages for a, b in FETCHED.findall(page.read_text(encoding="utf-8"))}
    assert {url for url in fetched if re.match(r"(?!data:)[a-z]+:|//", url)} == set()


def test_equations_are_drawn_by_the_browser(site):
    text = (site / "method.html").read_text(encoding="utf-8")
    assert text.count("<math") > 20 and 'display="block"' in text
    assert not [page.name for page in site.glob("*.html") if "$<code>" in page.read_text(encoding="utf-8")]


def test_the_api_shows_docstrings(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    assert ":::" not in text
    assert "<strong>Arguments</strong>" in text and "Unit embeddings, one group a row." in text


def test_files_of_the_repository_are_there(site):
    text = (site / "scaling.html").read_text(encoding="utf-8")
    assert 'href="files/configs/accelerate/zero3.yaml.html"' in text
    assert "zero_stage" in (site / "files/configs/accelerate/zero3.yaml.html").read_text(encoding="utf-8")
    assert "data:image/png" in (site / "files/examples/clipo_in_ten_minutes.ipynb.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "docstring, markdown",
    [
        ("One line.", "One line."),
        (
            "One.\n\nArgs:\n    x, y (`int` of shape `(B, H)`, *optional*):\n        Two\n        lines.\n    z: One.\n",
            "One.\n\n**Arguments**\n\n- **`x`**, **`y`** (`int` of shape `(B, H)`, *optional*):\n    Two\n    lines.\n- **`z`**: One.",
        ),
        ("One.\n\nReturns:\n    `x`: a, see [`~module.name`] and [`name`].", "One.\n\n**Returns**\n\n`x`: a, see `name` and `name`."),
        ("One.\n\nRaises:\n    `E`: never.\n\nMore.", "One.\n\n**Raises**\n\n`E`: never.\n\nMore."),
    ],
)  # fmt: skip
def test_docstrings_become_markdown(docstring, markdown):
    pytest.importorskip("griffe")
    assert runpy.run_path(str(HOOKS / "docstrings.py"))["to_markdown"](docstring).strip() == markdown


def test_links_are_turned_to_pages_of_the_site():
    pytest.importorskip("mkdocs")
    relink = runpy.run_path(str(HOOKS / "repository.py"))["relink"]
    text = (
        "[a](../configs/eval/track1.yaml) [b](cost.md#formula) [c](../examples) `[d](../train.py)` [e](https://x.org)"
    )
    assert relink(text, "docs/method.md") == (
        "[a](files/configs/eval/track1.yaml.md) [b](cost.md#formula) [c](files/examples/index.md) `[d](../train.py)` "
        "[e](https://x.org)"
    )
    text = "[a](docs/cost.md#formula) [b](train.py) [c](docs/hooks) [d](docs/images/quickstart.png)"
    assert relink(text, "README.md") == (
        "[a](../cost.md#formula) [b](train.py.md) [c](docs/hooks/index.md) [d](../images/quickstart.png)"
    )


def test_a_warning_ends_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n[nowhere](nowhere.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: A\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and "nowhere.md" in done.stderr


@contextlib.contextmanager
def chromium(profile: Path):
    """A headless browser that keeps its console and its requests; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for option in CHROMIUM_OPTIONS.split():
        options.add_argument(option)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    paths = [Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")]
    if not all(path.exists() for path in paths):
        pytest.skip("needs chromium and chromedriver")
    options.binary_location = str(paths[0])
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(paths[1])))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_in_a_browser(site, tmp_path, width):
    """Opened as files: no error on the console, nothing asked of a network, nothing wider than the screen."""
    with chromium(tmp_path) as browser:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for page in ("index", "method", "configuration", "api", "recipes"):
            browser.get((site / f"{page}.html").as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
        assert browser.get_log("browser") == []
        requested = {entry["message"] for entry in browser.get_log("performance")}
        urls = {url for message in requested for url in re.findall(r'"request":\{.*?"url":"([^"]+)"', message)}
        assert any(url.startswith("file:") for url in urls)
        assert {url for url in urls if url.startswith(("http", "ws"))} == set()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_search_works_without_a_server(site, tmp_path):
    with chromium(tmp_path) as browser:
        browser.implicitly_wait(20)
        browser.get((site / "index.html").as_uri())
        browser.execute_script("document.querySelector('#__search').click()")
        browser.find_element("css selector", ".md-search__input").send_keys("curriculum")
        assert browser.find_element("css selector", ".md-search-result__link").get_attribute("href").count("recipes")
