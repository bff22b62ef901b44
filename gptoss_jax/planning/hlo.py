"""A scheduled program's text as instructions: enough of HLO to count what it moves."""

import dataclasses
import math
import re

_COMMENT = re.compile(r"/\*.*?\*/")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_ARRAY = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]+)\}")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUPS_SHAPE = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
      dims: of its axes.
      nbytes: without padding.
      in_memory: in the device's main memory, not in a cache that the program manages itself.
    """

    dims: tuple[int, ...]
    nbytes: int
    in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      name: without the percent sign.
      opcode: as "fusion".
      arrays: its results.
      operands: names.
      index: of a parameter, its place.
      called: computations it runs; of a while loop condition and body, in the text's order.
      body: of a while loop.
      group: of a collective, how many devices take part.
      contracted: of a dot, the axes of its first operand that it sums over.
      trips: of a while loop whose number the compiler knows.
      op_name: what the program's author called it.
      is_root: its result is its computation's.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    index: int
    called: tuple[str, ...]
    body: str | None
    group: int
    contracted: tuple[int, ...]
    trips: int | None
    op_name: str
    is_root: bool

    @property
    def packed(self) -> bool:
        """Whether its elements are of one byte each, as experts' weights are."""
        return all(array.nbytes == math.prod(array.dims) for array in self.arrays)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: by name, each its instructions by name, in the order of the schedule.
      entry: the name of the one that runs.
    """

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Reads a program's text.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for raw in text.splitlines():
        line = _COMMENT.sub("", raw)
        if (header := _HEADER.match(line)) is not None:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _LINE.match(line)) is not None:
            instruction = _instruction(match[1], match[2], "ROOT " in line[:10])
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text is no program: it has no ENTRY")
    return Module(computations, entry)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    operands, attributes = rest[: end - 1], rest[end:]
    if opcode == "custom-call":  # a kernel's own program stands there, in any bytes
        attributes = attributes.partition("backend_config=")[0]
    called = _CALLED.findall(attributes)
    branches = _BRANCHES.search(attributes)
    body = re.search(r"body=%?([\w.\-]+)", attributes)
    contracted = _CONTRACTED.search(attributes)
    trips, op_name = _TRIPS.search(attributes), _OP_NAME.search(attributes)
    return Instruction(
        name=name,
        opcode=opcode,
        arrays=tuple(_array(found) for found in _ARRAY.finditer(shape)),
        operands=tuple(_NAME.findall(operands)),
        index=int(operands) if opcode == "parameter" else -1,
        called=(*called, *(_NAME.findall(branches[1]) if branches else ())),
        body=body[1] if body else None,
        group=_group(attributes),
        contracted=tuple(map(int, contracted[1].split(","))) if contracted else (),
        trips=int(trips[1]) if trips else None,
        op_name=op_name[1] if op_name else "",
        is_root=is_root,
    )


def _group(attributes: str) -> int:
    """From `replica_groups={{0,1},{2,3}}`, or the same as `[2,2]<=[4]`."""
    listed, shape = _GROUPS.search(attributes), _GROUPS_SHAPE.search(attributes)
    if shape is not None:
        return int(shape[1])
    return len(listed[1].split(",")) if listed is not None else 1


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _array(found: re.Match[str]) -> Array:
    dtype, sizes, layout = found[1], found[2], found[3] or ""
    dims = tuple(int(n) for n in sizes.split(",") if n)
    space = _SPACE.search(layout)
    return Array(dims, math.prod(dims) * bits(dtype) // 8, space is None or space[1] == "0")


def bits(dtype: str) -> int:
    """Of an element: 8 of a pred, 4 of "s4", 16 of "bf16", 8 of "f8e4m3fn"."""
    number = re.match(r"[a-z]+(\d+)", dtype)
    return 8 if number is None else int(number[1])
