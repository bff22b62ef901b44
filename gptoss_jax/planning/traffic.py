"""Bytes that a scheduled program moves to and from a device's memory.

Counted instruction by instruction over the text the compiler ends with:

- an instruction reads each operand that lies in memory once, and writes each result that does;
  what lies in memory the program manages itself (S(1) in a layout: VMEM) costs nothing, and the
  copies that bring it there are counted where they stand;
- of an operand that is only sliced or looked up in, inside a fusion or outside, the slices are
  read; an update in place writes the update alone;
- of packed weights (of one byte an element) a kernel reads the share that `walk.Walk` says, at
  all tiles of an expert anew; its other operands, which caches hold, once, and all its results;
- loops and branches count as `walk.Walk` has it.

By hand, for the loop in `tests/planning/test_program_text.py`: each of three trips reads one row
of a table u8[8,100] (100 bytes), and a fusion writes 400 and a reduction reads 400 bytes of
f32[100] and writes 4: 3 * (100 + 400 + 400 + 4) = 2,712.
"""

import math
from collections.abc import Mapping

from gptoss_jax.planning.hlo import Computation, Instruction, Module
from gptoss_jax.planning.walk import Walk

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "domain", "rng-get-state"),
    *("copy-done", "async-update", "async-done", "all-reduce-done", "all-gather-done"),
    *("collective-permute-done", "send-done", "recv-done"),
}
_SLICING = {"slice", "dynamic-slice", "gather"}
# Within a fusion nothing is stored: a copy there is another order of reading.
_SAME_BYTES = {"bitcast", "reshape", "copy", "transpose"}


def moved(module: Module, trips: Mapping[str, float]) -> float:
    """Bytes read and written in one run.

    Args:
      module: of the compiler's last text.
      trips: the expected number of rounds by the name of a loop's scope.

    Raises:
      KeyError: a large loop without a known number and without a name in `trips`.
    """
    return _Counter(module, trips).whole()


class _Counter(Walk):
    def own(self, one: Instruction, within: Computation) -> float:
        if one.opcode in _FREE:
            return 0
        if one.opcode == "fusion":
            return self._fusion(one, within)
        if one.opcode == "copy-start":
            return sum(array.nbytes for array in one.arrays[:2] if array.in_memory)
        if one.opcode in _SLICING:
            sliced = _result(one)
            return sliced * _lies(one) + sliced * _lies(within[one.operands[0]])
        if one.opcode == "dynamic-update-slice":
            update = within[one.operands[1]]
            return _in_memory(update) + _result(update) * _lies(one)
        if one.opcode == "scatter":
            return 2 * _result(within[one.operands[-1]])
        operands = [within[name] for name in one.operands]
        moved = _in_memory(one) + sum(map(_in_memory, operands))
        if one.opcode == "custom-call" and (share := self.share(one)) is not None:
            return moved - (1 - share) * sum(_in_memory(each) for each in operands if each.packed)
        return moved

    def _fusion(self, one: Instruction, within: Computation) -> float:
        inside = self._computations[one.called[0]]
        parameters = sorted((i for i in inside.values() if i.index >= 0), key=lambda i: i.index)
        read = 0.0
        for parameter, name in zip(parameters, one.operands, strict=True):
            if _lies(within[name]):
                read += min(_result(within[name]), self._used(parameter.name, inside))
        return read + self._written(one, inside)

    def _used(self, name: str, inside: Computation, outer: float = math.inf) -> float:
        """Bytes that are needed of a value in a fusion; `outer` if the value is its result."""
        total = outer if inside[name].is_root else 0.0
        for user in inside.values():
            if name not in user.operands:
                continue
            if user.opcode in _SLICING and user.operands[0] == name:
                total += _result(user)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue
            elif user.opcode in _SAME_BYTES:
                total += self._used(user.name, inside, outer)
            elif user.opcode == "fusion":
                nested = self._computations[user.called[0]]
                (parameter,) = [
                    each.name
                    for each in nested.values()
                    if each.index >= 0 and user.operands[each.index] == name
                ][:1]
                total += self._used(parameter, nested, self._used(user.name, inside, outer))
            else:
                return math.inf
        return total

    def _written(self, one: Instruction, inside: Computation) -> float:
        (root,) = [each for each in inside.values() if each.is_root]
        parts = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(parts) != len(one.arrays):  # tuples in the tuple
            return _in_memory(one)
        pairs = zip(parts, one.arrays, strict=True)
        return sum(self._updated(p, inside, a.nbytes) for p, a in pairs if a.in_memory)

    def _updated(self, part: Instruction, inside: Computation, whole: int) -> float:
        """Bytes that are new of a fusion's result."""
        if part.opcode == "dynamic-update-slice":
            return _result(inside[part.operands[1]])
        if part.opcode == "bitcast":
            return self._updated(inside[part.operands[0]], inside, whole)
        return whole


def _lies(one: Instruction) -> bool:
    return any(array.in_memory for array in one.arrays)


def _result(one: Instruction) -> int:
    return sum(array.nbytes for array in one.arrays)


def _in_memory(one: Instruction) -> int:
    return sum(array.nbytes for array in one.arrays if array.in_memory)
