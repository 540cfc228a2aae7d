"""See a training step: a page to step through it, and the graph of a result.

Nothing of this is loaded before it is used. capture.py watches a step and page.py makes the page of it; graph.py has
the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...tensor import Tensor


@contextmanager
def explain(path: str | Path, title: str = "One training step") -> Iterator[list[str]]:
    """Write an HTML page with which one steps through what runs inside this context, operation by operation.

        with minigrad.explain("step.html"):
            loss = model(images)
            loss.backward()
            optimizer.step()

    The page works offline in any browser. Take few images: every array is drawn. It ends with the first update of an
    optimiser. If the code inside raises, nothing is written.

    Args:
        path: of the page, which is replaced. title: its heading.

    Returns:
        a list, to which remarks for the page's beginning may be added.

    Raises:
        ImportError: Jinja2 or Pygments is missing. DataError: the file cannot be written.
        RuntimeError: on entering, while a profile, a detect_anomaly or another explain is active.
        ValueError: no operation ran inside.
    """
    try:
        from .page import page_of
    except ImportError as error:
        raise ImportError(
            f'explain needs Jinja2 and Pygments: pip install ".[explain]" in the project\'s folder ({error})'
        ) from error
    from ...serialize import write_atomically
    from .capture import Capture

    notes: list[str] = []
    capture = Capture()
    with capture.capturing():
        yield notes
    if not capture.stops:
        raise ValueError("explain: no operation ran inside, so there is nothing to show")
    write_atomically(Path(path), page_of(capture, title, notes).encode())


def graph(y: Tensor) -> Any:
    """The graph that a tensor was made with: `print` shows it as text, a notebook as a picture.

        print(minigrad.graph(loss))
        Path("graph.dot").write_text(minigrad.graph(loss).dot)  # or .svg

    Returns:
        a `Graph`, with `nodes`, `edges` and the texts `dot` and `svg`.

    Raises:
        TypeError: y is no Tensor. ValueError: no operation has made it. RuntimeError: `backward` released its graph.
    """
    from .graph import graph_of

    return graph_of(y)
