"""What other libraries say at each run, and nobody can act on, is left out, each with its reason."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


# TRL 1.16 sets `gradient_checkpointing` by default and switches it around each generation, which transformers 5.23
# calls deprecated each time, whatever the user's configuration says. Can go when TRL uses the new name.
CHECKPOINTING = r"`(is_)?gradient_checkpointing(_enable|_disable|_kwargs)?` is deprecated"
# DeepSpeed is imported wherever it is installed, by runs without it too, and on a CPU it misses a GPU at each start.
ACCELERATOR = "Setting accelerator to CPU"
# In a pipe or a file each update of a bar is a line, or the same line again.
BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")


@contextmanager
def quiet() -> Iterator[None]:
    """Leave that out in this block, which is to hold the imports; bars where the error stream is no terminal."""
    hidden = {} if sys.stderr.isatty() else {name: "1" for name in BARS if name not in os.environ}
    deepspeed = logging.getLogger("DeepSpeed")
    os.environ.update(hidden)
    deepspeed.addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", CHECKPOINTING, FutureWarning)
            yield
    finally:
        deepspeed.removeFilter(_is_news)
        for name in hidden:
            os.environ.pop(name, None)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ACCELERATOR)
