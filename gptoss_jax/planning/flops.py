"""Multiplications and additions of a program's dots, before the compiler has fused them.

Kernels count the rows that their matmul unit takes, with every packed weight that is read and with
every key. What one multiplies without that unit, attention's values, does not count.
"""

import math
from collections.abc import Mapping

from gptoss_jax.kernels.hopper import UNIT_ROWS
from gptoss_jax.planning.hlo import Computation, Instruction, Module
from gptoss_jax.planning.walk import Walk


def counted(module: Module, trips: Mapping[str, float]) -> float:
    """Of one run; see `walk.Walk` for loops.

    Args:
      module: of the text before optimisation, where a dot says which axes it contracts.
      trips: the expected number of rounds by the name of a loop's scope.
    """
    return _Counter(module, trips).whole()


class _Counter(Walk):
    def own(self, one: Instruction, within: Computation) -> float:
        if one.opcode == "custom-call":
            return self._kernel(one, [within[name] for name in one.operands])
        if one.opcode != "dot":
            return 0.0
        left = within[one.operands[0]].arrays[0].dims
        contracted = math.prod(left[axis] for axis in one.contracted)
        return 2.0 * math.prod(one.arrays[0].dims) * contracted

    def _kernel(self, one: Instruction, operands: list[Instruction]) -> float:
        if (share := self.share(one)) is not None:
            # The scales are packed too; two weights a byte of the larger array.
            packed = [each.arrays[0].nbytes for each in operands if each.packed]
            return 2.0 * UNIT_ROWS * share * 2 * max(packed, default=0)
        if "attend_cache" in one.op_name.split("/"):
            _, keys, *_ = operands
            return 2.0 * UNIT_ROWS * math.prod(keys.arrays[0].dims)
        return 0.0
