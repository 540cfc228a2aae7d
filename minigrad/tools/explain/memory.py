"""Which arrays of a step are alive."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from ...backend import Array


@dataclass(eq=False)
class Held:
    """An array that is counted, of a node. name: "the result of" until the names of nodes are known."""

    name: str
    node: int
    nbytes: int


class Memory:
    """The bytes of the arrays that were seen and are alive, found by weak references to the arrays that own them."""

    def __init__(self) -> None:
        self.total = 0
        self.freed: list[Held] = []
        self._known: dict[int, tuple[Any, Held]] = {}

    def see(self, x: Array, name: str, node: int, given: bool = False) -> Held:
        """Count the array that owns x's memory, once. given: the step did not make it. Then only the bytes of x count,
        because the owner may be the data of a whole epoch."""
        owner = owner_of(x)
        key = id(owner)

        def gone(_: Any) -> None:
            _, held = self._known.pop(key)
            self.total -= held.nbytes
            self.freed.append(held)

        if key not in self._known:
            self._known[key] = weakref.ref(owner, gone), Held(name, node, (x if given else owner).nbytes)
            self.total += self._known[key][1].nbytes
        return self._known[key][1]

    def known(self, x: Array) -> Held | None:
        """What is counted for the owner of x's memory, if it is."""
        return self._known.get(id(owner_of(x)), (None, None))[1]

    @property
    def held(self) -> list[Held]:
        """What is alive now."""
        return [held for _, held in self._known.values()]

    def read(self) -> tuple[int, list[Held]]:
        """(bytes alive now, what was freed since the last call)."""
        freed, self.freed = self.freed, []
        return self.total, freed


def owner_of(x: Array) -> Array:
    """The array that owns the memory of a view."""
    while type(base := getattr(x, "base", None)) is type(x):
        x = base
    return x
