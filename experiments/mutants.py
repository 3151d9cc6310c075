"""Mutants of one source file: each differs from it in a single place, by one of mutmut's operators or of ours.

Left alone is what no test of behaviour can or should pin: docstrings and other strings, annotations, decorators, `__all__`,
`assert`, the text of an error that is raised, `typing.cast`, `encoding=` and `strict=` (their other value acts on input that
the callers rule out).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import libcst as cst
from libcst import matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

Operator = Callable[[Any], Iterable[cst.CSTNode]]

#: Calls that give the same for their arguments in any order.
SYMMETRIC = {"min", "max", "gcd", "minimum", "maximum", "isclose", "allclose", "equal", "print", "isdisjoint"}
UNTOUCHED_ARGUMENTS = {"encoding", "strict"}
LOGS = {"warn", "warning", "info", "debug", "print", "echo"}


@dataclass(frozen=True)
class Mutant:
    """One change of one place. `key` names it for as long as its function's own lines of that place stay as they are."""

    key: str
    line: int
    kind: str
    before: str
    after: str
    tree: cst.Module
    node: cst.CSTNode
    replacement: cst.CSTNode

    @cached_property
    def source(self) -> str:
        """The whole file with the change in it."""
        changed = self.tree.deep_replace(self.node, self.replacement)
        assert isinstance(changed, cst.Module)
        return changed.code


def mutants(source: str, file: str) -> list[Mutant]:
    """One mutant for each node of `source` and each operator that applies to it, in the order of the file."""
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    finder = _Finder(wrapper.module, file)
    wrapper.visit(finder)
    return finder.found


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, tree: cst.Module, file: str) -> None:
        super().__init__()
        self.tree, self.file = tree, file
        self.found: list[Mutant] = []
        self.names: list[str] = []
        self.seen: Counter[tuple[str, ...]] = Counter()

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _untouched(node):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.names.append(node.name.value)
        for kind, operator in OPERATORS:
            choices = [self.mutant(kind, node, new) for new in operator(node) if _keeps(node, new)]
            if choices:
                self.found.append(min(choices, key=lambda mutant: mutant.key))
        # The text of a refusal is left alone, not that it is raised; a call into a log may go, its words may not change.
        return not (isinstance(node, cst.Raise) or _is_log(node))

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self.names.pop()

    def mutant(self, kind: str, node: cst.CSTNode, new: cst.CSTNode) -> Mutant:
        before, after = (" ".join(self.tree.code_for_node(n).split()) for n in (node, new))
        where = (self.file, ".".join(self.names), kind, before, after)
        self.seen[where] += 1
        key = hashlib.sha256(repr((*where, self.seen[where])).encode()).hexdigest()[:12]
        line = self.get_metadata(PositionProvider, node).start.line
        return Mutant(key, line, kind, before[:200], after[:200], self.tree, node, new)


def _untouched(node: cst.CSTNode) -> bool:
    """Whether nothing inside of `node` is to be changed."""
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Assert | cst.Import | cst.ImportFrom | cst.TypeAlias):
        return True
    if isinstance(node, cst.Arg):
        return node.keyword is not None and node.keyword.value in UNTOUCHED_ARGUMENTS
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1:
        only = node.body[0]
        docstring = isinstance(only, cst.Expr) and isinstance(only.value, cst.SimpleString | cst.ConcatenatedString)
        return docstring or m.matches(only, m.Assign(targets=[m.AssignTarget(target=m.Name("__all__"))]))
    return m.matches(node, m.Call(func=m.Name("cast") | m.Name("TypeVar"))) or m.matches(
        node, m.If(test=m.Name("TYPE_CHECKING"))
    )


def _keeps(node: cst.CSTNode, new: cst.CSTNode) -> bool:
    """Whether a changed call has the arguments that no mutant touches as they were."""
    kept = [arg for arg in node.args if _untouched(arg)] if isinstance(node, cst.Call) else []
    return not kept or (isinstance(new, cst.Call) and all(any(arg is other for other in new.args) for arg in kept))


def _called(node: cst.CSTNode) -> str:
    """The last name of what a call calls: `append` of `rows.append(x)`."""
    if not isinstance(node, cst.Call):
        return ""
    function = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
    return function.value if isinstance(function, cst.Name) else ""


def _is_log(node: cst.CSTNode) -> bool:
    return _called(node) in LOGS


def _of_type(kind: type, operator: Operator) -> Operator:
    return lambda node: operator(node) if isinstance(node, kind) else ()


def remove_statement(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """A statement that is called for its effect, or a refusal, goes."""
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1:
        only = node.body[0]
        effect = isinstance(only, cst.Expr) and isinstance(only.value, cst.Call | cst.Await)
        if effect or isinstance(only, cst.Raise | cst.Del):
            yield node.with_changes(body=[cst.Pass()])


def negate_condition(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """`if x` becomes `if not x`, in statements, ternaries and comprehensions."""
    if isinstance(node, cst.If | cst.IfExp | cst.CompIf | cst.While):
        test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def swap_arguments(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Two neighbouring arguments that are names change their places: `f(a, b)` becomes `f(b, a)`."""
    if not isinstance(node, cst.Call) or _called(node) in SYMMETRIC:
        return
    for i in range(len(node.args) - 1):
        first, second = node.args[i], node.args[i + 1]
        names = all(isinstance(a.value, cst.Name | cst.Attribute) and not a.star for a in (first, second))
        if names and not first.value.deep_equals(second.value):
            swapped = [first.with_changes(value=second.value), second.with_changes(value=first.value)]
            yield node.with_changes(args=[*node.args[:i], *swapped, *node.args[i + 2 :]])


def shift_bound(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """A slice loses one of its bounds."""
    if isinstance(node, cst.Slice):
        if node.lower is not None:
            yield node.with_changes(lower=None)
        if node.upper is not None:
            yield node.with_changes(upper=None)


OPERATORS: tuple[tuple[str, Operator], ...] = (
    *(
        (operator.__name__.removeprefix("operator_"), _of_type(kind, operator))
        for kind, operator in mutation_operators
        if operator is not operator_string
    ),
    *((operator.__name__, operator) for operator in (remove_statement, negate_condition, swap_arguments, shift_bound)),
)
