"""Tiny real models for every test: a Llama of four layers, a tokenizer trained on our own sentences, a tower of 16 patches."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# before torch is imported: the models are so small that threads only cost
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emrrg_core.config import (
    AdapterConfig,
    HybridConfig,
    LanguageLoraConfig,
    LowRankConfig,
    MemoryConfig,
    ModelConfig,
    PromptConfig,
    PromptTokens,
    QueryConfig,
    Stem,
    VisionConfig,
)
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.finding_tokens import NEVER
from emrrg_core.text.labeler import LABELS

SENTENCES = [
    "Findings: The heart is of normal size. The lungs are clear.",
    "Findings: There is a nodule in the right upper zone.\nImpression: Nodule, right.",
    "Impression: No acute disease. Effusion on the left, 2.5 cm, café.",
    "Human: <Img></Img> Generate a comprehensive and detailed diagnosis report for this chest xray image. \nAssistant:",
]
TINY = ModelConfig(
    vision=VisionConfig(image_size=64, patch_size=16, d_model=16, depth=2, d_state=4, drop_path=0.0),
    adapters=AdapterConfig(x=LowRankConfig(rank=2), in_proj=LowRankConfig(rank=2)),
    hybrid=HybridConfig(every_n=2),
    prompt=PromptConfig(before="Human: <Img>", after="</Img> Report. \nAssistant:", pooled_grid=2),
    language="tiny",
)
# as the shipped recipe: findings are read, and all of the film comes through the gates
READING = replace(TINY, queries=QueryConfig(depth=1, heads=2), prompt=replace(TINY.prompt, tokens=PromptTokens.NONE))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text can be written and some characters take several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def make_llm(tokenizer) -> Callable[..., LlamaForCausalLM]:
    """A frozen Llama with random weights, large enough that its words depend on what it reads."""

    def make(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        sizes = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.2,
            "attn_implementation": "sdpa",
        }
        return LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def build(make_llm, tokenizer) -> Callable[..., Emrrg]:
    """A whole tiny model in evaluation mode, as training would start it: `build(hybrid={"gate": ...}, lora=2, seed=1)`.

    queries: it reads findings, and no film stands in its prompt. stem: it reads them of a convolutional stem's patches too. told: the hybrid
    layers see finding tokens; False: the disease tokens. memory: an associative memory, its patterns all 0.
    """

    def make(
        *,
        seed: int = 0,
        hybrid: dict | None = None,
        prompt: dict | None = None,
        lora: int = 0,
        queries: bool = False,
        stem: bool = False,
        told: bool = True,
        memory: MemoryConfig | None = None,
    ) -> Emrrg:
        base = READING if queries or stem else TINY
        base = replace(base, queries=replace(base.queries, told=told), memory=memory or base.memory)
        if stem:
            vision = replace(base.vision, stem=Stem.CONVOLUTION, d_model=64)
            base = replace(base, vision=vision, queries=replace(base.queries, stem=True))
        config = replace(
            base,
            hybrid=replace(base.hybrid, **hybrid or {}),
            prompt=replace(base.prompt, **prompt or {}),
            language_lora=LanguageLoraConfig(rank=lora),
        )
        llm = make_llm(seed).requires_grad_(True)  # freezing it is the model's own task
        return Emrrg(config, llm, tokenizer).eval()

    return make


ZEROS = (".up.", ".lora_B.", ".stem_mean", ".stem_max", ".even")  # parameters that start at 0


@pytest.fixture(scope="session")
def open_gates() -> Callable[[Emrrg], Emrrg]:
    """Opens every gate wide and moves every zero-initialised weight, so that nothing hides behind a zero."""

    def opened(model: Emrrg, seed: int = 7) -> Emrrg:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("warm_up_gate"):
                    parameter.fill_(1.5)
                elif (name.startswith("hybrid.") and "gate_proj" in name) or any(part in name for part in ZEROS):
                    parameter.normal_(0.0, 0.5, generator=generator)
        return model

    return opened


@pytest.fixture
def tiny(build, open_gates) -> Emrrg:
    """A tiny model with open gates, in evaluation mode, nothing left to train."""
    return open_gates(build()).requires_grad_(False)


@pytest.fixture
def reading(build, open_gates) -> Emrrg:
    """As `tiny`, and it reads findings: of every film another set, each of them sure."""
    return surely(open_gates(build(queries=True)).requires_grad_(False))


def surely(model: Emrrg) -> Emrrg:
    """Probabilities are spread, for a reader that has not learned is sure of nothing; fractures are not assessed."""
    model.calibration.curve[:] = torch.tensor([20.0, 0.0, 0.0])
    model.calibration.thresholds[:] = torch.tensor([0.5, 0.9, 0.3])
    model.calibration.thresholds[LABELS.index("Fracture")] = torch.tensor([NEVER, NEVER, 0.0])
    return model


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Three studies of one view each: (3, 1, 3, 64, 64)."""
    return torch.randn(3, 1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory, make_llm, tokenizer) -> Path:
    """The tiny language model as a folder that any loader of Llama-family models reads."""
    folder = tmp_path_factory.mktemp("language") / "tiny-llama"
    make_llm(seed=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, make_llm, tokenizer, open_gates, language_folder) -> Path:
    """A saved tiny model, untrained, that names `language_folder` as its language model."""
    torch.manual_seed(5)
    config = replace(TINY, language=str(language_folder))
    model = open_gates(Emrrg(config, make_llm(seed=2), tokenizer))
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return checkpoints.save(model, folder, language={"name": "tiny-llama"}, training={"steps": 0})


@pytest.fixture(scope="session")
def reading_checkpoint(tmp_path_factory, make_llm, tokenizer, open_gates, language_folder) -> Path:
    """As `checkpoint`, of a model that reads findings."""
    torch.manual_seed(5)
    model = surely(open_gates(Emrrg(replace(READING, language=str(language_folder)), make_llm(seed=2), tokenizer)))
    folder = tmp_path_factory.mktemp("checkpoints") / "reading"
    return checkpoints.save(model, folder, language={"name": "tiny-llama"}, training={"steps": 0})
