"""The syntax tree of a chat template, rewritten so that whatever takes time or memory is charged before it is done."""

from __future__ import annotations

from typing import Final

from jinja2 import Environment, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from dlplatform.engine.chat_budget import ChatTemplateError

# Two characters of no text, from the private use area of Unicode, each followed by the budget's nonce.
GENERATION_STARTS, GENERATION_ENDS = "\ue000", "\ue001"
NODES: Final = 8  # of the syntax tree that are gone through in the time of a step
_NODES: Final = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef, nodes.Assign, nodes.AssignBlock,
    nodes.For, nodes.If, nodes.CondExpr, nodes.Macro, nodes.Filter, nodes.FilterBlock, nodes.Test, nodes.Call, nodes.Getattr,
    nodes.Getitem, nodes.Slice, nodes.Compare, nodes.Operand, nodes.BinExpr, nodes.UnaryExpr, nodes.Concat, nodes.List,
    nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Scope, nodes.With, nodes.Break, nodes.Continue,
    nodes.EnvironmentAttribute,
)  # fmt: skip


def _ours(name: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(f"our_{name}"), list(arguments), [], None, None)


class GenerationBlocks(Extension):
    """``{% generation %}`` … ``{% endgeneration %}`` around what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        first, last = (
            nodes.Output([_ours("mark", nodes.Const(each))]) for each in (GENERATION_STARTS, GENERATION_ENDS)
        )
        return nodes.Scope([first, *body, last]).set_lineno(line)


def tamed(tree: nodes.Template, environment: Environment) -> nodes.Template:
    """The template with all that takes time or memory charged. Raises ChatTemplateError for statements that are not there."""
    for node in [tree, *tree.find_all(nodes.Node)]:
        _check(node)
    cost = _cost(tree.body)
    tamed_tree: nodes.Template = _Taming().visit(tree)
    tamed_tree.body.insert(0, _charge(cost))
    tamed_tree.set_environment(environment)
    return tamed_tree


def _check(node: nodes.Node) -> None:
    if not isinstance(node, _NODES):
        raise ChatTemplateError(f"it uses the statement {type(node).__name__.lower()}, which is not there")
    if isinstance(node, nodes.EnvironmentAttribute) and not node.name.startswith("our_"):
        raise ChatTemplateError("it uses what is not there")
    if isinstance(node, nodes.For) and node.recursive:
        raise ChatTemplateError("it uses a recursive loop, which is not there")
    if isinstance(node, nodes.Call | nodes.Filter | nodes.Test) and (node.dyn_args or node.dyn_kwargs):
        raise ChatTemplateError("it spreads a list over arguments, which is not there")
    if isinstance(node, nodes.Compare) and len(node.ops) != 1:
        raise ChatTemplateError("it chains comparisons, which is not there")


def _cost(body: list[nodes.Node]) -> int:
    """Steps of going through a part of the tree once."""
    return 1 + sum(1 + sum(1 for _ in node.find_all(nodes.Node)) for node in body) // NODES


def _charge(cost: int) -> nodes.Output:
    return nodes.Output([_ours("spent", nodes.Const(cost))])


class _Taming(NodeTransformer):
    """Every operation whose time or memory depends on values becomes a call of ours."""

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            _ours("told", nodes.Const(each.data) if isinstance(each, nodes.TemplateData) else each)
            for each in node.nodes
        ]
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        body, test = _cost(node.body), _cost([node.test]) if node.test is not None else 0
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _ours("looped", node.iter, nodes.Const(1 + test))
        node.body.insert(0, _charge(body))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        cost = _cost(node.body)
        self.generic_visit(node)
        node.body.insert(0, _charge(cost))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _ours("joined", nodes.List(node.nodes))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return _ours("compared", nodes.Const(node.ops[0].op), node.expr, node.ops[0].expr)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _ours("sliced", node.node, *(part or nodes.Const(None) for part in parts))

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _ours("scalar", node.key)
        return node
