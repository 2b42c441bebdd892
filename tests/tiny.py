"""A model small enough to be trained inside the test suite, on phantoms, in about a minute on one core.

Everything that matters is the project's own: tower, hybrid decoder, training loop, decoding. Only the sizes are toys, and the language model,
which must be of some use before it is frozen, first reads the phantoms' reports for some seconds, without their films.

Besides, a film set of phantoms on disk and report texts of our own making, for whoever reads such files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emrrg_core.config import (
    AdapterConfig,
    DecodeConfig,
    HybridConfig,
    LowRankConfig,
    ModelConfig,
    PromptConfig,
    VisionConfig,
)
from emrrg_core.data.studies import ReportText, eight_bits, normalise
from emrrg_core.films.film import model_input
from emrrg_core.model.emrrg import IGNORED, Emrrg
from emrrg_core.model.generation import write
from emrrg_core.model.writing import Writing
from emrrg_core.report.draft import compose
from emrrg_core.text.labeler import LABELS, sentences
from tests.phantom import Phantom
from train.finetune import pad, tokens_of
from train.loop import Part, Run, train

Loss = Callable[[Part], tuple[torch.Tensor, dict[str, float]]]

SIZE = 32  # pixels; 8 × 8 patches, so that a lesion is a patch or a few
HEIGHT = WIDTH = 128  # of the phantoms
OFF = LowRankConfig(rank=0)
CONFIG = ModelConfig(
    vision=VisionConfig(image_size=SIZE, patch_size=4, d_model=48, depth=1, d_state=4, drop_path=0.0),
    adapters=AdapterConfig(x=OFF, in_proj=OFF),
    hybrid=HybridConfig(every_n=1, warmup_start=1.0),
    # in the prompt only the class token and the mean of the patches: the rest must be looked at
    prompt=PromptConfig(before="Human:", after="Report:", pooled_grid=1),
    language="tiny",
)
# Gates that learn as fast as the rest close again before there is anything worth seeing, and then nothing is ever learned.
RATES = {"visual_encoder": 5e-3, "llama_proj": 5e-3, "layer_norm": 5e-3, "kv_proj": 5e-3, "gate": 3e-4}
POSITIONS = 0.3  # spread of the position embeddings at the start: from 0.02, a minute is too short to tell places apart


def short_report(phantom: Phantom) -> tuple[str, str]:
    """The first sentence of the findings, which names lesion and side, and the impression."""
    start, end = sentences(phantom.findings)[0]
    return phantom.findings[start:end], phantom.impression


def statements(phantom: Phantom) -> tuple[list[str], list[str]]:
    """The short report as the training takes it: the sentences of Findings and Impression, one each."""
    findings, impression = short_report(phantom)
    return [findings], [impression]


def films(phantoms: Sequence[Phantom], size: int = SIZE) -> np.ndarray:
    """(n, size, size) uint8, as `data.FilmCache` keeps them."""
    return np.stack([eight_bits(model_input(p.pixels, size)) for p in phantoms])


def normal_reports() -> list[ReportText]:
    """Reports without a film, of our own making: four wordings of every place, the first of each the most frequent."""
    hearts = ["The heart is of normal size.", "Normal heart.", "Cardiac size is normal.", "The mediastinum is normal."]
    lungs = ["The lungs are clear.", "Clear lungs.", "Both lungs are clear.", "The lungs are well aerated."]
    pleura = ["No pleural effusion.", "No pneumothorax.", "No effusion is seen.", "There is no pneumothorax."]
    bones = ["The bones are intact.", "Bony structures are normal.", "Normal bones.", "The spine is normal."]
    impressions = ["Normal chest.", "No acute disease.", "No acute abnormality.", "No active disease."]
    none = dict.fromkeys(LABELS, 0)
    return [
        ReportText(f"{i}", " ".join((hearts[i], lungs[i], pleura[i], bones[i])), impressions[i], none, False)
        for i in range(4)
    ]


LABEL_OF = {"nodule": "Lung Lesion", "opacity": "Lung Opacity", "effusion": "Pleural Effusion"}


def film_set(folder: Path, rows: Sequence[tuple[Phantom, dict]]) -> Path:
    """A films.jsonl of phantoms with their labels, lung masks and boxes, and a reports.jsonl of normal reports beside it.

    rows: phantoms and what else their rows say; `split` is needed, `source` is "ours" unless it is said.
    """
    lines = []
    for number, (phantom, row) in enumerate(rows):
        phantom.save_png(folder / f"{number}.png")
        cv2.imwrite(str(folder / f"{number}-lungs.png"), phantom.lungs.astype(np.uint8) * 255)
        label = LABEL_OF[phantom.lesion] if phantom.lesion else "No Finding"
        known: dict = {"id": f"{number}", "source": "ours", "files": [f"{number}.png"], "labels": {label: 1}}
        boxes = [{"label": label, "xywh": list(phantom.box)}] if phantom.box else []
        lines.append(json.dumps(known | {"lung_mask": f"{number}-lungs.png", "boxes": boxes} | row))
    (folder / "films.jsonl").write_text("\n".join(lines))
    texts = [(r.findings, r.impression) for r in normal_reports()]
    texts += [(p.findings, p.impression) for p, row in rows if p.lesion and row["split"] == "train"]
    reports = [{"id": f"{i}", "split": "train", "findings": f, "impression": s} for i, (f, s) in enumerate(texts)]
    (folder / "reports.jsonl").write_text("\n".join(map(json.dumps, reports)))
    return folder / "films.jsonl"


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over these texts: nearly a token a word."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_language(texts: Sequence[str], *, steps: int, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama of three layers that has read the reports without the films: it can write one, of any lesion and side."""
    tokenizer = make_tokenizer([*texts, CONFIG.prompt.before, CONFIG.prompt.after])
    torch.manual_seed(seed)
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.1,  # 1 / √width: the usual 0.02 is for models ten times as wide
            attn_implementation="sdpa",
        )
    ).train()
    before, after = (
        tokenizer(t, add_special_tokens=False).input_ids for t in (CONFIG.prompt.before, CONFIG.prompt.after)
    )
    prompt = [tokenizer.bos_token_id, *before, *after]
    rows = [[*prompt, *tokenizer(t, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for t in texts]
    optimizer = torch.optim.AdamW(llm.parameters(), lr=3e-3, betas=(0.9, 0.95))
    rng = np.random.default_rng(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 20, 1.0) * (1 - step / steps)
        ids = pad([rows[i] for i in rng.integers(len(rows), size=32)], IGNORED, torch.long)
        logits = llm(input_ids=ids.clamp(min=0)[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED).backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return llm.eval(), tokenizer


def new_model(llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Emrrg:
    """Tower, projector and hybrid layers untrained, gates open."""
    torch.manual_seed(seed)
    model = Emrrg(CONFIG, llm, tokenizer)
    model.visual_encoder.requires_grad_(True)  # nobody has taught this tower to see: it learns along
    with torch.no_grad():
        torch.nn.init.normal_(model.visual_encoder.pos_embed, std=POSITIONS)
        for _, layer in model.hybrid.items():
            layer.gate_proj.bias.fill_(1.0)
    return model


def lesson(model: Emrrg, phantoms: Sequence[Phantom], *, batch: int, seed: int) -> Loss:
    """The loss of a step, for `train.loop.train`: some of these films under their own reports."""
    encoded = [tokens_of(model, *statements(p)) for p in phantoms]
    seen = films(phantoms)

    def loss_of(part: Part) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = np.random.default_rng([seed, part.step]).integers(len(phantoms), size=batch)
        images = torch.from_numpy(normalise(seen[chosen])).unsqueeze(1)
        ids = pad([encoded[i][0] for i in chosen], IGNORED, torch.long)
        weights = pad([encoded[i][1] for i in chosen], 0.0, torch.float32)
        images, ids, weights = (tensor.to(part.device) for tensor in (images, ids, weights))
        # at these sizes bfloat16 only costs, and not every machine has it
        with torch.autocast(part.device.type, enabled=False):
            return model(model.encode(images), ids, weights).total, {}

    return loss_of


def teach(phantoms: Sequence[Phantom], folder: Path, *, steps: int = 800, reading: int = 150, seed: int = 0) -> Emrrg:
    """Train on these films and their short reports; the model in evaluation mode."""
    llm, tokenizer = make_language([compose(*short_report(p)) for p in phantoms], steps=reading, seed=seed)
    model = new_model(llm, tokenizer, seed=seed)
    run = Run(steps=steps, batch=16, learning_rates=RATES, warmup=30, weight_decay=0.02, seed=seed, save_every=steps)
    train(model, run, lesson(model, phantoms, batch=run.batch, seed=seed), folder)
    return model.eval().cpu()  # it may have been trained on a GPU


@torch.inference_mode()
def drafts(model: Emrrg, seen: np.ndarray) -> list[Writing]:
    """A draft of each film (n, s, s) uint8."""
    visual = model.encode(torch.from_numpy(normalise(seen)).unsqueeze(1))
    return write(model, visual, DecodeConfig(max_new_tokens=60))
