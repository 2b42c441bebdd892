#!/usr/bin/env bash
# The shipped checkpoint in one command:
#     bash train/small.sh FOLDER
# FOLDER has films.jsonl, films_more.jsonl and radiologists.jsonl. What is done is not done again; a stage that was stopped goes on where it was.
# FROM_SCRATCH=1 learns the stem without the checkpoint of November 2026 (train.contrast: for a GPU).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 1 ] || { echo "Name the folder with films.jsonl, films_more.jsonl and radiologists.jsonl: bash train/small.sh FOLDER" >&2; exit 2; }
data=$(cd "$1" && pwd)
for file in films.jsonl films_more.jsonl radiologists.jsonl; do
    [ -f "$data/$file" ] || { echo "$data has no $file." >&2; exit 2; }
done
runs=${RUNS:-runs}
mkdir -p "$runs"
python=${PYTHON:-.venv/bin/python}
recipe=train/recipes/small.toml
films=(--films "$data/films.jsonl" "$data/films_more.jsonl" --cache "$runs/cache")
export OMP_WAIT_POLICY=passive

stage() { # name, file that is there when it is done, command…
    local name=$1 result=$2
    shift 2
    if [ -e "$result" ]; then
        echo "$name: there already ($result)"
        return
    fi
    local begun=$SECONDS
    echo "$name: $*"
    "$@"
    echo "$name: $(((SECONDS - begun) / 60)) minutes"
}

finish() { # marks a stage of training as done: its folder is there from its first checkpoint on
    "$@"
    touch "$mark"
}

teacher=(--teacher "$runs/teacher")
language=(--language "$runs/november.safetensors")
if [ -n "${FROM_SCRATCH:-}" ]; then
    mark=$runs/contrast/done
    stage contrast "$mark" finish "$python" -m train.contrast --recipe $recipe "${films[@]}" --out "$runs/contrast"
    start=$runs/contrast teacher=() language=()
else
    if [ ! -e "$runs/november.safetensors" ]; then
        git show 0ae5197:assets/checkpoints/small/model.safetensors > "$runs/november.part"
        mv "$runs/november.part" "$runs/november.safetensors"
    fi
    mark=$runs/teacher/done
    stage teacher "$mark" finish "$python" -m train.teacher --weights "$runs/november.safetensors" "${films[@]}" --out "$runs/teacher"
    start=$runs/teacher
fi
doctors=(--radiologists "$data/radiologists.jsonl")
mark=$runs/tower/done
stage tower "$mark" finish "$python" -m train.tower --recipe $recipe "${films[@]}" "${doctors[@]}" "${teacher[@]}" --start "$start" --out "$runs/tower"
mark=$runs/finetune/done
stage finetune "$mark" finish "$python" -m train.finetune --recipe $recipe "${films[@]}" "${doctors[@]}" "${teacher[@]}" --start "$runs/tower" \
    "${language[@]}" --out "$runs/finetune"
mark=$runs/heads/done
stage heads "$mark" finish "$python" -m train.finetune --recipe $recipe --section heads --begin "$runs/finetune" "${films[@]}" "${doctors[@]}" \
    "${teacher[@]}" --start "$runs/tower" --out "$runs/heads"
mark=$runs/tell/done
stage tell "$mark" finish "$python" -m train.finetune --recipe $recipe --section tell --begin "$runs/heads/checkpoint" "${films[@]}" "${doctors[@]}" \
    "${teacher[@]}" --start "$runs/tower" --out "$runs/tell"
stage calibrate "$runs/small" "$python" -m train.calibrate --checkpoint "$runs/tell/checkpoint" "${films[@]}" "${doctors[@]}" --out "$runs/small"
stage "detector of chest films" "$runs/small/looks.safetensors" "$python" -m train.film_check --checkpoint "$runs/small" --films "$data/films.jsonl" \
    --cache "$runs/cache"
stage phrasebook "$runs/small/phrases.json" "$python" -m train.phrases --checkpoint "$runs/small" --films "$data/films.jsonl"
prior=("$python" -m train.prior --checkpoint "$runs/small" --films "$data/films.jsonl" --cache "$runs/cache" --out "$runs/prior" --pairs 1600)
mark=$runs/prior/done
stage "prior film" "$mark" finish "${prior[@]}"
mark=$runs/prior/done-more
stage "prior film, more" "$mark" finish "${prior[@]}" --steps 200 --begin "$runs/prior/words"
stage evaluate "$runs/small.json" bash -c '"$1" -m train.evaluate --checkpoint "$2/small" --films "$3/films.jsonl" "$3/films_more.jsonl" \
    --radiologists "$3/radiologists.jsonl" --split val --json > "$2/small.part" && mv "$2/small.part" "$2/small.json"' _ "$python" "$runs" "$data"
