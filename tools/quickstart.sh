#!/usr/bin/env bash
# From nothing to a trained 31x31-kernel UperNet: installs, makes demo data, trains, tests, draws.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

config=configs/demo/upernet_replknet-tiny_ade20k.py
work_dir=work_dirs/demo
picture=$work_dir/predictions.png

bash tools/install.sh
began=$SECONDS

say() { printf '\n== %s\n' "$*"; }

say "1/4 demo data: synthetic scenes in ADE20K's layout"
python tools/make_demo_data.py --layout ade20k --out data/demo/ade20k
say "2/4 training $config"
python tools/train.py "$config" --work-dir "$work_dir"
checkpoint=$(cat "$work_dir/last_checkpoint")
say "3/4 testing $checkpoint"
python tools/test.py "$config" "$checkpoint" --work-dir "$work_dir"
say "4/4 drawing predictions"
python tools/show_predictions.py "$config" "$checkpoint" --out "$picture"

say "done in $((SECONDS - began)) s after the install"
python - "$work_dir" <<'PY'
import glob, json, os, sys
import numpy as np
from PIL import Image

report = max(glob.glob(os.path.join(sys.argv[1], '*', '*.json')), key=os.path.getmtime)
with open(report) as file:
    print(f'validation mIoU: {json.load(file)["mIoU"]:.1f} %')
pixels = sum(np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
             for path in glob.glob('data/demo/ade20k/annotations/validation/*.png'))[1:255]
# The commonest class has IoU = its share of the pixels, every other class 0.
commonest = pixels.max() / pixels.sum() / (pixels > 0).sum()
print(f'  (predicting the commonest class everywhere: {100 * commonest:.1f} %)')
PY
echo "image, ground truth and prediction side by side: $PWD/$picture"
