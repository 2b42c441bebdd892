"""The attention of the next token of many drafts beside the usual forms, in one run, on this machine: python benchmarks/attention.py [--json]

own    self-attention as `hybrid_attention` groups it, against transformers' own function for the same call (SDPA with `enable_gqa`)
film   cross-attention to the film as `hybrid_attention` has it, against keys and values copied for every head that shares them

Shapes are those of the shipped checkpoint: 9 heads that share 3 keys of 64 numbers, 197 visual tokens and 12 of findings; 128 sequences
are what `train.evaluate` writes at once. Each repeat times every form once, one after the other; the numbers are medians.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.model.hybrid_decoder import grouped_film, grouped_self
from emrrg_core.model.language_model import prefers_bfloat16

HEADS, SHARED, WIDTH, VISUAL = 9, 3, 64, 197 + 12
MODULE = SimpleNamespace(num_key_value_groups=HEADS // SHARED, is_causal=True, training=False)


def copied_film(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Keys and values (b, SHARED, v, k) copied for each of the heads of the query (b, HEADS, 1, k)."""
    keys, values = keys.repeat_interleave(HEADS // SHARED, 1), values.repeat_interleave(HEADS // SHARED, 1)
    weights = ((query @ keys.transpose(-1, -2)).float() * WIDTH**-0.5).softmax(-1)
    return weights.to(values.dtype) @ values


def forms(sequences: int, positions: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    made = torch.Generator().manual_seed(0)
    query, key, value, keys, values = (
        torch.randn(sequences, heads, length, WIDTH, generator=made).to(dtype)
        for heads, length in ((HEADS, 1), (SHARED, positions), (SHARED, positions), (SHARED, VISUAL), (SHARED, VISUAL))
    )
    return {
        "own, grouped": lambda: grouped_self(query, key, value),
        "own, transformers": lambda: sdpa_attention_forward(MODULE, query, key, value, None)[0].transpose(1, 2),
        "film, grouped": lambda: grouped_film(query, keys, values, WIDTH**-0.5)[0],
        "film, copied": lambda: copied_film(query, keys, values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--positions", type=int, default=90, help="cached: prompt and text so far")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    dtype = torch.bfloat16 if prefers_bfloat16() else torch.float32
    rows = []
    for sequences in args.sequences:
        timed = forms(sequences, args.positions, dtype)
        for first, second in (("own, grouped", "own, transformers"), ("film, grouped", "film, copied")):
            torch.testing.assert_close(timed[first]().float(), timed[second]().float(), rtol=0.05, atol=0.02)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(args.repeats):
            for name, form in timed.items():
                begun = time.perf_counter()
                form()
                seconds[name].append(time.perf_counter() - begun)
        ms = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
        rows.append(
            {"sequences": sequences, "ms": ms}
            | {"own": ms["own, transformers"] / ms["own, grouped"], "film": ms["film, copied"] / ms["film, grouped"]}
        )
    if args.json:
        print(json.dumps({"dtype": str(dtype), "threads": torch.get_num_threads(), "rows": rows}, indent=1))
        return
    print(f"{dtype}, {torch.get_num_threads()} threads, {args.positions} positions; times as fast, and milliseconds")
    for row in rows:
        told = ", ".join(f"{name} {value:.2f}" for name, value in row["ms"].items())
        print(f"{row['sequences']:4d} sequences: own {row['own']:.1f}, film {row['film']:.1f} ({told})")


if __name__ == "__main__":
    main()
