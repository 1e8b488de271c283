"""Makes an exported graph real: complex values become the (re, im) pairs that they are views of.

Neither Inductor nor most runtimes know complex tensors, and the ops of this package don't need them: they
take pairs, [..., 2]. So a graph goes from pairs to complex and back only because of this package's Python
interface, through views, which are done on the pairs instead.
"""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_aten = torch.ops.aten
_SAME = (_aten.resolve_conj.default, _aten.detach.default, _aten.alias.default)
# Views of a complex tensor that are the same views of its pairs, once their dimension counts from the front.
_VIEWS = (_aten.transpose.int, _aten.unsqueeze.default, _aten.select.int, _aten.slice.Tensor)


def make_real(program: ExportedProgram) -> None:
    """Rewrites the graph of `program` in place; what it computes stays the same."""
    graph = program.graph_module.graph
    pairs: dict[Node, Node] = {}

    def call(before: Node, target: Any, *args: Any) -> Node:
        with graph.inserting_before(before):
            node = graph.call_function(target, args)
        values = torch.fx.map_arg(args, lambda argument: argument.meta["val"])
        node.meta = {**before.meta, "val": target(*values)}
        return node

    for node in list(graph.nodes):
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if source is None:
            continue
        if node.target is _aten.view_as_complex.default:
            pairs[node] = source
        elif node.target is _aten.complex.default:
            pairs[node] = call(node, _aten.stack.default, list(node.args), -1)
        elif source not in pairs:
            continue
        elif node.target in _SAME:
            pairs[node] = pairs[source]
        elif node.target in _VIEWS:
            rank = (
                node.meta["val"].dim() if node.target is _aten.unsqueeze.default else source.meta["val"].dim()
            )
            count = 2 if node.target is _aten.transpose.int else 1
            dims = [dim % rank for dim in node.args[1 : 1 + count]]
            pairs[node] = call(node, node.target, pairs[source], *dims, *node.args[1 + count :])
        elif node.target is _aten.view_as_real.default:
            node.replace_all_uses_with(pairs[source])
        elif node.target is _aten.copy_.default and node.args[1] in pairs:
            pairs[node] = call(node, _aten.copy_.default, pairs[source], pairs[node.args[1]])
            if not node.users:
                graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
