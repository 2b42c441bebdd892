"""Stage 2: teaches the tower, by contrast, which report belongs to which film (docs/method.md 2.3).

    python -m train.align --recipe RECIPE.toml --films FILMS.jsonl --reports REPORTS.jsonl --start runs/pretrain --out runs/align

`--start` is a folder with a tower (of train.pretrain, train.tower or python -m emrrg_core convert). Writes tower.safetensors and config.json, from
which train.finetune starts. A film's feature is the mean of all tower tokens over its views. A text's feature comes from a local encoder:
`language` takes the mean states of a frozen language model (each text is read once), `encoder` trains an encoder such as Bio_ClinicalBERT along and
takes its state at the last real token, as published.

A film without its own report gets a report text that agrees with its labels. If films of a batch share a text, it counts as right for all of them;
the published loss would push them apart.
"""

import argparse
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emrrg_core.config import Settings, VisionConfig
from emrrg_core.data.studies import FilmCache, Matcher, Study, augment, development, read_reports, read_studies
from emrrg_core.errors import CheckpointError, ConfigError, LanguageModelError
from emrrg_core.model.convert import load_tower, save_tower
from emrrg_core.model.language_model import load_language_model, prefers_bfloat16
from emrrg_core.model.vision_mamba import VisionMamba
from emrrg_core.report.draft import compose
from train.finetune import own_report, stack
from train.loop import Part, apart, train
from train.tower import Sampler

HELD_OUT = 128  # pairs at most on which retrieval is measured


@dataclass(frozen=True, kw_only=True)
class Alignment(Settings):
    """What a recipe's [align] says beside the loop's settings."""

    width: int = 2048  # of the shared space
    views: int = 1  # films of a study at most
    language: str = ""  # text by the mean states of this frozen language model: a preset or a folder
    encoder: str = ""  # or by this encoder's folder, trained along
    text_tokens: int = 128  # a text is cut after as many

    def __post_init__(self) -> None:
        if bool(self.language) == bool(self.encoder):
            raise ConfigError("The text side of [align] is either `language` or `encoder`: name one of them.")


class FrozenText(nn.Module):
    """Texts to the mean of a frozen language model's last hidden states; every text is read once."""

    def __init__(self, source: str, tokens: int) -> None:
        super().__init__()
        language = load_language_model(source, dtype=torch.bfloat16 if prefers_bfloat16() else torch.float32)
        self.width: int = language.model.config.hidden_size
        self._tokens = tokens
        self._read: dict[str, Tensor] = {}
        self._language = (language,)  # in a tuple: frozen weights of others are no part of what is trained or saved

    def forward(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """(n, width) float32."""
        (language,) = self._language
        for text in dict.fromkeys(texts):
            if text not in self._read:
                ids = language.tokenizer(text, return_tensors="pt", truncation=True, max_length=self._tokens).input_ids
                with torch.inference_mode():
                    states = language.model.get_decoder()(input_ids=ids).last_hidden_state
                self._read[text] = states[0].float().mean(0).clone()
        return torch.stack([self._read[text] for text in texts]).to(device)


class TrainedText(nn.Module):
    """Texts to an encoder's last hidden state at their last real token, as published for Bio_ClinicalBERT.

    Raises LanguageModelError when the folder holds no encoder that transformers can load.
    """

    def __init__(self, folder: str, tokens: int) -> None:
        super().__init__()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise LanguageModelError(
                f"{folder} holds no text encoder: name the folder of one, such as a copy of Bio_ClinicalBERT."
            ) from error
        self.width: int = self.encoder.config.hidden_size
        self._tokens = tokens

    def forward(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """(n, width)."""
        batch = self._tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self._tokens
        ).to(device)
        states = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        last = batch.attention_mask.sum(1) - 1
        return states[torch.arange(len(last), device=device), last]


class Aligner(nn.Module):
    """Tower and text side in one space (docs/method.md 2.3): vision_proj d -> width, text_proj -> width, logit_scale ln(1 / 0.07) at the start."""

    def __init__(self, tower: VisionMamba, text: FrozenText | TrainedText, width: int) -> None:
        super().__init__()
        self.visual_encoder, self.text = tower, text
        self.vision_proj = nn.Linear(tower.config.d_model, width)
        self.text_proj = nn.Linear(text.width, width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def see(self, images: Tensor, views: Tensor) -> Tensor:
        """(b, w, 3, s, s) and (b, w) bool to normalised features (b, width): tokens averaged, the class token too, then over views."""
        tokens = self.visual_encoder(images[views]).float().mean(1)
        study = torch.arange(len(images), device=images.device).unsqueeze(1).expand_as(views)[views]
        total = tokens.new_zeros(len(images), tokens.shape[1]).index_add(0, study, tokens)
        return F.normalize(self.vision_proj(total / views.sum(1, keepdim=True)).float(), dim=-1)

    def read(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Normalised features (n, width)."""
        return F.normalize(self.text_proj(self.text(texts, device)).float(), dim=-1)

    def loss(self, seen: Tensor, read: Tensor, texts: Sequence[str]) -> Tensor:
        """Symmetric cross-entropy over the batch; the mass of a row is shared by all pairs with the same text."""
        logits = self.logit_scale.exp() * seen @ read.T
        same = torch.tensor([[float(a == b) for b in texts] for a in texts], device=logits.device)
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def text_of(study: Study, matcher: Matcher, rng: np.random.Generator) -> str:
    """A film's own report, or one whose findings agree."""
    if own_report(study):
        return compose(study.findings, study.impression)
    texts = matcher.texts(study)
    return compose(*texts[rng.integers(len(texts))])


@torch.inference_mode()
def retrieval(model: Aligner, studies: Sequence[Study], texts: Sequence[str], cache: FilmCache, views: int) -> float:
    """How often the nearest text of a film is its own (or equal to it): R@1 over these pairs."""
    training, device = model.training, model.logit_scale.device
    model.eval()
    rows = []
    for i in range(0, len(studies), 16):
        images, shown = stack([[f.astype(np.float32) for f in cache.views(s)[:views]] for s in studies[i : i + 16]])
        rows.append(model.see(images.to(device), shown.to(device)))
    nearest = (torch.cat(rows) @ model.read(texts, device).T).argmax(1).tolist()
    model.train(training)
    return float(np.mean([texts[j] == text for j, text in zip(nearest, texts, strict=True)]))


def start_tower(folder: Path | None, vision: VisionConfig) -> VisionMamba:
    """The tower of an earlier stage, or a fresh one. vision: its size, where the folder does not say it: train.tower's does not.

    Raises CheckpointError when the folder holds no tower, or one of another size.
    """
    if folder is None:
        return VisionMamba(vision)
    path = folder / "eye.safetensors"
    if not path.is_file():
        return load_tower(folder)
    part, tower = "visual_encoder.", VisionMamba(vision)
    try:
        tower.load_state_dict({n.removeprefix(part): v for n, v in load_file(path).items() if n.startswith(part)})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no tower of this recipe's size: {error}") from error
    return tower


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--reports", type=Path, help="report texts for films without their own")
    parser.add_argument("--start", type=Path, help="folder with the tower of an earlier stage")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode the films on the first run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = tomllib.loads(args.recipe.read_text())
    settings, run = apart(Alignment, recipe["align"])
    tower = start_tower(args.start, VisionConfig.from_dict(recipe.get("model", {}).get("vision", {})))
    vision: VisionConfig = tower.config

    studies = read_studies(args.films)
    cache = FilmCache(studies, args.cache, vision.image_size, workers=args.workers)
    matcher = Matcher(read_reports(args.reports, "train") if args.reports else [])
    usable = [
        s
        for s in studies
        if s.split == "train"
        and s.source in run.sources
        and (own_report(s) or (s.abnormal is not None and matcher.texts(s)))
    ]
    learn, develop = development(usable)
    sampler = Sampler(learn, run.sources, run.seed)
    torch.manual_seed(run.seed)
    text = (
        FrozenText(settings.language, settings.text_tokens)
        if settings.language
        else TrainedText(settings.encoder, settings.text_tokens)
    )
    model = Aligner(tower, text, settings.width)
    held = develop[:: -(-len(develop) // HELD_OUT) or 1]
    rng = np.random.default_rng(run.seed)
    held_texts = [text_of(s, matcher, rng) for s in held]
    print(
        f"{len(learn)} films, {sum(own_report(s) for s in learn)} of them with their own report; {len(held)} held out",
        flush=True,
    )

    def loss_of(part: Part) -> tuple[Tensor, dict[str, float]]:
        chosen, rng = sampler.step(part.step, run.batch)
        drawn = [
            (text_of(s, matcher, rng), [augment(film, rng)[0] for film in cache.views(s)[: settings.views]])
            for s in chosen
        ]
        # contrast is among the films of this part, as published: nothing is gathered from other processes
        mine = part.of(drawn)
        images, views = stack([films for _, films in mine])
        texts = [text for text, _ in mine]
        loss = model.loss(
            model.see(images.to(part.device), views.to(part.device)), model.read(texts, part.device), texts
        )
        return loss / part.count, {"scale": model.logit_scale.exp().item()}

    def after(step: int) -> dict[str, float]:
        notes = {"stage": "aligned", "recipe": recipe["align"], "step": step}
        save_tower(args.out, {name: value.cpu() for name, value in tower.state_dict().items()}, vision, notes)
        found = retrieval(model, held, held_texts, cache, settings.views) if held else float("nan")
        print(f"step {step}: the right text is the nearest for {found:.3f} of {len(held)} held-out films", flush=True)
        return {"retrieval": found}

    train(model, run, loss_of, args.out, after=after)


if __name__ == "__main__":
    main()
