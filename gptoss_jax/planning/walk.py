"""A sum over a program's instructions, each as often as it runs."""

import abc
import functools
import itertools
import re
from collections.abc import Mapping

from gptoss_jax.planning.hlo import Computation, Instruction, Module

# A loop without a known number of rounds that costs less than this a round counts once.
_SMALL = 2**20


class Walk(abc.ABC):
    """What a program costs, by `own` of its instructions.

    A loop's body counts as often as it is gone round: the compiler's number where it knows one,
    else that of its `jax.named_scope`: "rounds_3" says it, other names have an expected number. Of
    a branch the larger side counts.
    """

    def __init__(self, module: Module, trips: Mapping[str, float]):
        """Prepares.

        Args:
          module: the program.
          trips: the expected number of rounds by the name of a loop's scope.
        """
        self._computations = module.computations
        self._entry = module.entry
        self._trips = trips
        self.of = functools.cache(self._sum)

    def whole(self) -> float:
        """Of one run.

        Raises:
          KeyError: a large loop without a known number and without a name in `trips`.
        """
        return self.of(self._entry)

    @abc.abstractmethod
    def own(self, one: Instruction, within: Computation) -> float:
        """What an instruction costs that runs no computation in turn, or a fusion."""

    def share(self, kernel: Instruction) -> float | None:
        """How much of the experts' weights a kernel reads, by its scope "NAME_of_32".

        Each of the rounds that are expected of the name is for one of 32 experts. None: no scope.
        """
        for scope in kernel.op_name.split("/"):
            said = re.fullmatch(r"(\w+)_of_(\d+)", scope)
            if said is not None and said[1] in self._trips:
                return self._trips[said[1]] / int(said[2])
        return None

    def _sum(self, name: str) -> float:
        computation = self._computations[name]
        return sum(self._cost(each, computation) for each in computation.values())

    def _cost(self, one: Instruction, within: Computation) -> float:
        if one.opcode == "while":
            assert one.body is not None
            return self._rounds(one) * self.of(one.body)
        if one.opcode == "conditional":
            return max(self.of(branch) for branch in one.called)
        if one.opcode in ("call", "async-start"):
            return sum(self.of(called) for called in one.called)
        return self.own(one, within)

    def _rounds(self, loop: Instruction) -> float:
        if loop.trips is not None:
            return loop.trips
        assert loop.body is not None
        inside = self._computations[loop.body].values()
        # The body's own instructions name the scope of the loop before their last "while/body".
        depths = sorted((o.op_name.count("while/body"), o.op_name) for o in inside if o.op_name)
        own = loop.op_name.split("while/body")[-1]
        of_body = [name.split("while/body")[-2] for n, name in depths[:1] if n]
        scopes = [path.split("/") for path in (own, *of_body)]
        for scope in itertools.chain.from_iterable(map(reversed, scopes)):
            if (said := re.fullmatch(r"rounds_(\d+)", scope)) is not None:
                return int(said[1])
            if scope in self._trips:
                return self._trips[scope]
        if self.of(loop.body) < _SMALL:
            return 1
        raise KeyError(f"loop {loop.name} ({loop.op_name}) has no known number of rounds")
