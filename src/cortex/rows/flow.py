"""Follows rows from the inputs of an ONNX graph to its outputs, through subgraphs and functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from cortex.rows import rules
from cortex.rows.refusal import NotProved, refuse
from cortex.rows.rules.registry import COUNTED, RULES, Op, Rounds, Rule
from cortex.rows.sizes import NUMBER_OF_ROWS, AtMost, Dim, Supposition, Symbol, Symbols, Term
from cortex.rows.values import EXACT, Grade, Kind, Noise, Value, mixed, rows, uniform
from cortex.wire import batching
from cortex.wire.batching import Proof, SizeCondition
from cortex.wire.graphs import Attribute, Function, Graph, GraphInput, GraphNode, Model, Reference, Tensor

_ = rules  # imported for what it registers

MAX_STEPS: Final = 50_000
"""Operators looked at, bodies of loops each time: seconds. Larger models are not proved."""
MAX_WORK: Final = 500_000
"""Names, twice the known elements and four times the operators, in all passes together: seconds. Real models have some
ten thousands."""
MAX_RANK: Final = 64
"""No runtime has tensors of more dimensions."""
MAX_RESTARTS: Final = 24
"""What a proof may suppose of sizes of inputs; the graph is gone through once more for each."""
MAX_DEPTH: Final = 50
"""Of graphs in graphs and functions in functions."""

FLOAT_BITS: Final = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_ROUNDING: Final[dict[Grade, batching.Rounding]] = {
    Grade.EXACT: "exact",
    Grade.ROUNDING: "rounding",
    Grade.LABELS: "labels",
    Grade.STEPS: "steps",
}


class Place(NamedTuple):
    """A dimension of an input."""

    input: str
    axis: int


Supposed: TypeAlias = "int | Place | AtMost"
"""What a size is supposed to be."""


class TooLarge(Exception):
    """The model is not looked at to its end. The text says what there is too much of."""


class Scope:
    """Names of values in one graph, and around it."""

    def __init__(
        self,
        opsets: Mapping[str, int],
        *,
        around: Scope | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        depth: int = 0,
    ) -> None:
        self.opsets = opsets
        self.attributes = attributes
        """Of the call, inside a function."""
        self.depth = depth
        self._around = around
        self._values: dict[str, Value] = {}

    def __setitem__(self, name: str, value: Value) -> None:
        self._values[name] = value

    def holds(self, name: str) -> bool:
        return name in self._values

    def find(self, name: str) -> Value | None:
        scope: Scope | None = self
        while scope is not None:
            found = scope._values.get(name)
            if found is not None:
                return found
            scope = scope._around
        return None


def prove(model: Model) -> Proof:
    """
    Prove that each output row of an ONNX model is a function of its own input row, or say what is in the way.

    Covers batches of requests with equal trailing shapes, no size of 0, and none but the inputs without a default.
    Never raises; what cannot be followed is not proved.
    """
    return proved_by(Flow, model)


def proved_by(analysis: type[Flow], model: Model) -> Proof:
    """As `prove`, by an analysis that goes through a graph in its own way."""
    suppositions: dict[Place, Supposed] = {}
    restarts = work = 0
    while True:
        flow = analysis(model, suppositions, work)
        try:
            found = proof(flow.steps, flow.run(), model.graph)
            if found.proved and flow.refused is not None:  # no output needs it, and onnxruntime runs it all the same
                unneeded = flow.refused
                return not_proved(unneeded.reason, operator=unneeded.operator, operators=flow.steps)
            return msgspec.structs.replace(found, operators=flow.steps, sizes=_conditions(suppositions))
        except Supposition as wanted:
            restarts += 1
            work = flow.work
            if restarts > MAX_RESTARTS:
                return not_proved("it wants much of the sizes of its inputs", operators=flow.steps)
            suppositions[flow.place_of(wanted.symbol)] = (
                flow.place_of(wanted.size) if isinstance(wanted.size, Symbol) else wanted.size
            )
        except NotProved as refusal:
            return not_proved(str(refusal), operators=flow.steps)
        except TooLarge as problem:
            return not_proved(str(problem), operators=flow.steps)
        except Exception as error:  # a fault of ours must not batch what may mix rows
            return not_proved(f"the analysis failed ({type(error).__name__})", operators=flow.steps)


def _conditions(suppositions: Mapping[Place, Supposed]) -> tuple[SizeCondition, ...]:
    def one(place: Place, supposed: Supposed) -> SizeCondition:
        match supposed:
            case Place(other, axis):
                return SizeCondition(place.input, place.axis, other_input=other, other_axis=axis)
            case AtMost(most):
                return SizeCondition(place.input, place.axis, at_most=most)
            case size:
                return SizeCondition(place.input, place.axis, size=size)

    return tuple(one(place, supposed) for place, supposed in suppositions.items())


def not_proved(reason: str, *, operator: str = "", operators: int = 0) -> Proof:
    return Proof(rules=batching.RULES, proved=False, reason=reason, operator=operator, operators=operators)


def proof(steps: int, outputs: Sequence[Value], graph: Graph) -> Proof:
    """What the outputs' values come to."""
    if not outputs:
        return not_proved("it has no outputs", operators=steps)
    noise = EXACT
    names = graph.output_labels or graph.outputs
    for index, (name, value) in enumerate(zip(names, outputs, strict=True)):
        if value.kind is Kind.MIXED:
            return not_proved(value.reason, operator=value.operator, operators=steps)
        reason = _what_is_wrong(value)
        if reason:
            return not_proved(f'the output "{name}" {reason}', operators=steps)
        declared = graph.output_dtypes[index] if graph.output_dtypes else ""
        noise = noise.joined(_as_output(value, declared or value.dtype))
    return Proof(
        rules=batching.RULES,
        proved=True,
        rounding=_ROUNDING[noise.grade],
        rounding_operator=noise.operator,
        operators=steps,
    )


def _what_is_wrong(value: Value) -> str:
    if value.kind is Kind.ITEMS:
        return ""
    if value.is_uniform:
        return "is made of the number of rows" if value.counts_rows else "is the same for all rows"
    if not value.is_rows:
        return "has no rows"
    if value.axis != 0:
        return f"has its rows in dimension {value.axis}"
    if value.layout != (1, 1) or value.known_shape[0] != NUMBER_OF_ROWS:
        return f"has {value.known_shape[0]} rows for N"
    return ""


def _as_output(value: Value, dtype: str) -> Noise:
    """A sum that was rounded to a coarser type than the output's moves it by whole steps."""
    noise = value.noise
    if noise.grade is not Grade.EXACT and noise.bits < FLOAT_BITS.get(dtype, 0):
        return Noise(Grade.STEPS, noise.bits, noise.operator or f"Cast of {noise.bits}-bit floats to {dtype}")
    return noise


class Flow:
    """One analysis."""

    def __init__(self, model: Model, suppositions: Mapping[Place, Supposed] | None = None, work: int = 0) -> None:
        self._model = model
        self._suppositions = suppositions or {}
        self._sizes: dict[Place, Dim] = {}
        self.refused: Value | None = None
        """What the first operator that was refused has for outputs."""
        self.symbols = Symbols()
        self.steps = 0
        self.work = work
        """What counts towards `MAX_WORK`, with that of the passes before."""
        self._orders: dict[int, Sequence[GraphNode]] = {}
        """By identity of the nodes in the order of the file."""

    def place_of(self, symbol: Symbol) -> Place:
        """The first dimension of an input that has this size."""
        return next(place for place, size in self._sizes.items() if size == Term(1, (symbol,)))

    def run(self) -> list[Value]:
        """
        Return what is known of the outputs.

        Raises:
            NotProved: the inputs have no rows.
            TooLarge: of `MAX_STEPS`.
        """
        graph = self._model.graph
        scope = Scope(self._model.opsets)
        for declared in graph.inputs:
            if declared.name not in graph.constants:
                scope[declared.name] = self.rows_of(declared)
        return self.values_of(graph, scope)

    def rows_of(self, declared: GraphInput) -> Value:
        """
        What is known of an input: its first dimension is the rows, each free one a size of its own.

        Equal names of dimensions prove nothing: onnxruntime does not hold them equal. What is supposed is held.

        Raises:
            NotProved: its first dimension is not free.
        """
        label = declared.label or declared.name
        name = f'the input "{label}"'
        if not declared.is_tensor:
            refuse(f"{name} is no tensor")
        if declared.shape is None:
            refuse(f"{name} has no declared rank")
        if not declared.shape:
            refuse(f"{name} is a scalar")
        if len(declared.shape) > MAX_RANK:
            refuse(f"{name} has more than {MAX_RANK} dimensions")
        first = declared.shape[0]
        if isinstance(first, int) and first >= 0:
            refuse(f"the first dimension of {name} is fixed to {first}")
        fixed = math.prod(dim for dim in declared.shape[1:] if isinstance(dim, int) and dim > 0)
        trailing: list[Dim] = []
        for axis, dim in enumerate(declared.shape[1:], 1):
            if dim == 0:
                refuse(f"{name} has a size of 0")
            is_fixed = isinstance(dim, int) and dim > 0
            trailing.append(dim if is_fixed else self._size_of(Place(label, axis), fixed))  # type: ignore[arg-type]
        return rows([NUMBER_OF_ROWS, *trailing], dtype=declared.dtype)

    def _size_of(self, place: Place, fixed: int) -> Dim:
        """The size of a free dimension of an input whose others come to so many elements."""
        wanted = self._suppositions.get(place)
        match wanted:
            case int():
                size: Dim = wanted
            case Place():
                size = self._sizes[wanted]
            case AtMost(most):
                size = self.symbols.of_input(place.input, most, fixed=fixed)
            case None:
                size = self.symbols.of_input(place.input, fixed=fixed)
        self._sizes[place] = size
        return size

    def values_of(self, graph: Graph, scope: Scope) -> list[Value]:
        """Go through a graph whose inputs are in the scope; return its outputs."""
        self.looks_at_names(len(graph.constants) + len(graph.inputs) + len(graph.outputs))
        for name, tensor in graph.constants.items():
            if not scope.holds(name):
                scope[name] = constant(tensor)
        for node in self._ordered(graph.nodes):
            self._node(node, scope)
        return [self._find(scope, name) for name in graph.outputs]

    def subgraph(self, graph: Graph, scope: Scope, arguments: Sequence[Value] = ()) -> list[Value]:
        """
        Go through a graph inside a node of `scope`; return its outputs.

        Raises:
            NotProved: it is nested too deep, or wants another number of inputs.
        """
        if scope.depth >= MAX_DEPTH:
            refuse(f"graphs are nested more than {MAX_DEPTH} deep")
        if len(arguments) != len(graph.inputs):
            refuse(f"a graph of {len(graph.inputs)} inputs gets {len(arguments)}")
        inner = Scope(scope.opsets, around=scope, attributes=scope.attributes, depth=scope.depth + 1)
        for declared, value in zip(graph.inputs, arguments, strict=True):
            inner[declared.name] = value
        return self.values_of(graph, inner)

    def looks_at_names(self, count: int) -> None:
        """
        Raises:
            TooLarge: of `MAX_WORK`.
        """
        self.work += count
        if self.work > MAX_WORK:
            raise TooLarge("it has more names and numbers than are looked at")

    def looks_at_operator(self, inputs: Sequence[Value | None], outputs: int) -> None:
        """
        Raises:
            TooLarge: of `MAX_STEPS` or `MAX_WORK`.
        """
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooLarge(f"it has more than {MAX_STEPS} operators to look at")
        elements = sum(len(value.elements or ()) for value in inputs if value is not None)
        self.looks_at_names(4 + len(inputs) + outputs + 2 * elements)

    def kept(self, value: Value, name: str) -> Value:
        """
        A value that an operator of this name made, or why it is not followed.

        Raises:
            TooLarge: of `MAX_WORK`.
        """
        self.looks_at_names(2 * len(value.elements or ()))
        return value if len(value.shape or ()) <= MAX_RANK else mixed(f"more than {MAX_RANK} dimensions", name)

    def _ordered(self, nodes: Sequence[GraphNode]) -> Sequence[GraphNode]:
        """As `ordered`, found out once."""
        found = self._orders.get(id(nodes))
        if found is None:
            found = self._orders[id(nodes)] = ordered(nodes)
        return found

    @staticmethod
    def _find(scope: Scope, name: str) -> Value:
        return scope.find(name) or mixed(f'there is no value "{name}"')

    def _node(self, node: GraphNode, scope: Scope) -> None:
        inputs = [self._find(scope, name) if name else None for name in node.inputs]
        self.looks_at_operator(inputs, len(node.outputs))
        results = self._results(node, inputs, scope)
        for index, name in enumerate(node.outputs):
            if name:
                missing = mixed("an output that no rule knows", label(node))
                scope[name] = self.kept(results[index], label(node)) if index < len(results) else missing

    def _results(self, node: GraphNode, inputs: Sequence[Value | None], scope: Scope) -> Sequence[Value]:
        for value in inputs:
            if value is not None and value.kind is Kind.MIXED:
                return [value] * len(node.outputs)
        try:
            attributes = _bound(node, scope)
            function = self._model.functions.get((node.domain, node.operator))
            if function is not None:
                return self._call(function, inputs, attributes, scope)
            return self.apply(node, inputs, attributes, scope)
        except NotProved as refusal:
            return self._refused(node, str(refusal))
        except (TooLarge, Supposition):
            raise
        except Exception as error:  # a fault in a rule: what it was asked about is not proved
            return self._refused(node, f"the rule failed ({type(error).__name__}: {error})")

    def _refused(self, node: GraphNode, reason: str) -> Sequence[Value]:
        value = mixed(reason, label(node))
        self.refused = self.refused or value
        return [value] * len(node.outputs)

    def _call(
        self, function: Function, inputs: Sequence[Value | None], attributes: Mapping[str, Attribute], scope: Scope
    ) -> Sequence[Value]:
        if (function.domain, function.name) in RULES:
            refuse("a function of the model has the name of an operator, and either may be run")
        if scope.depth >= MAX_DEPTH:
            refuse(f"functions are nested more than {MAX_DEPTH} deep")
        if len(inputs) > len(function.inputs):
            refuse(f"a function of {len(function.inputs)} inputs gets {len(inputs)}")
        opsets = {**scope.opsets, **function.opsets}
        for domain in {domain for domain, _ in RULES} & function.opsets.keys():
            if opsets[domain] != scope.opsets.get(domain, opsets[domain]):
                refuse("a function has another operator set than the model, and onnxruntime goes by the model's")
        inner = Scope(
            opsets,
            attributes={**function.defaults, **attributes},
            depth=scope.depth + 1,
        )
        for name, value in zip(function.inputs, inputs, strict=False):
            if value is not None:
                inner[name] = value
        left_out = set(function.inputs[len(inputs) :]) | {
            name for name, value in zip(function.inputs, inputs, strict=False) if value is None
        }
        self.looks_at_names(len(function.inputs) + len(function.outputs))
        for node in self._ordered(function.nodes):
            if left_out:
                node = dataclasses.replace(node, inputs=tuple("" if name in left_out else name for name in node.inputs))
            self._node(node, inner)
        return [self._find(inner, name) for name in function.outputs]

    def apply(
        self, node: GraphNode, inputs: Sequence[Value | None], attributes: Mapping[str, Attribute], scope: Scope
    ) -> Sequence[Value]:
        """
        Apply an operator's rule.

        Raises:
            NotProved: there is none, or it refuses.
        """
        domain = "" if node.domain == "ai.onnx" else node.domain
        found = RULES.get((domain, node.operator))
        opset = scope.opsets.get(domain, 1 if domain == "com.microsoft" else 0)
        if found is None:
            refuse("no rule knows this operator")
        if not found.since <= opset <= found.until:
            refuse(f"no rule knows this operator in operator set {opset}")
        call = Op(
            operator=node.operator,
            domain=domain,
            opset=opset,
            inputs=inputs,
            attributes=attributes,
            outputs=len(node.outputs),
            symbols=self.symbols,
            flow=self,
            scope=scope,
        )
        return apply_rule(found, call, label(node))


def apply_rule(rule: Rule, call: Op, name: str) -> Sequence[Value]:
    """
    What a rule says about its outputs, with what it adds to their noise.

    Raises:
        NotProved: the rule refuses, or gets a kind of value that it does not expect.
    """
    all_uniform = True
    for value in call.inputs:
        if value is None:
            continue
        if value.counts_rows and not rule.takes_counts:
            refuse(COUNTED)
        if not value.is_uniform or value.counts_rows:
            all_uniform = False
        if not value.is_uniform and not value.is_rows and value.kind not in rule.takes:
            refuse(_UNEXPECTED[value.kind])
    values = _of_uniform(rule, call) if all_uniform and rule.when_uniform else _results(rule, call)
    if not rule.keeps_bounds:
        values = [
            dataclasses.replace(value, below=None, is_whole=False)
            if value.below is not None or value.is_whole
            else value
            for value in values
        ]
    noise = EXACT
    for value in call.given:
        noise = noise.joined(value.noise)
    return [
        _with_noise(value, noise, call.rounds or rule.rounds[min(index, len(rule.rounds) - 1)], name)
        for index, value in enumerate(values)
    ]


_UNEXPECTED: Final = {
    Kind.PLACES: "row numbers used as data",
    Kind.NUMBERED: "row numbers used as data",
    Kind.ROW_INDICES: "row numbers used as data",
    Kind.PADDED: "rows are padded to the longest of the batch",
    Kind.ITEMS: "a list used as a tensor",
    Kind.TENSORS: "a list used as a tensor",
}


def _results(rule: Rule, call: Op) -> list[Value]:
    result = rule.function(call)
    return [result] if isinstance(result, Value) else list(result)


def _of_uniform(rule: Rule, call: Op) -> Sequence[Value]:
    """
    Outputs of an operator without rows among its inputs: the same for all rows, whatever it computes.

    Its rule is asked for shapes and small values, and where it refuses nothing more is known.
    """
    try:
        values = _results(rule, call)
        if all(value.is_uniform for value in values):
            return values
    except NotProved:
        pass
    return [uniform() for _ in range(max(call.outputs, 1))]


def _with_noise(value: Value, noise: Noise, rounds: Rounds, name: str) -> Value:
    """The value with the noise of what it was made of, and what its operator adds."""
    if value.is_uniform or value.kind is Kind.MIXED:
        return value
    bits = FLOAT_BITS.get(value.dtype, 0 if value.dtype else 32)
    noisy = noise.grade is not Grade.EXACT
    if rounds is Rounds.SUMS and bits:
        noise = noise.joined(Noise(Grade.ROUNDING, bits))
    elif rounds is Rounds.VOTES:
        noise = noise.joined(Noise(Grade.LABELS if noisy else Grade.ROUNDING, 32, name))
    elif rounds is Rounds.ELECTS or (rounds is Rounds.CHOOSES and noisy):
        noise = noise.joined(Noise(Grade.LABELS, 64, name))
    elif rounds is Rounds.SUMS_AND_STEPS or (rounds is Rounds.STEPS and noisy):
        noise = noise.joined(Noise(Grade.STEPS, 64, name))
    if noise.grade is Grade.EXACT and value.noise == EXACT:
        return value
    if bits and noise.grade is not Grade.EXACT:
        noise = noise._replace(bits=min(noise.bits, bits))
    return dataclasses.replace(value, noise=noise.joined(value.noise))


def constant(tensor: Tensor) -> Value:
    if len(tensor.shape) > MAX_RANK:
        return uniform(dtype=tensor.dtype)
    return Value(Kind.UNIFORM, tensor.shape, elements=tensor.elements, dtype=tensor.dtype)


def label(node: GraphNode) -> str:
    """How an operator is called in a verdict."""
    return f"{node.operator} {node.name}".strip()


def ordered(nodes: Sequence[GraphNode]) -> Sequence[GraphNode]:
    """
    Nodes in an order in which each comes after those whose values it takes: nearly always that of the file.

    onnxruntime sorts them, too. Nodes that wait for each other are left out, and what they would make is unknown.
    """
    makers = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    needs = [{makers[name] for name in _names(node) if name in makers} for node in nodes]
    if all(not wanted or max(wanted) < index for index, wanted in enumerate(needs)):
        return nodes
    followers: dict[int, list[int]] = {}
    for index, wanted in enumerate(needs):
        for maker in wanted:
            followers.setdefault(maker, []).append(index)
    ready = [index for index, wanted in enumerate(needs) if not wanted]
    found = []
    while ready:
        index = ready.pop()
        found.append(nodes[index])
        for follower in followers.get(index, ()):
            needs[follower].discard(index)
            if not needs[follower]:
                ready.append(follower)
    return found


def _names(node: GraphNode) -> Iterator[str]:
    """Names that a node takes, its graphs included."""
    yield from node.inputs
    for value in node.attributes.values():
        if isinstance(value, Graph):
            for inner in value.nodes:
                yield from _names(inner)
            yield from value.outputs


def _bound(node: GraphNode, scope: Scope) -> Mapping[str, Attribute]:
    """The node's attributes, with those that are the function's in place."""
    if not any(isinstance(value, Reference) for value in node.attributes.values()):
        return node.attributes
    around = scope.attributes or {}
    bound: dict[str, Attribute] = {}
    for name, value in node.attributes.items():
        if not isinstance(value, Reference):
            bound[name] = value
        elif value.name in around:
            bound[name] = around[value.name]
    return bound
