"""Makes logits.npz: transformers' float64 logits of the networks in `sample`.

    python tests/model/goldens/make_goldens.py

Made with transformers 5.23.0 and torch 2.13.0. The weights are not stored: `sample` makes them
from NumPy's PCG64 streams, and their checksum is stored beside the logits, so that a change of
either shows as what it is.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracle
import sample

FILE = Path(__file__).with_name("logits.npz")
SEED = 11
LENGTH = 300
KEPT = (0, 1, 6, 15, 16, 31, 32, 64, 127, 128, 129, 200, 299)


def main() -> None:
    arrays = {}
    for name in ("narrow", "one_kv_head", "no_groups"):
        config = sample.SHAPES[name]
        weights = sample.make_weights(config, SEED)
        tokens = sample.prompt(config, LENGTH, SEED)
        run = oracle.run(oracle.hf_model(config, weights, "float64"), tokens)
        arrays[f"{name}.logits"] = run.logits[0, list(KEPT)]
        arrays[f"{name}.tokens"] = tokens
        arrays[f"{name}.checksum"] = np.array(sample.checksum(weights))
    np.savez_compressed(FILE, kept=np.array(KEPT), seed=np.array(SEED), **arrays)


if __name__ == "__main__":
    main()
