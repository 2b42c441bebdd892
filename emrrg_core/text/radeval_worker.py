"""CheXbert, RadGraph and RaTEScore by RadEval 2, offline: the program that `emrrg_core.text.metrics.rate` runs.

    stdin    {"references": [text, …], "drafts": [text, …]}
    stdout   {"version": RadEval's, "chexbert": {"names", "references", "drafts"}, "radgraph": [score, …], "ratescore": [score, …]}

The interpreter that has RadEval may be another one than ours, with other packages: nothing of ours is imported here. What cannot be computed
is {"reason": …} in its place. Only weights that are on disk are used; none is fetched. Written against the source of radeval 2.2.1.
"""

import importlib.metadata
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

Texts = list[str]
HELP = "docs/training.md says how to get it"
# rater → what it loads first: hub repository, file, and where RadEval keeps it below the user's cache folder ("": Hugging Face's own cache)
NEEDED = {
    "chexbert": (("StanfordAIMI/RRG_scorers", "chexbert.pth", "chexbert"), ("bert-base-uncased", "config.json", "")),
    "radgraph": (("StanfordAIMI/RRG_scorers", "radgraph-xl.tar.gz", "radgraph/0.1.18"),),
    "ratescore": (
        ("Angelakeke/RaTE-NER-Deberta", "config.json", ""),
        ("FremyCompany/BioLORD-2023-C", "config.json", ""),
    ),
}


def chexbert(references: Texts, drafts: Texts) -> dict[str, Any]:
    """CheXbert's 14 labels of every text, 1 for stated or uncertain: labels of each study, where RadEval's F1 is of all of them."""
    import torch
    from radeval.metrics.f1chexbert import F1CheXbert

    model = F1CheXbert(device="cuda" if torch.cuda.is_available() else "cpu")  # RadEval's own call insists on a GPU
    return {
        "names": list(model.TARGET_NAMES),
        "references": model.get_labels(references),
        "drafts": model.get_labels(drafts),
    }


def radgraph(references: Texts, drafts: Texts) -> list[float]:
    """RadGraph-XL F1 of every pair, partial: entities must agree, and whether they have a relation."""
    import radeval

    # its part for RadGraph imports by the package's older name, which a file system that tells case apart does not find (RadEval issue 27)
    sys.modules.setdefault("RadEval", radeval)
    return _by_radeval("radgraph", "radgraph_partial", references, drafts)


def ratescore(references: Texts, drafts: Texts) -> list[float]:
    """RaTEScore of every pair; 0.5 by its own rule where it finds no entity in one of the two."""
    return _by_radeval("ratescore", "ratescore", references, drafts)


def _by_radeval(metric: str, key: str, references: Texts, drafts: Texts) -> list[float]:
    from radeval import RadEval

    score = RadEval(metrics=[metric], per_sample=True, show_progress=False)
    return [float(value) for value in score(refs=references, hyps=drafts)[key]]


def missing(rater: str) -> list[str]:
    """The files of NEEDED that are not on disk, as "repository file"."""
    from appdirs import user_cache_dir
    from huggingface_hub import try_to_load_from_cache

    absent = []
    for repository, file, folder in NEEDED[rater]:
        kept = Path(user_cache_dir(folder.split("/")[0]), *folder.split("/")[1:]) if folder else None
        unpacked = kept is not None and (kept / file.removesuffix(".tar.gz") / "weights.th").is_file()
        if not unpacked and not isinstance(try_to_load_from_cache(repository, file, cache_dir=kept), str):
            absent.append(f"{repository} {file}")
    return absent


def main() -> None:
    # huggingface_hub and transformers read these when they are imported
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    socket.getaddrinfo = _offline  # RadEval has nltk fetch a file when it is imported
    asked = json.load(sys.stdin)
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not the answer
    with os.fdopen(answer, "w", encoding="utf-8") as file:
        json.dump(rated(asked["references"], asked["drafts"]), file)


def _offline(*_: object, **__: object) -> NoReturn:
    raise socket.gaierror(socket.EAI_AGAIN, "kept offline")


def rated(references: Texts, drafts: Texts) -> dict[str, Any]:
    """The answer, as above."""
    raters: dict[str, Callable[[Texts, Texts], Any]] = {
        "chexbert": chexbert,
        "radgraph": radgraph,
        "ratescore": ratescore,
    }
    try:
        version = importlib.metadata.version("radeval")
    except importlib.metadata.PackageNotFoundError:
        return {"version": None} | {name: {"reason": f"RadEval is not installed; {HELP}"} for name in raters}
    if int(version.split(".")[0]) < 2:
        too_old = f"RadEval {version} is too old, 2 is the first that fits; {HELP}"
        return {"version": version} | {name: {"reason": too_old} for name in raters}
    # RaTEScore leaves out a text without any sentence, and then pairs all that follow wrongly
    references, drafts = (
        [text if len(text.strip()) > 2 else "None" for text in texts] for texts in (references, drafts)
    )
    result: dict[str, Any] = {"version": version}
    for name, rater in raters.items():
        try:
            if absent := missing(name):
                result[name] = {"reason": f"weights not on disk: {', '.join(absent)}; {HELP}"}
            else:
                result[name] = rater(references, drafts)
        except Exception as error:  # whatever one of them says, the others may go on
            said = " ".join(f"{type(error).__name__}: {error}".split()).replace(str(Path.home()), "~")
            result[name] = {"reason": f"RadEval failed: {said[:300]}"}
    return result


if __name__ == "__main__":
    main()
