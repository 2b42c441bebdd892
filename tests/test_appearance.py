"""Appearance follows the tower as it is: every component parts the films that it is fitted to in halves."""

from dataclasses import replace

import pytest
import torch

from emrrg_core.config import SignsConfig
from emrrg_core.data import FilmCache, Study, normalise, read_studies
from emrrg_core.model import Emrrg
from tests import tiny
from tests.conftest import TINY
from tests.phantom import make_phantom
from train.appearance import evenly, fit_appearance

COMPONENTS = 3


def test_a_fit_parts_the_films_in_halves_also_after_the_tower_has_moved(make_llm, tokenizer, tmp_path):
    kinds = (None, "nodule", "opacity")
    rows = [
        (make_phantom(i, height=128, width=128, lesion=kinds[i % 3]), {"split": "train", "source": "kermany"})
        for i in range(24)
    ]
    studies = read_studies(tiny.film_set(tmp_path, rows))
    cache = FilmCache(studies, tmp_path / "cache", 64)
    config = replace(TINY, signs=SignsConfig(tokens=2, appearance=COMPONENTS))
    model = Emrrg(config, make_llm(), tokenizer)
    films = torch.stack([torch.from_numpy(normalise(cache[s])) for s in studies]).unsqueeze(1)

    @torch.no_grad()
    def logits() -> torch.Tensor:
        return model.read_signs(model.see(films)).appearance

    noise = torch.Generator().manual_seed(0)
    fit_appearance(model, studies, cache)
    assert not model.training
    for _ in range(2):
        read = logits()
        assert ((read > 0).sum(0) - 12).abs().max() <= 1
        torch.testing.assert_close(read.std(0), torch.full((COMPONENTS,), 4.0), rtol=0.1, atol=0.1)
        with torch.no_grad():
            for parameter in model.visual_encoder.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
        moved = logits()
        assert ((moved > 0).sum(0) - 12).abs().max() > 1  # or there would be nothing to fit again
        fit_appearance(model, studies, cache)


@pytest.mark.parametrize(("count", "each"), [(8, 2), (9, 2), (100, 5)])
def test_films_are_drawn_evenly_from_sources_and_kinds(count, each):
    studies = [
        Study(f"{source}{kind}{i}", source, "train", str(i), (), {"No Finding": kind}, None, "", "")
        for source in "ab"
        for kind in (0, 1)
        for i in range(5)
    ]
    chosen = evenly(studies, {"a": 0.9, "b": 0.1}, count)
    assert len({s.id for s in chosen}) == len(chosen) == 4 * each
    assert sum(s.source == "a" for s in chosen) == sum(s.abnormal is True for s in chosen) == 2 * each
