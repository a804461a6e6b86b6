#!/usr/bin/env bash
# Makes the samples of this folder: bash make.sh, at the commit that README.md names.
set -euo pipefail
cd "$(dirname "$0")"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 DO_NOT_TRACK=1
r1lab=(python -m r1lab)

rm -rf base run evaluation pipeline continued.jsonl
python make_base.py
mv pretrained/model base
rm -r pretrained base/README.md base/card.json

"${r1lab[@]}" train train.yaml
"${r1lab[@]}" eval run --num 8 --k 2 --greedy --seed 5 --max-tokens 32 \
    --engine transformers --dtype float32 --out evaluation
"${r1lab[@]}" pipeline pipeline.yaml --jobs 1

# What the third step gives, which a resumed run is compared with.
copy=$(mktemp -d)
cp -r base run "$copy"
(cd "$copy" && "${r1lab[@]}" train run --resume --steps 3)
tail -n 1 "$copy/run/metrics.jsonl" > continued.jsonl
rm -r "$copy"

# Pictures, logs and a state that nothing resumes from are left out.
rm -r pipeline/rl/checkpoints/*/rank-0.pt
find base run evaluation pipeline \( -name .lock -o -name '*.png' -o -name '*.html' -o -name '*.log' -o -name log.txt \) -delete
find run pipeline -type d -empty -delete
