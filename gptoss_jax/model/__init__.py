"""The network: gpt-oss as Flax NNX modules.

The dimension key. Arrays carry these letters as a suffix (`x_BTD`) and einsum strings use them; a
lower-case letter is the per-device size inside `shard_map`.

    B batch             T query tokens      S key tokens        D hidden width
    N query heads       K key/value heads   G queries per key/value head (N / K)
    H head_dim          A attention width (N * H)               C key/value width (K * H)
    E experts           X active experts    F expert width      V vocabulary
    R rows              L layers            W sliding window
    P pages             J pages of a sequence                   Q T * G
"""
