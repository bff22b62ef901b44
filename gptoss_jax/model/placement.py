"""How each parameter lies in a device's memory."""

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.tree_util import keystr, tree_map_with_path

from gptoss_jax.model.transformer import GptOss
from gptoss_jax.sharding import parameter_spec, split_of

# Device kinds whose matmul unit takes bfloat16 weights in tiles of 16 rows, and the paths' parts of
# the weights that meet it whole. Any other tile is copied into that one at every call.
_TALL_TILE_KINDS = ("TPU7x",)
_TALL_TILE = ((16, 128), (2, 1))
_DENSE_WEIGHTS = ("attention.w_", "unembedding_VD")


def format_of(path: str, like: jax.ShapeDtypeStruct, sharding: Sharding) -> Sharding | Format:
    """The sharding, with the layout the programs read without a copy where the default is not it.

    XLA:TPU's own choice for an argument is what pads least, for [201088, 2880] the vocabulary
    minor; a row of that is no run of bytes, so the whole table is copied before one is read. Here
    every array is row-major, which pads 2880 to 2944 (2.2 %).

    Args:
      path: the parameter's dotted path, "layers.3.attention.w_q_AD".
      like: shape and dtype of the parameter, or of one leaf of it.
      sharding: where it goes.
    """
    device = next(iter(sharding.device_set))
    if device.platform != "tpu":
        return sharding
    dense = like.dtype.itemsize == 2 and any(part in path for part in _DENSE_WEIGHTS)
    # Of an array over several devices XLA:TPU takes its own tile, whatever is asked for.
    alone = len(sharding.device_set) == 1
    tall = dense and alone and device.device_kind in _TALL_TILE_KINDS
    layout = Layout(tuple(range(len(like.shape))), _TALL_TILE if tall else None)
    return Format(layout, sharding)


def placed(model: GptOss, mesh: Mesh) -> GptOss:
    """An abstract model whose leaves lie as `load` lays them, for a compiler without a device."""
    split = split_of(model.config, dict(mesh.shape))

    def place(path, like: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dotted = keystr(path, simple=True, separator=".")
        where = NamedSharding(mesh, parameter_spec(dotted, split))
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=format_of(dotted, like, where))

    return tree_map_with_path(place, model)
