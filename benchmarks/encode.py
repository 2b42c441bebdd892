"""Encoding a film now beside November's way, in one run, on this machine: python benchmarks/encode.py [--json]

now        one tower reads a film once; its disease queries and lung borders read what it saw (`Emrrg.see`)
and read   the same, with the findings that are selected from it and their tokens (`Emrrg.encode`)
November   the checkpoint before: the tower, the tower again on the mirrored film, and three convolutional stems beside it, each of which read
           the film as it is, mirrored, and without its border

Weights are random: they cost no time. Shapes are those of the preset `small`. Each repeat times every form once, one after the other, after a
warm-up; the numbers are medians.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.config import MODEL_PRESETS, ModelConfig, VisionConfig
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.language_model import prefers_bfloat16
from emrrg_core.model.vision_mamba import ConvolutionalStem, VisionMamba

STEMS, BORDER = (
    3,
    10 / 224,
)  # of November: stems beside the tower, and the share of the film that their third reading leaves out


class November(nn.Module):
    """What the checkpoint before did with a film (n, 3, s, s): tower tokens, the mirrored film's, and mean and maximum of each stem's patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.tower = VisionMamba(config)
        self.stems = nn.ModuleList(ConvolutionalStem(config) for _ in range(STEMS))

    def forward(self, films: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = films.shape[-1]
        edge = round(BORDER * size)
        inside = F.interpolate(films[..., edge : size - edge, edge : size - edge], size=(size, size), mode="bilinear")
        readings = []
        for film in (films, films.flip(-1), inside):
            patches = [stem(film) for stem in self.stems]
            readings.append(torch.stack([seen for p in patches for seen in (p.mean(1), p.amax(1))], dim=1))
        return self.tower(films), self.tower(films.flip(-1)), torch.stack(readings).mean(0)


def model_of(config: ModelConfig) -> Emrrg:
    """The whole model beside a language model of one small layer, which encoding does not use."""
    sizes = {
        "vocab_size": 8,
        "hidden_size": 576,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 9,
    }
    return Emrrg(config, LlamaForCausalLM(LlamaConfig(**sizes)), Tokens()).eval()


class Tokens:
    """Stands in for a tokenizer where no word is read: every text is token 2."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[2])


def medians(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each form, the median of `repeats` after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(1 + repeats):
        for name, form in forms.items():
            begun = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


@torch.inference_mode()
def measure(config: ModelConfig, films: int, repeats: int) -> dict[str, float]:
    """Milliseconds a film of each form, read so many at once, and how many times as fast as November's the two are now."""
    torch.manual_seed(0)
    model, before = model_of(config), November(config.vision).eval()
    size = config.vision.image_size
    images = torch.randn(films, 1, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=prefers_bfloat16()):
        seconds = medians(
            {
                "now": lambda: model.see(images),
                "and read": lambda: model.encode(images),
                "November": lambda: before(images[:, 0]),
            },
            repeats,
        )
    ms = {name: 1000 * value / films for name, value in seconds.items()}
    return {**ms, "ratio": ms["November"] / ms["now"], "ratio and read": ms["November"] / ms["and read"]}


def machine() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, nargs="+", default=[1, 32], help="read at once")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    if args.repeats < 5:
        parser.error("at least five repeats: a median of fewer says little")
    torch.set_num_threads(args.threads)
    rows = [{"films": films, **measure(MODEL_PRESETS["small"], films, args.repeats)} for films in args.films]
    about = {
        "machine": machine(),
        "threads": args.threads,
        "dtype": "bfloat16" if prefers_bfloat16() else "float32",
        "repeats": args.repeats,
    }
    if args.json:
        print(json.dumps({**about, "rows": rows}, indent=1))
        return
    print(
        f"{about['machine']}, {about['threads']} threads, {about['dtype']}; milliseconds a film, medians of {args.repeats}"
    )
    for row in rows:
        print(
            f"{row['films']:3d} at once: now {row['now']:.1f}, and read {row['and read']:.1f}, November {row['November']:.1f}: "
            f"{row['ratio']:.1f} times as fast, {row['ratio and read']:.1f} with what is read"
        )


if __name__ == "__main__":
    main()
