"""A package with the names, calls and caches of radeval 2.2.1 as its source has them, and rules of our own in place of models."""

from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = """
import os, socket
try:
    reached = bool(socket.getaddrinfo("localhost", 80))  # radeval has nltk fetch a file here
except OSError:
    reached = False
class RadEval:
    def __init__(self, metrics=None, openai_api_key=None, gemini_api_key=None, per_sample=False, detailed=False,
                 show_progress=True, cache_dir=None):
        assert not reached and os.environ["HF_HUB_OFFLINE"] == "1" and per_sample and not show_progress
        self.metrics = metrics
    def __call__(self, refs, hyps):
        assert isinstance(refs, list) and isinstance(hyps, list) and all(refs) and all(hyps)
        print("chatter")
        os.write(1, b"chatter of a library in C")
        if self.metrics == ["radgraph"]:
            import RadEval.metrics  # as its own part for RadGraph does
            if "unreadable" in refs:
                raise ValueError("no such words")
            same = [float(r == h) for r, h in zip(refs, hyps)]
            return {"radgraph_simple": [0.5] * len(refs), "radgraph_partial": same, "radgraph_complete": [0.5] * len(refs)}
        assert self.metrics == ["ratescore"]
        return {"ratescore": [0.9 if r == h else 0.1 for r, h in zip(refs, hyps) if r != "unreadable"]}
"""
CHEXBERT = """
class F1CheXbert:
    TARGET_NAMES = ["Cardiomegaly", "Fracture", "No Finding"]
    def __init__(self, *, refs_filename=None, hyps_filename=None, device="cuda", batch_size=64):
        assert device == "cpu"
    def get_labels(self, reports, mode="rrg", on_batch_done=None):
        return [["large" in text, "effusion" in text, 0] for text in reports]
"""
APPDIRS = """
def user_cache_dir(appname=None):
    return FOLDER + "/" + appname
"""


@dataclass(frozen=True)
class StandIn:
    """Where it lies."""

    folder: Path

    def file(self, name: str) -> Path:
        """A file of its caches."""
        (found,) = self.folder.rglob(name)
        return found

    def version(self, version: str) -> None:
        """Pretend to be another release."""
        info = self.folder / "package" / "radeval.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: radeval\nVersion: {version}\n")


def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Put it before everything that `sys.executable` imports, with every file that it wants in its caches."""
    package, cache, hub = folder / "package", folder / "cache", folder / "hub"
    chexbert = package / "radeval" / "metrics" / "f1chexbert"
    chexbert.mkdir(parents=True)
    (package / "radeval" / "__init__.py").write_text(PACKAGE)
    (package / "radeval" / "metrics" / "__init__.py").touch()
    (chexbert / "__init__.py").write_text(CHEXBERT)
    (package / "appdirs.py").write_text(APPDIRS.replace("FOLDER", repr(str(cache))))
    # torch takes seconds to import, and only whether it sees a GPU is asked
    (package / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")
    for root, repository, name in (
        (cache / "chexbert", "StanfordAIMI/RRG_scorers", "chexbert.pth"),
        (cache / "radgraph" / "0.1.18", "StanfordAIMI/RRG_scorers", "radgraph-xl.tar.gz"),
        (hub, "bert-base-uncased", "config.json"),
        (hub, "Angelakeke/RaTE-NER-Deberta", "config.json"),
        (hub, "FremyCompany/BioLORD-2023-C", "config.json"),
    ):
        kept = root / f"models--{repository.replace('/', '--')}"
        (kept / "refs").mkdir(parents=True)
        (kept / "refs" / "main").write_text("abc")
        (kept / "snapshots" / "abc").mkdir(parents=True)
        (kept / "snapshots" / "abc" / name).touch()
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    stand_in = StandIn(folder)
    stand_in.version("2.2.1")
    return stand_in
