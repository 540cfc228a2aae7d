"""The step-through page: a capture as one HTML file that needs nothing else."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from ... import ops
from .arrays import BARS, CELL_COLUMNS, CELLS, LIMITS, Limits, Shot, bars, data_url, sheet
from .capture import Capture, Meeting, Stop
from .formulas import Formulas, formulas_of, gradients, name_of, typeset_wrapped
from .graph import Graph, Node, shape_text
from .kernels import Run
from .memory import Held
from .sources import Sources, colours

LARGEST = 5_000_000  # bytes of a page
WIDE = 560  # pixels of a picture that is enlarged


def page_of(capture: Capture, title: str, notes: Sequence[str] = ()) -> str:
    """The page. Pictures of a large model are thinned out until it is smaller than LARGEST."""
    for limits in LIMITS:
        text = _Page(capture, limits).render(title, notes, thinned=limits is not LIMITS[0])
        if len(text) < LARGEST:
            break
    return text


class _Page:
    def __init__(self, capture: Capture, limits: Limits) -> None:
        self.capture, self.limits = capture, limits
        self.graph, self.sources = Graph(capture.nodes), Sources()
        self.rules: list[str] = []  # of CSS, one for each picture
        self.data: dict[str, Any] = {}  # of each array, for the pointer
        self.views: dict[tuple[int, float], dict[str, Any]] = {}
        self.senders: dict[int, list[int]] = defaultdict(list)  # the stops whose gradients meet, by the meeting's key
        self.keys: dict[int, int] = {}  # of the meeting at a node's result
        self.freed_at: dict[Held, int] = {}
        self.readers: dict[int, list[int]] = defaultdict(list)  # the stops that read a node's result
        for i, stop in enumerate(capture.stops, 1):
            self.freed_at |= dict.fromkeys(stop.freed, i)
            if stop.direction == "forward":
                for x in capture.nodes[stop.node].inputs:
                    self.readers[x].append(i)
            for meeting in stop.meetings:
                self.senders[meeting.key].append(i)
                self.keys[meeting.receiver] = meeting.key
        self.of_node: dict[tuple[int, str], int] = {(s.node, s.direction): i for i, s in enumerate(capture.stops, 1)}

    def render(self, title: str, notes: Sequence[str], thinned: bool) -> str:
        folder = files(__package__)
        texts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")}
        template = folder.joinpath("page.html.jinja").read_text(encoding="utf-8")
        stops = [self._stop(i, stop) for i, stop in enumerate(self.capture.stops, 1)]
        most = max((stop.alive for stop in self.capture.stops), default=0) or 1
        facts = {
            "edges": [[a, b] for a, b in self.graph.edges],
            "lanes": self.graph.lanes,
            "arrays": self.data,
            "stops": [[s.direction, s.node, [m.receiver for m in s.meetings]] for s in self.capture.stops],
        }
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters["size"] = size_text
        environment.filters["number"] = number
        environment.filters["below"] = below
        return environment.from_string(template).render(
            title=title,
            notes=notes,
            thinned=thinned,
            limits=self.limits,
            stops=stops,
            counts=Counter(stop.direction for stop in self.capture.stops),
            consistent=self.capture.consistent,
            called=self._lines(),
            forks=[s["id"] for s in stops if s["stop"].direction == "forward" and len(s["senders"]) > 1][:12],
            left=sorted(self.capture.left, key=lambda held: -held.nbytes),
            most=most,
            tree=self._tree(),
            svg=Markup(self.graph.svg),
            sources=self.sources.all,
            css=Markup(texts["page.css"] + colours() + "".join(self.rules)),
            js=Markup(texts["page.js"]),
            facts=Markup(json.dumps(facts, separators=(",", ":"))),
        )

    def _lines(self) -> dict[str, int]:
        """The lines of the model that call operations outside of layers, and the stop of the first."""
        found: dict[str, int] = {}
        for i, node in enumerate(self.capture.nodes):
            if node.origin and not node.path and (i, "forward") in self.of_node:
                found.setdefault(node.origin.text, self.of_node[i, "forward"])
        return dict(list(found.items())[:12])

    # ---- a stop ----

    def _stop(self, number: int, stop: Stop) -> dict[str, Any]:
        node = self.capture.nodes[stop.node] if stop.node >= 0 else None
        forward, backward, about = formulas_in(stop.what, [name for name, _ in stop.arrays])
        update = stop.direction == "update"
        senders = self.senders[self.keys[stop.node]] if stop.node in self.keys else []
        method = getattr(stop.what, stop.direction)
        return {
            "id": number,
            "stop": stop,
            "name": stop.what.__name__,
            "layer": node.layer if node else "",
            "now": backward if stop.direction == "backward" else forward,
            "other": () if update else _shortest(backward) if stop.direction == "forward" else forward,
            "unused": self._unused(stop),
            "about": about,
            "twin": self.of_node.get((stop.node, "backward" if stop.direction == "forward" else "forward")),
            "settings": self._forward_of(stop).settings if node else {},
            "arrays": [(self._name(name), self._view(shot)) for name, shot in stop.arrays],
            "code": self._code(method, stop.run),
            "origin": node.origin if node else None,
            "saved": [(s, s.held and self.freed_at.get(s.held)) for s in stop.saved],
            "kept": self._kept(stop),
            "senders": senders,
            "readers": self.readers[stop.node],
            "is_loss": stop.direction == "backward" and not senders and stop.arrays[0][1].least == 1,
            "meetings": [self._meeting(number, m) for m in stop.meetings if len(self.senders[m.key]) > 1],
            "to_parameters": any(m.receiver < 0 for m in stop.meetings),
            "checks": stop.checks,
            "updates": [(u.name, [(n, self._view_of(n, s)) for n, s in u.arrays.items()]) for u in stop.updates],
        }

    def _forward_of(self, stop: Stop) -> Stop:
        """Where the operation of a stop runs forward."""
        return self.capture.stops[self.of_node[stop.node, "forward"] - 1]

    def _unused(self, stop: Stop) -> set[str]:
        """The inputs whose gradients a backward stop did not compute."""
        if stop.direction != "backward":
            return set()
        return {name for name, _ in self._forward_of(stop).arrays} - {name[1:] for name, _ in stop.arrays}

    def _kept(self, stop: Stop) -> list[tuple[Markup, Any]]:
        """What the operation of a backward stop saved for it."""
        if stop.direction != "backward":
            return []
        return [(self._name(s.name), self._view(s.shot)) for s in self._forward_of(stop).saved]

    def _name(self, name: str) -> Markup:
        return Markup(name_of(name))

    def _meeting(self, number: int, m: Meeting) -> dict[str, Any]:
        receiver = self.capture.nodes[m.receiver] if m.receiver >= 0 else None
        what = f"the result of {receiver.layer or receiver.name}" if receiver else f"the parameter {m.name}"
        goes_to = self.of_node.get((m.receiver, "backward"))
        shots = [shot for shot in (m.before, m.sent, m.after) if shot]
        top = max(max(abs(shot.least), abs(shot.most)) for shot in shots)  # one scale for all of the sum
        views = [None if s is None else self._view(s, top) for s in (m.before, m.sent, m.after)]
        senders = self.senders[m.key]
        return {
            "what": what, "count": len(senders), "goes_to": goes_to, "name": self._name(f"g{m.name}"),
            "others": sorted(set(senders) - {number}), "last": max(senders),
            "before": views[0], "sent": views[1], "after": views[2],
        }  # fmt: skip

    def _code(self, method: Any, run: Run) -> dict[str, Any]:
        source = self.sources.of(method)
        calls = []
        for call in run.calls:
            fast = None if call.fast in call.plain else self.sources.of(call.fast)
            calls.append((call, [self.sources.of(kernel) for kernel in call.plain], fast))
        first = run.calls[0].line if run.calls else run.lines[-1] if run.lines else 0
        return {"source": source, "lines": sorted(set(run.lines)), "main": first, "calls": calls}

    # ---- an array ----

    def _view(self, shot: Shot, top: float = 0.0) -> dict[str, Any]:
        """How an array is shown. top: the number of the strongest colour, where that is not its own largest."""
        if max(abs(shot.least), abs(shot.most)) == top:
            top = 0.0
        if (shot.number, top) in self.views:
            return self.views[shot.number, top]
        name = f"{shot.number}-{len(self.views)}" if top else str(shot.number)
        view: dict[str, Any] = {"shot": shot, "id": name, "shape": shape_text(shot.shape), "kind": "sheet", "note": ""}
        size = math.prod(shot.shape)
        columns = shot.shape[-1] if shot.shape else 1
        if size <= CELLS and columns <= CELL_COLUMNS:
            rows = shot.sample.reshape(-1, columns)
            view |= {
                "kind": "cells",
                "rows": [
                    [(number(x), tint(x, top or max(abs(shot.least), abs(shot.most)))) for x in row]
                    for row in rows.tolist()
                ],
            }
        elif size <= BARS and columns == size:
            view |= {"kind": "bars", "path": bars(shot.sample, top), "count": size}
            self.data[name] = {"values": [float(f"{x:.4g}") for x in shot.sample.ravel().tolist()]}
        elif size:
            drawn = sheet(shot, self.limits, top)
            height, width = drawn.codes.shape
            scale = max(1, min(16, WIDE // width, -(-200 // height)))
            view |= {"width": width, "height": height, "scale": scale, "note": drawn.note, "tiles": drawn.tiles}
            self.rules.append(f".a{name}{{background-image:url({data_url(drawn.png)})}}\n")
            self.data[name] = {
                "tile": drawn.tile, "columns": drawn.columns, "group": drawn.per_group, "order": drawn.order,
                "top": drawn.top, "grey": drawn.grey, "step": drawn.step, "gap": int(drawn.tile[0] > 1),
            }  # fmt: skip
        self.views[shot.number, top] = view
        return view

    def _view_of(self, name: str, shot: Shot) -> dict[str, Any]:
        """That of an array of an update. The value after it has no picture, which would look like that before it."""
        if name == "value after" and math.prod(shot.shape) > CELLS:
            return {"shot": shot, "shape": shape_text(shot.shape), "kind": "sheet", "note": ""}
        return self._view(shot)

    # ---- the map ----

    def _tree(self) -> list[Any]:
        """Rows of the map: a dict for a node, or (label, rows) for a layer with several operations."""
        rows: list[Any] = []
        groups: list[tuple[int, list[Any]]] = []  # the modules that are open, and their rows
        for i, node in enumerate(self.capture.nodes):
            path = node.path or ([(hash(node.origin.place), node.origin.text, "")] if node.origin else [])
            depth = next((d for d, (g, p) in enumerate(zip(groups, path, strict=False)) if g[0] != p[0]), None)
            del groups[min(len(groups), len(path)) if depth is None else depth :]
            for identity, name, cls in path[len(groups) :]:
                children: list[Any] = []
                (groups[-1][1] if groups else rows).append([name, cls, children])
                groups.append((identity, children))
            (groups[-1][1] if groups else rows).append(self._row(i, node))
        return [_simplified(row) for row in rows]

    def _row(self, i: int, node: Node) -> dict[str, Any]:
        stops = {d: self.of_node.get((i, d)) for d in ("forward", "backward")}
        return {
            "node": i,
            "name": node.name,
            "layer": node.layer or node.variable,
            "shape": shape_text(node.shape),
            **stops,
        }


def _simplified(row: Any) -> Any:
    """A group of one row is that row; a group without a name is called by what its rows have in common."""
    if isinstance(row, dict):
        return row
    name, cls, children = row
    children = [_simplified(child) for child in children]
    if len(children) == 1:
        return children[0]
    names = [child["layer"] if isinstance(child, dict) else child[0] for child in children]
    common = name or _common([n for n in names if n]) or cls
    return common, children


def _common(names: list[str]) -> str:
    """What names begin with, up to a _ or a dot."""
    first, last = min(names, default=""), max(names, default="")
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length].rpartition("_")[0] or first[:length].rpartition(".")[0]


def below(name: str, group: str) -> str:
    """The name of a layer inside a group, without what the group's name says already."""
    rest = name.removeprefix(group).lstrip("._")
    return rest if group and name.startswith(group) and rest else name


def formulas_in(cls: type, names: list[str]) -> tuple[list[tuple[str, Markup]], list[tuple[str, Markup]], str]:
    """(the operation's formulas, those of its gradients, what it is in words), from the docstrings. A formula comes
    after the name of the input whose gradient it is, or "".
    """
    own: Formulas = formulas_of(cls.__doc__)
    plain = {name.removeprefix("g") for name in names} | set(names) | set(re.findall(r"\w+", own.forward))
    forward, backward, about = own.forward.split("; "), gradients(own.backward), own.rest
    helper = function_of(cls)
    if helper is not None and helper.__doc__:
        first = " ".join(inspect.cleandoc(helper.__doc__).split("\n\n")[0].split())
        if first.startswith(("y[", "The adjoint")):
            doc = inspect.cleandoc(helper.__doc__)
            forward.append(formula_in(doc, "y["))
            backward += formula_in(doc, "Gradients: ").split("; ") if "Gradients: g" in doc else []
        elif not own.rest and not first.startswith("y = ") and first.split(". ")[0].rstrip(".") not in own.forward:
            about = first.split(" Gradients: ")[0]
    made = (
        [(_input_of(f), Markup(typeset_wrapped(f, plain))) for f in several if f] for several in (forward, backward)
    )
    return *made, about.replace("`", "")  # type: ignore[return-value]


def _shortest(formulas: list[tuple[str, Markup]]) -> list[tuple[str, Markup]]:
    """The first formula of each gradient, without those with indices."""
    return list({of: (of, f) for of, f in reversed(formulas)}.values())[::-1]


def _input_of(formula: str) -> str:
    found = re.match(r"g(\w+)(\[[^]]*\])? = ", formula)
    return found[1] if found else ""


def formula_in(text: str, start: str) -> str:
    """What begins so in a docstring, up to an empty line or the next heading."""
    part = re.split(r"\n\n|\n(?=[A-Z]\w*:)", text[text.index(start) :])[0]
    return " ".join(part.removeprefix("Gradients: ").split()).rstrip(".")


def function_of(cls: type) -> Any:
    """The lower-case function of an operation, which has the same name but for underscores, from the same file."""
    if not cls.__module__.startswith("minigrad.ops."):
        return None
    names = {name.replace("_", ""): name for name in ops.__all__}
    return getattr(ops, names.get(cls.__name__.lower(), ""), None)


def tint(value: float, top: float) -> str:
    """The background of a cell: orange or blue, the stronger the larger; top has the strongest."""
    share = min(1.0, abs(value) / (top or 1.0)) ** 0.5 if value == value and top == top else 0.0
    return f"rgba({'213,94,0' if value > 0 else '0,114,178'},{0.75 * share:.2f})"


def number(x: float) -> str:
    """Four digits."""
    return "0" if x == 0 else f"{x:.4g}".replace("-", "\N{MINUS SIGN}")


def size_text(nbytes: int) -> str:
    """Bytes in words."""
    return f"{nbytes / 1e6:,.2f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB" if nbytes >= 1e3 else f"{nbytes} B"
