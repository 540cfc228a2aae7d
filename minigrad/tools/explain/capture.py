"""A capture of one training step: what each operation read, computed, saved and passed back, in the order it ran.

The arrays are those of an ordinary step. Nothing is computed in the place of the engine; watch.py explains how it is
seen. A chain of layers that usually runs as one operation runs layer by layer here, so that each can be seen.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from ... import nn, optim
from ...backend import Array, as_array, backend_of
from ...backend.geometry import ConvGeometry
from ...tensor import Function, Operand, Tensor
from ..watch import Scope, Watcher, layer_name, names_alive
from .arrays import Album, Shot
from .differences import Check, check
from .formulas import input_names
from .graph import Node, names_of_tensors
from .kernels import KernelWatcher, Run
from .memory import Held, Memory
from .origins import Origin, origin_of, variable_of

MOMENTS = {"mean": "first moment m", "variance": "second moment v"}
BOOKKEEPING = {"k", "needs", "inputs", "read", "order", "made_in", "retained", "used"}  # not saved for backward


@dataclass
class Saved:
    """An array that an operation keeps for its backward pass. same_as: the input or output whose memory it shares.
    held: what is counted for it; None: it is a parameter's."""

    name: str
    shot: Shot
    same_as: str = ""
    held: Held | None = None


@dataclass
class Meeting:
    """A gradient that arrives where others have arrived, or will.

    Attributes:
        name: of the input that it belongs to. key: the same for all that meet. receiver: the node whose result they
            belong to; -1: a parameter.
        sent: this gradient. before, after: the sum of what has arrived; before is None for the first.
    """

    name: str
    key: int
    receiver: int
    sent: Shot
    before: Shot | None
    after: Shot


@dataclass
class Update:
    """What an optimiser's step did to one parameter: its value before, gradient, the moments after it, and update."""

    name: str
    arrays: dict[str, Shot]


@dataclass
class Stop:
    """One operation in one direction, or the update of an optimiser.

    Attributes:
        direction: "forward", "backward" or "update". node: its number in the graph, or -1.
        what: the class of the operation or optimiser. run: the lines and kernels that ran.
        arrays: (name, array) of the inputs and the output; backward, of the gradients that arrive and leave.
        settings: the options of the operation, forward.
        alive: bytes of arrays between the parameters and the loss that are alive after it. freed: the arrays that
            nobody keeps any more. scalars: the learning rate of an update, and options of the optimiser.
    """

    direction: str
    node: int
    what: type
    run: Run
    arrays: list[tuple[str, Shot]]
    settings: dict[str, Any] = field(default_factory=dict)
    saved: list[Saved] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    checks: list[Check] | str = ""
    updates: list[Update] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    alive: int = 0
    freed: list[Held] = field(default_factory=list)


class Capture(Watcher):
    """Use it as `with capture.capturing(): ...`. It ends with the first update of an optimiser.

    Attributes:
        stops, nodes: in the order in which they ran. album: all arrays. left: what is alive after the last stop.
        consistent: whether each gradient that an operation received is, bit for bit, the sum of those sent to it.
    """

    def __init__(self) -> None:
        self.stops: list[Stop] = []
        self.nodes: list[Node] = []
        self.album = Album()
        self.left: list[Held] = []
        self.consistent = True
        self.kernels = KernelWatcher()
        self.done = False
        self._of_order: dict[int, tuple[int, dict[str, Any], list[str]]] = {}  # node, options, names of the inputs
        self._made: dict[int, tuple[Any, int]] = {}  # id of a tensor -> (a weak reference to it, its node)
        self._scopes_of: list[Scope | None] = []  # of each node
        self._waiting: dict[int, Array] = {}  # gradients under way, as in `tensor.walk`
        self._memory = Memory()

    @contextmanager
    def capturing(self) -> Iterator[Capture]:
        """Capture what runs inside.

        Raises:
            RuntimeError: a profile, detect_anomaly or another explain is active.
        """
        self._names = names_alive()
        with self.watching("explain"), self.kernels.installed():
            yield self
        self._waiting.clear()
        self._settle()
        self._name_layers()

    # ---- forward ----

    def forward(self, original: Callable[..., Tensor], function: Function, *operands: Operand) -> Tensor:
        if self.done:
            return original(function, *operands)
        self._settle()
        options = dict(vars(function))
        with self.kernels.watching(type(function).forward) as run:
            y = original(function, *operands)
        names = input_names(type(function), len(operands))
        node = self._node(function, y, operands, names)
        read = iter(self.nodes[node].inputs)
        arrays, known = [], {}
        for name, x in zip(names, operands, strict=True):
            if x is None:
                continue
            data = self._data(x, y)
            known[name] = data
            arrays.append((name, self.album.take(data, "weight" if name == "weight" else "")))
            if not isinstance(x, nn.Parameter | Real):
                source = next(read)
                if self.nodes[source].name == "data":
                    self._memory.see(data, "the data", source, given=True)
                else:
                    self._memory.see(data, "the result of", source)
        known["y"] = y.data
        arrays.append(("y", self.album.take(y.data)))
        self._memory.see(y.data, "the result of", node)
        stop = Stop("forward", node, type(function), run, arrays)
        stop.settings = settings_of(function)
        if y.creator is function:
            stop.saved = self._saved(function, options, known, node)
            self._of_order[function.order] = node, options, names
        self.stops.append(stop)
        return y

    def _node(self, function: Function, y: Tensor, operands: tuple[Operand, ...], names: list[str]) -> int:
        """A new node of the graph."""
        inputs, extras = [], []
        origin = origin_of(sys._getframe())
        for name, x in zip(names, operands, strict=True):
            if isinstance(x, Real):
                extras.append(f"{x:g}")
            elif isinstance(x, nn.Parameter):
                extras.append(name)
            elif x is not None:
                inputs.append(self._node_of(x, origin))
        self.nodes.append(Node(function.name, y.shape, inputs, extras, origin=origin))
        self._scopes_of.append(self.scope)
        self._made[id(y)] = weakref.ref(y), len(self.nodes) - 1
        return len(self.nodes) - 1

    def _node_of(self, x: Operand, origin: Origin | None) -> int:
        """The node that made x; a new one, if x is data. origin: of the operation that reads it."""
        if (known := self._known_node(x)) is not None:
            return known
        shape = as_array(x.data if isinstance(x, Tensor) else x).shape
        variable = variable_of(x, sys._getframe())
        self.nodes.append(Node("data", shape, [], origin=None if self.scope else origin, variable=variable))
        self._scopes_of.append(None)
        with contextlib.suppress(TypeError):  # no reference can be made to a list
            self._made[id(x)] = weakref.ref(x), len(self.nodes) - 1
        return len(self.nodes) - 1

    def _known_node(self, x: Operand) -> int | None:
        reference, node = self._made.get(id(x), (lambda: None, -1))
        return node if reference() is x else None

    def _data(self, x: Operand, y: Tensor) -> Array:
        if isinstance(x, Real):
            return backend_of(y.data).xp.full((), x, dtype=y.dtype)
        return x.data if isinstance(x, Tensor) else as_array(x)

    def _saved(self, function: Function, options: dict[str, Any], known: dict[str, Array], node: int) -> list[Saved]:
        """The arrays among the attributes of a function that its options do not have."""
        own = {n: v for n, v in vars(function).items() if n not in BOOKKEEPING and options.get(n) is not v}
        found = []
        for name, value in own.items():
            if hasattr(value, "dtype") and hasattr(value, "nbytes"):
                xp = function.k.xp
                twin = next((n for n, x in known.items() if xp.may_share_memory(x, value)), "")
                shot = self.album.take(value, "weight" if name == "weight" else "")
                held = self._memory.known(value) if twin else self._memory.see(value, f"{name}, saved by", node)
                found.append(Saved(name, shot, twin, held))
        return found

    # ---- backward ----

    def backward(
        self, original: Callable[..., Any], function: Function, gy: Array, keep: bool = False
    ) -> list[tuple[Tensor, Array]]:
        if self.done or function.inputs is None or function.order not in self._of_order:
            return original(function, gy, keep)
        self._settle()
        order = function.order
        node, options, names = self._of_order[order]
        expected = self._waiting.pop(order, gy)
        self.consistent &= bytes_of(expected) == bytes_of(gy)
        self._memory.see(gy, "the gradient of the result of", node)
        inputs = function.inputs
        numbers = [i for i, needed in enumerate(function.needs) if needed]
        xs = [None if x is None else host(x.data).copy() for x in inputs]
        with self.kernels.watching(type(function).backward) as run:
            pairs = original(function, gy, keep)
        arrays = [("gy", self.album.take(gy))]
        stop = Stop("backward", node, type(function), run, arrays)
        self.stops.append(stop)
        gxs: dict[int, Array] = {}
        for i, (x, gx) in zip(numbers, pairs, strict=True):
            gxs[i] = host(gx)
            shot = self.album.take(gx, "weight" if names[i] == "weight" else "")
            arrays.append((f"g{names[i]}", shot))
            stop.meetings.append(self._arrive(names[i], x, gx, shot))
            self._memory.see(gx, f"the gradient of {names[i]} of", node)
        stop.checks = check(type(function), options, names, xs, host(gy), gxs, node)
        return pairs

    def _arrive(self, name: str, x: Tensor, gx: Array, shot: Shot) -> Meeting:
        """The same sums as in `tensor.walk`."""
        key = id(x) if x.creator is None else x.creator.order
        before = self._waiting.get(key)
        after = gx if before is None else as_array(before + gx)
        self._waiting[key] = after
        receiver = self._known_node(x)
        sums = (None, shot) if before is None else (self.album.take(before), self.album.take(after))
        return Meeting(name, key, -1 if receiver is None else receiver, shot, *sums)

    # ---- the update ----

    def update(self, original: Callable[..., None], optimizer: optim.Optimizer, scalars: Array) -> None:
        if self.done:
            return original(optimizer, scalars)
        self._waiting.clear()
        self._settle()
        flat, moments = optimizer.flat, optimizer.moments
        before, gradients = (host(x).copy() for x in (flat.values, flat.gradients))
        with self.kernels.watching(original) as run:
            original(optimizer, scalars)
        after = {"value before": before, "gradient": gradients}
        after |= {MOMENTS.get(name, name): host(x) for name, x in moments.items()}
        after |= {"update": host(flat.values) - before, "value after": host(flat.values)}
        stop = Stop("update", -1, type(optimizer), run, [])
        options = {n: x for n, x in vars(optimizer).items() if isinstance(x, float) and n != "learning_rate"}
        names = ("rate", "m_hat / m", "v_hat / v") if isinstance(optimizer, optim.Adam) else ("rate",)
        stop.scalars = {**dict(zip(names, host(scalars).tolist(), strict=False)), **options}
        start = 0
        for parameter in flat.parameters:
            part, shape = slice(start, start + parameter.size), parameter.shape
            kind = "weight" if len(shape) == 4 else ""
            shots = {name: self.album.take(x[part].reshape(shape), kind) for name, x in after.items()}
            stop.updates.append(Update(str(id(parameter)), shots))
            start = part.stop
        self.stops.append(stop)
        self._settle()
        self.done = True

    # ---- the chain, memory and names ----

    def _chain(self, original: Callable[..., Any], chain: nn.ConvChain, x: Tensor) -> Tensor:
        """Layer by layer."""
        for layers in chain.links.values():
            for layer in layers:
                with self._inside(layer, self._names.get(id(layer), "")):
                    x = layer.forward(x)
        return x

    def _settle(self) -> None:
        """Note what the last stop has left alive. It is called when that operation has returned, because only then has
        it let go of its arrays."""
        if self.stops and not self.done:
            self.stops[-1].alive, self.stops[-1].freed = self._memory.read()
            self.left = self._memory.held

    def _name_layers(self) -> None:
        """Name each node's layer, and each parameter, while the layers are alive."""
        alive = names_alive()
        titles = names_of_tensors()
        for stop in self.stops:
            for number, update in enumerate(stop.updates):
                update.name = titles.get(int(update.name), f"parameter {number}")
        for node, innermost in zip(self.nodes, self._scopes_of, strict=True):
            outer = innermost
            while outer is not None:
                node.path.insert(0, (id(outer), layer_name(outer, alive), type(outer.module).__name__))
                outer = outer.outer
        self._scopes_of = []
        first = {stop.node: i for i, stop in enumerate(self.stops, 1) if stop.direction == "forward"}
        for held in self.left + [held for stop in self.stops for held in stop.freed]:
            node = self.nodes[held.node]
            where = (
                node.variable if node.name == "data" else f"{node.name} {node.layer or f'(stop {first[held.node]})'}"
            )
            held.name = f"{held.name} {where}".strip()


def settings_of(function: Function) -> dict[str, Any]:
    """The numbers and words among a function's attributes; of a convolution, the letters of its formula."""
    own = {n: v for n, v in vars(function).items() if n not in BOOKKEEPING and isinstance(v, int | float | str)}
    geometry = vars(function).get("geometry")
    if isinstance(geometry, ConvGeometry):
        (top, bottom), (left, right) = geometry.pads
        (own["SH"], own["SW"]), (own["DH"], own["DW"]) = geometry.stride, geometry.dilation
        own |= {"top": top, "bottom": bottom, "left": left, "right": right, "groups": geometry.groups}
    return own


def host(x: Array) -> np.ndarray:
    """x as a NumPy array."""
    return np.asarray(backend_of(x).to_host(x))


def bytes_of(x: Array) -> bytes:
    """The bits of an array, to compare."""
    return host(x).tobytes()
