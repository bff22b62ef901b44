"""What an adapter is of: its rank, scale and targets. Imports no JAX."""

import dataclasses
import math

from gptoss_jax.errors import UserError

# Where each target is in a layer, or in the model where it says so.
_IN_LAYER = {
    "q": "attention.w_q_AD",
    "k": "attention.w_k_CD",
    "v": "attention.w_v_CD",
    "o": "attention.w_o_DA",
    "gate_up": "moe.w_gate_up_EDF",
    "down": "moe.w_down_EFD",
    "router": "moe.w_router_ED",
    "sinks": "attention.sinks_N",
}
UNEMBEDDING = "unembedding"
TARGETS = (*_IN_LAYER, UNEMBEDDING)
_UNEMBEDDING_PATH = "unembedding_VD"


def scale(rank: int, alpha: float, rslora: bool) -> float:
    """What a product of factors is multiplied by; rsLoRA divides by the rank's root."""
    return alpha / (math.sqrt(rank) if rslora else rank)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What has factors, and how large they are.

    Attributes:
      rank: r.
      alpha: the addition is scaled by alpha / r.
      rslora: by alpha / sqrt(r) instead (arXiv 2312.03732).
      dropout: the share of what goes into `a` that is dropped in training.
      targets: names in `TARGETS`. Of the sinks, which have no factors, the values are trained.
      layers: which layers, ascending; None: all. The unembedding is in none.

    Raises:
      UserError: on construction, one line that names the field.
    """

    rank: int
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS[:6]
    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"lora.rank: {self.rank} must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha: {self.alpha} must be positive")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout: {self.dropout} must be at least 0 and below 1")
        if not self.targets:
            raise UserError(f"lora.targets: empty; name some of {', '.join(TARGETS)}")
        for target in self.targets:
            if target not in TARGETS:
                raise UserError(f"lora.targets: {target!r} is none of {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """Of the addition."""
        return scale(self.rank, self.alpha, self.rslora)

    def paths(self, num_layers: int) -> dict[str, str]:
        """The target of each chosen parameter, by its path, "layers.3.attention.w_q_AD".

        Args:
          num_layers: of the network.

        Raises:
          UserError: a layer the network has not, or a target without a parameter.
        """
        layers = range(num_layers) if self.layers is None else self.layers
        for layer in layers:
            if not 0 <= layer < num_layers:
                raise UserError(f"lora.layers: {layer} is none of the {num_layers} layers")
        found = {
            f"layers.{layer}.{_IN_LAYER[target]}": target
            for layer in layers
            for target in self.targets
            if target in _IN_LAYER
        }
        if UNEMBEDDING in self.targets:
            found[_UNEMBEDDING_PATH] = UNEMBEDDING
        for target in self.targets:
            if target not in found.values():
                raise UserError(f"lora.targets: {target!r} matches no parameter of these layers")
        return found
