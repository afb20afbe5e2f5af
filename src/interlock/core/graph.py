"""Graph: steps wired by tensor names, checked once into a plan; and the Step protocol that they fulfil."""

from typing import Protocol

import msgspec

from interlock.core.errors import ConfigError
from interlock.core.request import Request, Sink, Tally, Ticket


class Step(Protocol):
    """Anything that answers a request: a lane that runs a version, a feature read, a function, a graph."""

    def start(self, request: Request, sink: Sink, request_id: bytes, tally: Tally) -> Ticket:
        """Begin; never blocks and never raises: what goes wrong reaches the sink. `tally` is the arm under
        which the request is counted, from here until it settles."""
        ...


class Node(msgspec.Struct, frozen=True):
    """One step of a graph. `inputs` maps its input names to 'node.output' or 'request.input'."""

    name: str
    step: str
    inputs: dict[str, str]


class Graph(msgspec.Struct, frozen=True):
    """Nodes in any order, and `outputs`: the answer's names to 'node.output'."""

    name: str
    nodes: tuple[Node, ...]
    outputs: dict[str, str]


def plan(graph: Graph) -> tuple[tuple[Node, ...], ...]:
    """The graph as waves: a node stands in the first wave after all that it reads from; waves run in order.

    Raises: ConfigError for a name used twice, a reference to nothing, or a cycle.
    >>> g = Graph("g", (Node("b", "m", {"x": "a.y"}), Node("a", "m", {"x": "request.x"})), {"y": "b.y"})
    >>> [[node.name for node in wave] for wave in plan(g)]
    [['a'], ['b']]
    """
    names = [node.name for node in graph.nodes]
    if len(set(names)) != len(names) or "request" in names:
        raise ConfigError(
            f"graph {graph.name!r}: node names {names} must be unique and none may be 'request'"
        )
    known = {*names, "request"}
    needs = {node.name: {_source(graph, ref, known) for ref in node.inputs.values()} for node in graph.nodes}
    for ref in graph.outputs.values():
        _source(graph, ref, known)
    waves: list[tuple[Node, ...]] = []
    done = {"request"}
    left = list(graph.nodes)
    while left:
        wave = tuple(node for node in left if needs[node.name] <= done)
        if not wave:
            raise ConfigError(
                f"graph {graph.name!r}: {sorted(node.name for node in left)} wait for each other"
            )
        waves.append(wave)
        done |= {node.name for node in wave}
        left = [node for node in left if node.name not in done]
    return tuple(waves)


def _source(graph: Graph, reference: str, known: set[str]) -> str:
    source, dot, name = reference.partition(".")
    if not dot or not name or source not in known:
        raise ConfigError(f"graph {graph.name!r}: {reference!r} is not 'node.output' of {sorted(known)}")
    return source
