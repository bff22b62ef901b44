"""The orders of the checkpoints <-> the orders in memory, on the host, a slice at a time.

`mxfp4.from_published` says the same in JAX; this is it in tiles that stay in a core's cache, into
a buffer that exists already. XLA:CPU's transpose of bytes takes three times as long, and a second
copy.
"""

import numpy as np

_LOW = np.uint64(0x0F0F_0F0F_0F0F_0F0F)
_FOUR = np.uint64(4)
_TILE = 192  # columns; with the rows of a tile they fit a core's second-level cache


def gates_first(interleaved: np.ndarray, out: np.ndarray) -> None:
    """[..., gate, up, gate, up] -> [..., gates, ups]."""
    half = out.shape[-1] // 2
    out[..., :half] = interleaved[..., 0::2]
    out[..., half:] = interleaved[..., 1::2]


def interleave(gates_first: np.ndarray) -> np.ndarray:
    """The inverse of `gates_first`, C-contiguous."""
    half = gates_first.shape[-1] // 2
    out = np.empty_like(gates_first)
    out[..., 0::2] = gates_first[..., :half]
    out[..., 1::2] = gates_first[..., half:]
    return out


def recode_blocks(published: np.ndarray, out: np.ndarray, *, interleaved: bool) -> None:
    """Published blocks, uint8 [E, N, K/32, 16] -> `MXFP4.blocks`, uint8 [E, K/2, N] in `out`.

    Both orders keep a group's 32 codes in 16 bytes. Published byte i holds elements 2i and 2i+1; in
    memory byte j holds j and j+16, so bytes 2i and 2i+1 there are made of published i and i+8.
    """
    for expert, result in zip(published, out, strict=True):
        for source, target in _halves(expert, result, interleaved):
            even, odd = _even_and_odd_rows(target)
            for at in range(0, len(source), _TILE):
                words = np.ascontiguousarray(source[at : at + _TILE]).view(np.uint64)
                first, second = words[..., 0], words[..., 1]
                low = (first & _LOW) | ((second & _LOW) << _FOUR)
                high = ((first >> _FOUR) & _LOW) | (second & ~_LOW)
                even[..., at : at + _TILE] = _bytes(low).transpose(1, 2, 0)
                odd[..., at : at + _TILE] = _bytes(high).transpose(1, 2, 0)


def publish_blocks(blocks: np.ndarray, *, interleaved: bool) -> np.ndarray:
    """The inverse of `recode_blocks`: uint8 [E, K/2, N] -> [E, N, K/32, 16]."""
    experts, half, n = blocks.shape
    published = np.empty((experts, n, half // 16, 16), np.uint8)
    for result, expert in zip(published, blocks, strict=True):
        for target, source in _halves(result, expert, interleaved):
            rows = _even_and_odd_rows(source)
            for at in range(0, len(target), _TILE):
                tiles = [x[..., at : at + _TILE].transpose(2, 0, 1) for x in rows]
                even, odd = (np.ascontiguousarray(tile).view(np.uint64) for tile in tiles)
                first = (even & _LOW) | ((odd & _LOW) << _FOUR)
                second = ((even >> _FOUR) & _LOW) | (odd & ~_LOW)
                words = np.concatenate([first, second], axis=-1)
                target[at : at + _TILE] = words.view(np.uint8)
    return published


def _even_and_odd_rows(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views [K/32, 8, N] of the even and the odd rows of [K/2, N]."""
    rows = columns.reshape(-1, 8, 2, columns.shape[-1])
    return rows[:, :, 0], rows[:, :, 1]


def _bytes(words: np.ndarray) -> np.ndarray:
    """uint64 [N, K/32] -> uint8 [N, K/32, 8]."""
    return words.view(np.uint8).reshape(*words.shape, 8)


def recode_scales(published: np.ndarray, out: np.ndarray, *, interleaved: bool) -> None:
    """Published scales, uint8 [E, N, K/32] -> `MXFP4.scales`, uint8 [E, K/32, N] in `out`."""
    for expert, result in zip(published, out, strict=True):
        for source, target in _halves(expert, result, interleaved):
            target[...] = source.T


def publish_scales(scales: np.ndarray, *, interleaved: bool) -> np.ndarray:
    """The inverse of `recode_scales`."""
    experts, groups, n = scales.shape
    published = np.empty((experts, n, groups), np.uint8)
    for result, expert in zip(published, scales, strict=True):
        for target, source in _halves(result, expert, interleaved):
            target[...] = source.T
    return published


def _halves(published: np.ndarray, memory: np.ndarray, interleaved: bool):
    """(rows of the published order, the columns in memory they are), gates and ups apart."""
    if not interleaved:
        return [(published, memory)]
    half = memory.shape[-1] // 2
    return [(published[0::2], memory[..., :half]), (published[1::2], memory[..., half:])]
