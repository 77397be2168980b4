"""A page that tells of a training, finished or running: what is kept for it while the run goes on, and how it is made.

callback.py    while training: keeps what a report needs, and sends its pictures to the trackers
facts.py       what runs, as far as the trainer knows
record.py      what is kept in `OUTPUT_DIR/report/`, written and read
curves.py, embeddings.py, completions.py    what was kept -> curves, scatter plots, sample completions
pictures.py    figures -> SVG that follows the page's colours
page.py, page.html    all of it -> `OUTPUT_DIR/report.html`
trackers.py    the pictures of the embeddings -> W&B, Trackio, TensorBoard
"""
