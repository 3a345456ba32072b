"""
Follows rows through a SavedModel: a graph in which order is by need, and functions that call each other.

Values are followed as in ONNX. What a model does besides has to be nothing: whatever a signature reaches, by data or by
control edges, is looked at for writes to variables, tables and the like, which data alone does not show. Where there
are none, only data decides what an output is, so that then only data is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from cortex.rows.flow import (
    MAX_DEPTH,
    Flow,
    Place,
    Scope,
    Supposed,
    TooLarge,
    apply_rule,
    constant,
    label,
    proved_by,
)
from cortex.rows.refusal import NotProved, refuse
from cortex.rows.rules.control import finished, next_state
from cortex.rows.rules.registry import NEWEST, RULES, Op
from cortex.rows.rules.tensorflow.effects import CHECKS, more_than_computes
from cortex.rows.rules.tensorflow.patterns import PATTERNS, Made
from cortex.rows.rules.tensorflow.registry import DOMAIN, OUTPUTS
from cortex.rows.sizes import ROWS, Supposition, Symbol, Term
from cortex.rows.values import Kind, Value, joined, mixed
from cortex.wire.batching import Proof
from cortex.wire.graphs import Function, FunctionName, FunctionNames, GraphNode, Model, Reference

_MAX_TURNS: Final = 8
"""What is known of a loop's state gets less with each turn; it settles after few, or the loop is not proved."""

_CALLS: Final = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_IFS: Final = frozenset({"If", "StatelessIf"})
_CASES: Final = frozenset({"Case", "StatelessCase"})
_LOOPS: Final = frozenset({"StatelessWhile", "While"})
CONTROL: Final = _CALLS | _IFS | _CASES | _LOOPS


def prove_saved_model(model: Model) -> Proof:
    """
    Prove that each output row of a SavedModel is a function of its own input row, or say what is in the way.

    For the requests that `prove` says it for. Never raises; what cannot be followed is not proved.
    """
    return proved_by(SavedModelFlow, model)


class SavedModelFlow(Flow):
    """One analysis of one signature of a SavedModel."""

    def __init__(self, model: Model, suppositions: Mapping[Place, Supposed] | None = None, work: int = 0) -> None:
        super().__init__(model, suppositions, work)
        self._scope = Scope(NEWEST)
        self._bodies: dict[str, Mapping[str, GraphNode]] = {}
        self._calls: dict[tuple[str, tuple[Value, ...]], list[Value]] = {}

    def run(self) -> list[Value]:
        graph = self._model.graph
        given = {
            declared.name: constant(graph.constants[declared.name])
            if declared.name in graph.constants
            else self.rows_of(declared)
            for declared in graph.inputs
        }
        nodes = _by_name(graph.nodes)
        obstacle = _obstacle(self._model, nodes)
        if obstacle is not None:
            return [obstacle for _ in graph.outputs]
        body = _Body(nodes, given, depth=0)
        return [self._value(body, name) for name in graph.outputs]

    def _value(self, body: _Body, reference: str) -> Value:
        """What is known of a value in a body, after whatever it needs."""
        waiting = [] if body.holds(reference) else [_node_of(reference)]
        while waiting:
            node = body.nodes.get(waiting[-1])
            if node is None or node.name in body.results:
                waiting.pop()
                continue
            needed = [
                name
                for name in (_node_of(one) for one in node.inputs if not body.holds(one))
                if name not in body.results and name in body.nodes
            ]
            if needed and node.name in body.entered:
                refuse("its operators need each other")
            body.entered.add(node.name)
            if needed:
                waiting += needed
            else:
                body.results[node.name] = self._outputs(node, body)
                waiting.pop()
        return body.found(reference)

    def _outputs(self, node: GraphNode, body: _Body) -> Sequence[Value] | Value:
        """An operator's outputs; one value that is mixed stands for all of them."""
        inputs = [body.found(reference) for reference in node.inputs]
        self.looks_at_operator(inputs, 1)
        try:
            if any(isinstance(value, Reference) for value in node.attributes.values()):
                refuse("an attribute that is not known")
            if node.operator in CONTROL or (DOMAIN, node.operator) in self._model.functions:
                return self._controlled(node, inputs, body.depth)
            operator, given = self._in_place_of(node, inputs, body)
            blocked = next((value for value in given if value.kind is Kind.MIXED), None)
            if blocked is not None:
                return blocked
            if operator in CHECKS:
                return []
            results = apply_rule(RULES[DOMAIN, operator], self._asked(node, operator, given), label(node))
            return [self.kept(value, label(node)) for value in results]
        except NotProved as refusal:
            return mixed(str(refusal), label(node))
        except (TooLarge, Supposition):
            raise
        except Exception as error:  # a fault in a rule: what it was asked about is not proved
            return mixed(f"the rule failed ({type(error).__name__}: {error})", label(node))

    def _in_place_of(self, node: GraphNode, inputs: Sequence[Value], body: _Body) -> Made:
        """What an operator comes to: itself, unless the one before it says more."""
        pattern = PATTERNS.get(node.operator)
        if pattern is not None:
            found = pattern(inputs, [self._maker(body, reference) for reference in node.inputs])
            if found is not None:
                return found
        return Made(node.operator, inputs)

    def _maker(self, body: _Body, reference: str) -> Made:
        node = None if body.holds(reference) else body.nodes.get(_node_of(reference))
        if node is None or node.operator in CONTROL:
            return Made("", ())
        return Made(node.operator, [body.found(one) for one in node.inputs])

    def _asked(self, node: GraphNode, operator: str, inputs: Sequence[Value]) -> Op:
        """What a rule is told."""
        return Op(
            operator=operator,
            domain=DOMAIN,
            opset=1,
            inputs=inputs,
            attributes=node.attributes,
            outputs=sum(count for _, count in _outputs_of(node)),
            symbols=self.symbols,
            flow=self,
            scope=self._scope,
        )

    # ---- functions, branches, loops ---------------------------------------------------------------------------------

    def _controlled(self, node: GraphNode, inputs: Sequence[Value], depth: int) -> Sequence[Value]:
        if node.operator in _LOOPS:
            return self._loop(node, inputs, depth)
        if node.operator in _IFS:
            return self._if(node, inputs, depth)
        if node.operator in _CASES:
            return self._case(node, inputs, depth)
        name = _function_of(node, "f") if node.operator in _CALLS else node.operator
        return self._function(name, inputs, depth)

    def _if(self, node: GraphNode, inputs: Sequence[Value], depth: int) -> Sequence[Value]:
        condition, *arguments = inputs
        _must_be_uniform(condition)
        names = [_function_of(node, "then_branch"), _function_of(node, "else_branch")]
        if condition.elements is not None and len(condition.elements) == 1:
            (element,) = condition.elements
            if not isinstance(element, Term):
                return self._function(names[0 if element else 1], arguments, depth)
        return self._either(names, arguments, depth)

    def _case(self, node: GraphNode, inputs: Sequence[Value], depth: int) -> Sequence[Value]:
        index, *arguments = inputs
        _must_be_uniform(index)
        branches = node.attributes.get("branches")
        return self._either(branches.names if isinstance(branches, FunctionNames) else (), arguments, depth)

    def _either(self, names: Sequence[str], arguments: Sequence[Value], depth: int) -> list[Value]:
        """What is known whichever of several functions runs."""
        found = [self._function(name, arguments, depth) for name in names]
        if not found or any(len(results) != len(found[0]) for results in found):
            refuse("branches of different outputs")
        merged = found[0]
        for results in found[1:]:
            merged = [joined(a, b, self.symbols) for a, b in zip(merged, results, strict=True)]
        return merged

    def _loop(self, node: GraphNode, inputs: Sequence[Value], depth: int) -> Sequence[Value]:
        condition, body = _function_of(node, "cond"), _function_of(node, "body")
        call = self._asked(node, node.operator, inputs)
        state = list(inputs)
        since = self.symbols.next_index
        for _ in range(_MAX_TURNS):
            (goes_on,) = self._function(condition, state, depth)
            _must_be_uniform(goes_on)
            results = self._function(body, state, depth)
            settled, state = next_state(call, state, results, since)
            if settled:
                return [finished(call, value, since) for value in state]
        return refuse("what is known of its state does not settle")

    def _function(self, name: str, arguments: Sequence[Value], depth: int) -> list[Value]:
        """What a function returns, in whichever of the ways that the model has for it."""
        ways = _ways(self._model, name)
        found = [self._returned(way, arguments, depth) for way in ways]
        merged = found[0]
        for results in found[1:]:
            if len(results) != len(merged):
                refuse("functions for the same task differ in what they return")
            merged = [joined(a, b, self.symbols) for a, b in zip(merged, results, strict=True)]
        return merged

    def _returned(self, function: Function, arguments: Sequence[Value], depth: int) -> list[Value]:
        key = (function.name, tuple(arguments))
        known = self._calls.get(key)
        if known is not None:
            return known
        if depth >= MAX_DEPTH:
            refuse(f"functions are nested more than {MAX_DEPTH} deep")
        if len(arguments) != len(function.inputs):
            refuse(f"a function of {len(function.inputs)} inputs gets {len(arguments)}")
        nodes = self._bodies.get(function.name)
        if nodes is None:
            nodes = self._bodies[function.name] = _by_name(function.nodes)
        self.looks_at_names(len(function.inputs) + len(function.outputs))
        body = _Body(nodes, dict(zip(function.inputs, arguments, strict=True)), depth=depth + 1)
        results = [self._value(body, reference) for reference in function.outputs]
        # Sizes that came up inside may be others in another call, with values of which the same is known.
        if _symbols_of(results) <= _symbols_of(arguments):
            self._calls[key] = results
        return results


class _Body:
    """The nodes of the graph or of a function, and what is known of their values."""

    def __init__(self, nodes: Mapping[str, GraphNode], given: Mapping[str, Value], *, depth: int) -> None:
        self.nodes = nodes
        self.depth = depth
        """0: the graph itself, where a value is `<node>:<index>`; in functions it is `<node>:<output>:<index>`."""
        self.results: dict[str, Sequence[Value] | Value] = {}
        self.entered: set[str] = set()
        self._given = given

    def holds(self, reference: str) -> bool:
        """Whether the value is an input."""
        return self._name(reference) in self._given

    def found(self, reference: str) -> Value:
        """What is known of a value whose node was gone through."""
        name = self._name(reference)
        given = self._given.get(name)
        if given is not None:
            return given
        node, *place = name.split(":")
        results = self.results.get(node)
        if results is None:
            return mixed(f'there is no value "{reference}"')
        if isinstance(results, Value):
            return results
        index = self._index(self.nodes[node], place)
        if index is None or index >= len(results):
            return mixed("an output that no rule knows", label(self.nodes[node]))
        return results[index]

    def _name(self, reference: str) -> str:
        return reference if self.depth or ":" in reference else f"{reference}:0"

    def _index(self, node: GraphNode, place: Sequence[str]) -> int | None:
        if not place or not place[-1].isdecimal() or len(place) != (2 if self.depth else 1):
            return None
        index = int(place[-1])
        if not self.depth:
            return index
        outputs = _outputs_of(node)
        if not outputs:  # of one output, whatever its name is
            return index if index == 0 else None
        before = 0
        for name, count in outputs:
            if name == place[0]:
                return before + index if index < count else None
            before += count
        return None


def _outputs_of(node: GraphNode) -> list[tuple[str, int]]:
    """
    Names of an operator's outputs, and how many there are of each; empty where it has one, or none.

    Raises:
        NotProved: an attribute that says how many there are is not known.
    """
    found = []
    for name, attribute in OUTPUTS.get(node.operator, ()):
        count = node.attributes.get(attribute) if attribute else 1
        if isinstance(count, tuple):
            count = len(count)
        if isinstance(count, bool) or not isinstance(count, int):
            refuse(f"{attribute} is not known")
        found.append((name, count))
    return found


def _node_of(reference: str) -> str:
    return reference.partition(":")[0]


def _by_name(nodes: Sequence[GraphNode]) -> dict[str, GraphNode]:
    found = {node.name: node for node in nodes}
    if len(found) != len(nodes):
        refuse("two operators have one name")
    return found


def _function_of(node: GraphNode, attribute: str) -> str:
    found = node.attributes.get(attribute)
    return found.name if isinstance(found, FunctionName) else refuse(f"{attribute} is not known")


def _ways(model: Model, name: str) -> list[Function]:
    """A function, and those that TensorFlow may take in its place."""
    function = model.functions.get((DOMAIN, name))
    if function is None:
        refuse(f"there is no function {name}")
    others = [one for one in model.functions.values() if one.task == function.task] if function.task else []
    return [function, *(one for one in others if one is not function)]


def _must_be_uniform(condition: Value) -> None:
    """
    Raises:
        NotProved: rows, or how many they are, decide which way a request goes.
    """
    if condition.kind is Kind.MIXED:
        refuse(f"the condition: {condition.operator}: {condition.reason}")
    if not condition.is_uniform:
        refuse("the condition depends on rows")
    if condition.counts_rows:
        refuse("the condition depends on the number of rows")


def _symbols_of(values: Sequence[Value]) -> set[Symbol]:
    """The sizes that values are told by, but for the number of rows."""
    found: set[Symbol] = set()
    for value in values:
        for dim in (
            *(value.shape or ()),
            *(value.elements or ()),
            value.before,
            value.after,
            value.stride,
            value.below,
        ):
            if isinstance(dim, Term):
                found.update(dim.symbols)
        if value.item is not None:
            found |= _symbols_of([value.item])
    return found - {ROWS}


# ---- what a model does besides ---------------------------------------------------------------------------------------


def _obstacle(model: Model, nodes: Mapping[str, GraphNode]) -> Value | None:
    """The first operator that does more than compute, or may, of all that the signature reaches."""
    waiting: list[str] = []
    seen: set[str] = set()
    for node in _reached(model, nodes):
        obstacle = _own_obstacle(model, node)
        if obstacle is not None:
            return obstacle
        waiting += _called(model, node)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for function in _ways(model, name):
            for node in function.nodes:
                obstacle = _own_obstacle(model, node)
                if obstacle is not None:
                    return obstacle
                waiting += _called(model, node)
    return None


def _reached(model: Model, nodes: Mapping[str, GraphNode]) -> Iterator[GraphNode]:
    """Nodes that the outputs need, by data or by control; not what only inputs would need."""
    given = {declared.name for declared in model.graph.inputs}

    def needed(references: Sequence[str]) -> list[str]:
        return [
            _node_of(reference)
            for reference in references
            if (reference if ":" in reference else f"{reference}:0") not in given
        ]

    waiting = needed(model.graph.outputs)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        node = nodes.get(name)
        if node is None:
            refuse(f'there is no operator "{name}"')
        yield node
        waiting += [*needed(node.inputs), *node.after]


def _own_obstacle(model: Model, node: GraphNode) -> Value | None:
    is_function = (DOMAIN, node.operator) in model.functions
    if is_function and (node.operator in CONTROL or (DOMAIN, node.operator) in RULES or node.operator in CHECKS):
        return mixed("a function of the model has the name of an operator, and either may be run", label(node))
    if is_function or node.operator in CONTROL:
        return None
    why = more_than_computes(node.operator)
    return mixed(why, label(node)) if why else None


def _called(model: Model, node: GraphNode) -> list[str]:
    """The functions that an operator may call."""
    names = [node.operator] if (DOMAIN, node.operator) in model.functions else []
    for value in node.attributes.values():
        if isinstance(value, FunctionName):
            names.append(value.name)
        elif isinstance(value, FunctionNames):
            names += value.names
    return names
