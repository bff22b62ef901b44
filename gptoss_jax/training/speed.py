"""How fast a run goes, and what this machine could do."""

import time

import jax
import jax.numpy as jnp

from gptoss_jax.model.config import Config

_SIZE = 1024
_SECONDS = 0.3


def matmul_rate() -> float:
    """float32 multiplications and additions a second in a plain matmul of 1024 x 1024 here.

    The best of as many as fit in 0.3 s.
    """
    x = jnp.ones((_SIZE, _SIZE), jnp.float32)
    matmul = jax.jit(jnp.matmul).lower(x, x).compile()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        matmul(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * _SIZE**3 / best


def active_parameters(config: Config) -> int:
    """Weights a token is multiplied with: the chosen experts only, and not the embedding."""
    hidden, width = config.hidden_size, config.expert_width
    attention = 2 * hidden * (config.attention_width + config.kv_width)
    experts = config.experts_per_token * 3 * hidden * width
    layer = attention + experts + hidden * config.num_experts
    return config.num_layers * layer + config.vocab_size * hidden


def training_flops(config: Config, *, frozen: bool = False) -> int:
    """Multiplications and additions a trained token needs, attention's own products left out.

    Two a weight forwards, four backwards, of a frozen one two; recomputing (remat) is work, but not
    needed work.

    Args:
      config: the network.
      frozen: an adapter is trained, whose own are so few that they are left out.
    """
    return (4 if frozen else 6) * active_parameters(config)


class Meter:
    """Tokens a second between readings, without pauses.

    Attributes:
      machine: `matmul_rate` of all of the run's devices, one of them measured on construction.
    """

    def __init__(self, sizes: Config, steps: int, machines: int = 1, *, frozen: bool = False):
        """A meter for a run of so many steps, on so many times what is measured here."""
        self.machine = machines * matmul_rate()
        self._flops = training_flops(sizes, frozen=frozen)
        self._steps = steps
        self.start(0)

    def start(self, step: int) -> None:
        """Counts from now, when `step` steps are done."""
        self._step, self._tokens, self._began = step, 0, time.perf_counter()

    def add(self, tokens: int) -> None:
        """Counts tokens; padding is none."""
        self._tokens += tokens

    def pause(self, seconds: float) -> None:
        """Leaves out time spent on something else."""
        self._began += seconds

    def read(self, step: int) -> dict[str, float]:
        """tokens_per_second, matmul_share and seconds_left, and starts anew."""
        seconds = time.perf_counter() - self._began
        rate, steps = self._tokens / seconds, step - self._step
        self.start(step)
        return {
            "tokens_per_second": rate,
            "matmul_share": rate * self._flops / self.machine,
            "seconds_left": (self._steps - step) * seconds / steps,
        }
