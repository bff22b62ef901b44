"""What a layout is made of: rules that tie published tensors to parameters."""

import dataclasses

from gptoss_jax.checkpoint.safetensors_file import Tensor


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows `first ... first + rows` of a tensor, which are the parameter at `path`.

    A path is the attribute names from the model down, dotted: "layers.3.attention.w_q_AD".
    """

    path: str
    first: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Rule:
    """Published tensors <-> parameters.

    Attributes:
      tensors: one, or the blocks and the scales of one packed weight.
      parts: the parameters the rows belong to: one, or q, k and v of a fused projection.
      interleaved: the outputs alternate gate, up, gate, up; in memory the gates come first.
    """

    tensors: tuple[Tensor, ...]
    parts: tuple[Part, ...]
    interleaved: bool = False

    @property
    def packed(self) -> bool:
        return len(self.tensors) == 2


def whole(tensor: Tensor, path: str, *, interleaved: bool = False) -> Rule:
    """The rule of a tensor that is one parameter."""
    return Rule((tensor,), (Part(path, 0, tensor.shape[0]),), interleaved)


def packed(blocks: str, scales: str, path: str, shape: tuple[int, ...], interleaved: bool) -> Rule:
    """The rule of an MXFP4 weight of logical shape [E, K, N]; published as [E, N, K/32, 16]."""
    experts, k, n = shape
    tensors = (
        Tensor(blocks, (experts, n, k // 32, 16), "U8"),
        Tensor(scales, (experts, n, k // 32), "U8"),
    )
    return Rule(tensors, (Part(path, 0, experts),), interleaved)
