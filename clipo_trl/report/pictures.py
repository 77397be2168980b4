"""Figures of matplotlib -> SVG that stands in the page and takes its colours, or pixels for a tracker.

matplotlib is an optional dependency: modules that draw import it in their functions, and [`drawing`] says in a
sentence what is missing.
"""

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from transformers.utils import logging


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


logger = logging.get_logger(__name__)

# By the name of the page's CSS variable: in the light, as drawn, and in the dark. Told apart by the colour-blind.
COLOURS = {
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9ea7b3"),
    "rule": ("#d1d9e0", "#3d444d"),
    "paper": ("#ffffff", "#0d1117"),
    "blue": ("#0067a3", "#6cb6ff"),
    "orange": ("#c2410c", "#ff9566"),
    "green": ("#00785a", "#4cc79c"),
    "purple": ("#98408a", "#dda0d8"),
    "ochre": ("#8a5d00", "#dcae3c"),
    "grey": ("#7d8590", "#8b949e"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and colour, and can be searched
    "text.parse_math": False,  # names of test sets and rewards are no formulas
    "font.family": "sans-serif",
    "font.size": 9.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["rule"],
    "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "legend.frameon": False,
}

Drawn = TypeVar("Drawn")


def drawing(draw: Callable[..., Drawn], *arguments: Any) -> Drawn | str:
    """What `draw(*arguments)` gives; or, where a package that it takes is not installed, a sentence that says so, and
    that is logged, too."""
    try:
        import matplotlib

        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as for a letter that the font lacks, and the browser has
            return draw(*arguments)
    except ModuleNotFoundError as error:
        package = {"sklearn": "scikit-learn"}.get(str(error.name).partition(".")[0], error.name)
        sentence = (
            f"This picture takes {package}, which is not installed: pip install {package}, then `clipo report` again."
        )
        logger.warning_once(sentence)
        return sentence


def to_svg(figure: "Figure", name: str, description: str) -> str:
    """
    An `<svg>` element for the page. Its ids begin with `name`, which no other picture of the page may have; its
    colours are the page's variables; `description` is what a screen reader says.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def to_image(figure: "Figure") -> "Image":
    """The same on white, for a tracker."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="white")
    with Image.open(file) as image:
        return image.convert("RGB")
