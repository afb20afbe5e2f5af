"""A graph becomes waves in which every node comes after what it reads, or is refused with the reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.core.graph import Graph, Node, plan


@given(data=st.data(), count=st.integers(1, 12))
def test_every_node_comes_once_and_after_all_that_it_reads(data: st.DataObject, count: int) -> None:
    nodes = []
    for k in range(count):  # edges lead back only: there is no cycle
        reads = data.draw(st.lists(st.integers(0, k - 1), max_size=3)) if k else []
        inputs = {f"i{n}": f"n{source}.out" for n, source in enumerate(reads)} or {"x": "request.x"}
        nodes.append(Node(f"n{k}", "step", inputs))
    shuffled = data.draw(st.permutations(nodes))
    waves = plan(Graph("g", tuple(shuffled), {"y": f"n{count - 1}.out"}))
    at = {node.name: number for number, wave in enumerate(waves) for node in wave}
    assert len(at) == sum(map(len, waves)) == count
    for node in nodes:
        sources = [ref.partition(".")[0] for ref in node.inputs.values() if not ref.startswith("request.")]
        assert at[node.name] == max((at[source] + 1 for source in sources), default=0), "no later than needed"


def node(name: str, **inputs: str) -> Node:
    return Node(name, "step", inputs)


@pytest.mark.parametrize(
    ("nodes", "outputs", "said"),
    [
        ((node("a", x="b.y"), node("b", x="a.y")), {}, "wait for each other"),
        ((node("a", x="a.y"),), {}, "'a'.*wait for each other"),
        ((node("a"), node("a")), {}, "must be unique"),
        ((node("request"),), {}, "none may be 'request'"),
        ((node("a", x="c.y"),), {}, "'c.y' is not 'node.output'"),
        ((node("a", x="request"),), {}, "'request' is not 'node.output'"),
        ((node("a", x="request."),), {}, "is not 'node.output'"),
        ((node("a"),), {"y": "b.y"}, "'b.y' is not"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(
    nodes: tuple[Node, ...], outputs: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(Graph("g", nodes, outputs))


def test_no_nodes_are_no_waves() -> None:
    assert plan(Graph("g", (), {"y": "request.x"})) == ()
