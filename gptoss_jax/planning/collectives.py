"""What a compiled program's devices say to each other."""

from collections.abc import Callable, Mapping

from gptoss_jax.planning.hlo import Computation, Instruction, Module
from gptoss_jax.planning.walk import Walk

# Bytes a device sends, of V bytes of result over n devices, each way round a ring.
_SENT: dict[str, Callable[[float, int], float]] = {
    "all-reduce": lambda v, n: 2 * v * (n - 1) / n,
    "all-gather": lambda v, n: v * (n - 1) / n,
    "reduce-scatter": lambda v, n: v * (n - 1),
    "all-to-all": lambda v, n: v * (n - 1) / n,
    "ragged-all-to-all": lambda v, n: v * (n - 1) / n,
    "collective-permute": lambda v, n: v,
}


def listed(module: Module) -> dict[str, tuple[int, int]]:
    """kind -> (how many, bytes of their results) in the program: one in a loop counts once."""
    found: dict[str, tuple[int, int]] = {}
    for computation in module.computations.values():
        for one in computation.values():
            kind = one.opcode.removesuffix("-start")
            if kind in _SENT:
                number, total = found.get(kind, (0, 0))
                found[kind] = (number + 1, total + _result(one))
    return found


def sent(module: Module, trips: Mapping[str, float]) -> float:
    """Bytes a device sends to others in one run; of a ragged exchange the room for it.

    Args:
      module: of the compiler's last text.
      trips: see `walk.Walk`.
    """
    return _Sent(module, trips).whole()


class _Sent(Walk):
    def own(self, one: Instruction, within: Computation) -> float:
        del within
        if one.opcode == "fusion":
            return sum(self.of(called) for called in one.called)
        kind = one.opcode.removesuffix("-start")
        return _SENT[kind](_result(one), one.group) if kind in _SENT else 0.0


def _result(one: Instruction) -> int:
    # What begins an asynchronous one has the operands before the results, but for an all-reduce.
    number = len(one.operands)
    both = one.opcode.endswith("-start") and one.opcode != "all-reduce-start"
    results = one.arrays[number : 2 * number] if both else one.arrays
    return sum(array.nbytes for array in results)
