#!/usr/bin/env bash
# Installs mmlk and everything in requirements.txt, and proves it. Safe to run again: what is done is skipped.
# MMLK_STACK=classic bash tools/install.sh: the same with the packages of .ci/requirements-classic.txt.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

classic=(mmengine mmcv mmcv-full mmcv-lite mmdet mmsegmentation)
forks=(onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmsegmentation)
if [ "$MMLK_STACK" = classic ]; then
    requirements=$ENV_DIR/mmlk-requirements.txt
    { grep -vE '^(onedl-|setuptools)' requirements.txt; cat .ci/requirements-classic.txt; } >"$requirements"
    mmcv=mmcv
    others=("${forks[@]}")
else
    requirements=requirements.txt
    mmcv=onedl-mmcv
    others=("${classic[@]}")
fi

log=$ENV_DIR/mmlk-install.log
stamp=$ENV_DIR/mmlk-mmcv-torch.txt  # the torch that this environment's mmcv was built against

pip() { env "${build_env[@]}" python -m pip --disable-pip-version-check "$@"; }
build_env=(MMCV_WITH_OPS=1)

pin() { grep -E "^$1[=<>]" "$requirements"; }

version_of() {
    python -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null || true
}

# Every pin satisfied, and mmlk installed from this very folder.
up_to_date() {
    python - "$requirements" 2>/dev/null <<'PY'
import importlib.metadata, pathlib, re, sys
for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
    pin = re.fullmatch(r'([\w-]+)==(\S+)', line)
    if pin and importlib.metadata.version(pin[1]).split('+')[0] != pin[2]:
        sys.exit(1)
origin = importlib.metadata.distribution('mmlk').read_text('direct_url.json')
sys.exit(f'"{pathlib.Path.cwd().as_uri()}"' not in origin)
PY
}

# Every 30 s: how far the step that started at second $1 is, from what the log holds past byte $2. Ends with
# the script, interrupted or not, and its sleeps do not hold the terminal's pipe open.
heartbeat() {
    local ticks=0 now
    while sleep 5 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        ticks=$((ticks + 1))
        [ $((ticks % 6)) = 0 ] || continue
        now=$(tail -c "+$2" "$log" | grep -oE '^ *\[[0-9]+/[0-9]+\]' | tail -n 1 | tr -d ' ') ||
            now=$(tail -n 1 "$log" | tr -d '\r' | cut -c 1-90)
        printf '    %3d s  %s\n' $((SECONDS - $1)) "$now"
    done
}

# Runs a command with its output in the log; where it fails, shows the log's end and stops.
step() {
    local title=$1 started=$SECONDS beat status=0
    shift
    echo "$title"
    printf '\n== %s\n== %s\n' "$title" "$*" >>"$log"
    heartbeat "$started" "$(($(wc -c <"$log") + 1))" &
    beat=$!
    "$@" </dev/null >>"$log" 2>&1 || status=$?
    kill "$beat" 2>/dev/null || true
    wait "$beat" 2>/dev/null || true
    if [ "$status" != 0 ]; then
        tail -n 30 "$log" >&2
        fail "this step failed: $title
The lines above are the end of $log"
    fi
    echo "    done in $((SECONDS - started)) s"
}

# One job per core, where there are 2 GiB of free memory for each.
compile_jobs() {
    local jobs memory limit
    jobs=$(getconf _NPROCESSORS_ONLN)
    memory=$(awk '/MemAvailable/ {print int($2 / 2097152)}' /proc/meminfo 2>/dev/null) || memory=$jobs
    limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null) || limit=max
    [ "$limit" = max ] || [ $((limit / 2147483648)) -ge "$memory" ] || memory=$((limit / 2147483648))
    [ "$memory" -ge "$jobs" ] || jobs=$memory
    [ "$jobs" -ge 1 ] || jobs=1
    echo "$jobs"
}

# Whether mmcv's CUDA operators can be compiled: a GPU, and nvcc of the CUDA that torch was built with.
can_compile_cuda() {
    python - 2>/dev/null <<'PY'
import re, subprocess, sys, torch
from torch.utils.cpp_extension import CUDA_HOME
if not (torch.cuda.is_available() and torch.version.cuda and CUDA_HOME):
    sys.exit(1)
told = subprocess.run([CUDA_HOME + '/bin/nvcc', '--version'], capture_output=True, text=True).stdout
sys.exit(re.search(r'release (\d+)', told)[1] != torch.version.cuda.split('.')[0])
PY
}

prepare() {
    pip install --upgrade pip "$(pin setuptools)" wheel ninja psutil packaging &&
        pip install -c "$requirements" opencv-python opencv-python-headless || return
    # The one written last counts. The plain one wants the system's libGL; without it, the other's turn.
    python -c 'import cv2' || pip install --force-reinstall --no-deps "$(pin opencv-python-headless)"
}

# mmcv's operators are 78 files, each of which spends 10 to 17 seconds on reading torch's headers: files that include
# many of them read the headers once. The twelve kept apart define the same names as others.
unite_sources() {
    python - "$1" <<'PY'
import pathlib, sys
root = pathlib.Path(sys.argv[1], 'mmcv', 'ops', 'csrc', 'pytorch')
apart = set('active_rotated_filter bbox_overlaps_cpu box_iou_quadri box_iou_rotated deform_conv modulated_deform_conv '
            'nms_quadri nms_rotated psamask roi_align roi_align_rotated rotated_feature_align'.split())
for folder, files in ((root, 2), (root / 'cpu', 1)):
    sources = sorted(path for path in folder.glob('*.cpp') if folder == root or path.stem not in apart)
    if len(sources) < 8:
        sys.exit(f'{folder} has {len(sources)} sources')
    (folder / 'parts').mkdir()
    for path in sources:
        path.rename(folder / 'parts' / path.name)
    for number in range(files):
        lines = [f'#include "parts/{path.name}"\n' for path in sources[number::files]]
        (folder / f'united_{number}.cpp').write_text(''.join(lines))
PY
}

# Seconds in which a wheel that pip has kept is installed, or two minutes of compiling what unite_sources makes of mmcv.
compile_mmcv_united() {
    local folder=$ENV_DIR/mmlk-mmcv status=0
    [ -z "$(pip cache list --format abspath "${mmcv//-/_}" 2>/dev/null)" ] || return
    rm -rf "$folder" && mkdir "$folder" &&
        pip download --no-deps --no-binary :all: --no-build-isolation -c "$requirements" -d "$folder" "$mmcv" &&
        mkdir "$folder/source" && tar -xzf "$folder"/*.tar.gz -C "$folder/source" --strip-components 1 &&
        unite_sources "$folder/source" &&
        CFLAGS=-g0 pip install -v --no-build-isolation -c "$requirements" "$folder/source" || status=$?
    rm -rf "$folder"
    return "$status"
}

compile_mmcv() {
    if [ "$device" = cpu ] && [ $# = 0 ] && compile_mmcv_united; then
        return
    fi
    pip install -v --no-build-isolation -c "$requirements" "$mmcv" "$@"
}

the_rest() {
    pip install -r "$requirements" && pip install --no-deps --no-build-isolation -e .
}

for other in "${others[@]}"; do
    [ -z "$(version_of "$other")" ] || fail \
"$ENV_DIR has $other $(version_of "$other"), whose files the $MMLK_STACK packages pinned here would overwrite.
To use mmlk with the packages you have:  pip install -e . --no-deps --no-build-isolation
For the pinned ones, in an environment of their own:  deactivate; bash tools/install.sh"
done
python -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$ENV_DIR has $(python --version), and the pinned OpenMMLab packages need Python >= 3.10"

echo "installing into $ENV_DIR ($(python --version))"
if up_to_date && [ "$(cat "$stamp" 2>/dev/null)" = "$(version_of torch)" ] && python tools/doctor.py; then
    echo "everything was in place already ($SECONDS s)"
    exit 0
fi

echo "full output: $log"
: >"$log"
python -m pip --version >>"$log" 2>&1 || python -m ensurepip --upgrade >>"$log" 2>&1 ||
    fail "$ENV_DIR has no pip, and ensurepip cannot bring it"
needed=()
python -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    needed+=("$(python -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')")
command -v "${CXX:-c++}" >/dev/null || needed+=(g++)
[ ${#needed[@]} = 0 ] ||
    need_packages "mmcv is compiled here, which takes a C++ compiler and Python's headers" "${needed[@]}"

built_for=$(cat "$stamp" 2>/dev/null || version_of torch)
step "1/4 torch and torchvision (5 GB on disk; about a minute on a fast line)" \
    pip install -c "$requirements" torch torchvision
torch=$(version_of torch)
step "2/4 build tools and OpenCV (seconds)" prepare

MAX_JOBS=${MAX_JOBS:-$(compile_jobs)}
build_env+=("MAX_JOBS=$MAX_JOBS")
if can_compile_cuda; then
    how="with CUDA"
    device=cuda
else
    # A GPU in sight makes mmcv's build insist on a CUDA toolkit, so it is hidden.
    build_env+=(CUDA_VISIBLE_DEVICES= "FORCE_CUDA=${FORCE_CUDA:-0}")
    how="for the CPU"
    device=cpu
fi
title="3/4 mmcv, its operators compiled $how in $MAX_JOBS jobs (for the CPU on 2 cores: 2 to 4 minutes)"
again=(--no-cache-dir --force-reinstall --no-deps)
if [ -n "$(version_of "$mmcv")" ] && [ "$built_for" != "$torch" ]; then
    echo "mmcv here was built for torch $built_for: once more for torch $torch"
    step "$title" compile_mmcv "${again[@]}"
else
    step "$title" compile_mmcv
    if ! python tools/doctor.py --ops $device >>"$log" 2>&1; then
        echo "that mmcv does not work with torch $torch on $device (a stale wheel?): once more, from source"
        step "$title" compile_mmcv "${again[@]}"
    fi
fi
echo "$torch" >"$stamp"
step "4/4 the rest of the requirements, and mmlk itself (about a minute)" the_rest

python tools/doctor.py || fail "not everything works: the doctor's advice is above, the full output in $log"
echo "installed and proved in $SECONDS s"
[ "$ENV_DIR" != "$PWD/$venv" ] || echo "to use it:  source $venv/bin/activate"
