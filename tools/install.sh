#!/usr/bin/env bash
# Installs mmlk and everything in requirements.txt, and proves it. Safe to run again: what is done is skipped.
#   bash tools/install.sh                  nothing is compiled: torchvision's kernels stand for mmcv's operators
#   bash tools/install.sh --compiled-ops   all of mmcv's operators are compiled (a C++ compiler; for CUDA, nvcc)
#   bash tools/install.sh --with pretrain  mmpretrain too, which pretrains backbones (configs/pretrain)
# MMLK_STACK=classic bash tools/install.sh: the same with the packages of .ci/requirements-classic.txt.
set -euo pipefail
compiled_ops=
pretrain=
arguments="$*"
while [ $# -gt 0 ]; do
    case "$1 ${2:-}" in
        "--compiled-ops "*) compiled_ops=1 ;;
        "--with pretrain")
            pretrain=1
            shift
            ;;
        *)
            echo "usage: bash tools/install.sh [--compiled-ops] [--with pretrain], got: $arguments" >&2
            exit 2
            ;;
    esac
    shift
done
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

classic=(mmengine mmcv mmcv-full mmcv-lite mmdet mmsegmentation)
forks=(onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmsegmentation)
if [ "$MMLK_STACK" = classic ]; then
    requirements=$ENV_DIR/mmlk-requirements.txt
    { grep -vE '^(onedl-|setuptools)' requirements.txt; cat .ci/requirements-classic.txt; } >"$requirements"
    mmcv=mmcv
    mmpretrain=mmpretrain==1.2.0
    others=("${forks[@]}" ${pretrain:+onedl-mmpretrain})
else
    requirements=requirements.txt
    mmcv=onedl-mmcv
    mmpretrain=$(grep -oE 'onedl-mmpretrain==[0-9.]+' pyproject.toml)
    others=("${classic[@]}" ${pretrain:+mmpretrain})
fi

log=$ENV_DIR/mmlk-install.log
stamp=$ENV_DIR/mmlk-mmcv-torch.txt  # the torch that this environment's mmcv was compiled against

build_env=(MMCV_WITH_OPS=1)
pip() { env "${build_env[@]}" python -m pip --disable-pip-version-check "$@"; }

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
# pip leaves mmlk.egg-info in this folder, which says nothing about the installation
origins = [found.read_text('direct_url.json') or '' for found in importlib.metadata.distributions(name='mmlk')]
sys.exit(not any(f'"{pathlib.Path.cwd().as_uri()}"' in origin for origin in origins))
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

# MiB that are free on the disk of a folder; a large number where df cannot say.
free_space() { df -Pm "$1" 2>/dev/null | awk '$4 ~ /^[0-9]+$/ {free = $4} END {print free == "" ? 999999999 : free}' || true; }

# Fails if the disks of the environment and of pip's downloads cannot hold an installation from nothing (all in MiB):
# pip ends after a minute then, and does not say which disk was full.
need_space() {
    local packages=5800 downloads=1400 temporary=${TMPDIR:-/tmp}
    if [ "$(stat -c %d "$ENV_DIR")" = "$(stat -c %d "$temporary")" ]; then
        packages=6200 downloads=0  # most downloads are deleted before the last packages are written
    fi
    [ "$(free_space "$ENV_DIR")" -ge "$packages" ] || fail \
"the disk of $ENV_DIR has $(free_space "$ENV_DIR") MiB free, and the installation needs $packages MiB.
To install on another disk:  python3 -m venv DIR && source DIR/bin/activate && bash $0"
    [ "$(free_space "$temporary")" -ge "$downloads" ] || fail \
"the disk of $temporary has $(free_space "$temporary") MiB free, and pip's downloads need $downloads MiB.
To download to another disk:  TMPDIR=DIR bash $0"
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

# What the operators are compiled for here: cuda (a GPU, or FORCE_CUDA=1), cpu, or none where nvcc is not that of torch.
compile_target() {
    python - 2>/dev/null <<'PY'
import os, re, subprocess, sys, torch
from torch.utils.cpp_extension import CUDA_HOME
if not torch.cuda.is_available() and os.environ.get('FORCE_CUDA') != '1':
    sys.exit(print('cpu'))
told = CUDA_HOME and subprocess.run([CUDA_HOME + '/bin/nvcc', '--version'], capture_output=True, text=True).stdout
release = re.search(r'release (\d+)', told or '')
print('cuda' if release and release[1] == (torch.version.cuda or '').split('.')[0] else 'none')
PY
}

# Builds packages in environments of pip's own, where the pins hold too. (pip takes no such pins elsewhere.)
pip_apart() { PIP_BUILD_CONSTRAINT=$requirements pip "$@"; }

# In pip's own build environment there is no torch, and mmcv's build then leaves its operators out. Python compiles what
# it imports when it does; compiling all of torch's files takes half a minute.
# torch and what it needs are most of the download. Installed first, their files are deleted before the others come.
install_packages() {
    pip install --upgrade pip && pip_apart install --no-compile -c "$requirements" "$(pin torch)" "$(pin torchvision)" &&
        pip_apart install --no-compile -r "$requirements" -e . || return
    # Both builds of OpenCV write the same files. The plain one wants the system's libGL; without it, the other's turn.
    python -c 'import cv2' || pip install --force-reinstall --no-deps "$(pin opencv-python-headless)"
}

# Its own dependencies ask for no versions; those of requirements.txt hold.
install_mmpretrain() { pip_apart install --no-compile -c "$requirements" "$mmpretrain"; }

without_operators() {
    pip_apart install --no-cache-dir --force-reinstall --no-deps "$(pin "$mmcv")" && rm -f "$stamp"
}

# compiled, torchvision or none
operators() { python tools/doctor.py --which-ops; }

works() { python tools/doctor.py --ops "$1" >>"$log" 2>&1; }

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

# About two minutes of compiling what unite_sources makes of mmcv.
compile_united() {
    local folder=$ENV_DIR/mmlk-mmcv status=0
    rm -rf "$folder" && mkdir "$folder" &&
        pip download --no-deps --no-binary :all: --no-build-isolation -d "$folder" "$(pin "$mmcv")" &&
        mkdir "$folder/source" && tar -xzf "$folder"/*.tar.gz -C "$folder/source" --strip-components 1 &&
        unite_sources "$folder/source" &&
        CFLAGS=-g0 pip install -v --no-build-isolation --force-reinstall --no-deps "$folder/source" || status=$?
    rm -rf "$folder"
    return "$status"
}

# A wheel that pip has kept may have no operators, or some for another torch: hence --no-cache-dir.
compile_operators() {
    pip install "$(pin setuptools)" wheel ninja psutil packaging || return
    if [ "$target" != cpu ] || ! compile_united; then
        pip install -v --no-build-isolation --no-cache-dir --force-reinstall --no-deps "$(pin "$mmcv")"
    fi
}

for other in "${others[@]}"; do
    [ -z "$(version_of "$other")" ] || fail \
"$ENV_DIR has $other $(version_of "$other"), whose files the $MMLK_STACK packages pinned here would overwrite.
To use mmlk with the packages you have:  pip install -e . --no-deps --no-build-isolation
For the pinned ones, in an environment of their own:  deactivate; bash tools/install.sh"
done
python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$ENV_DIR has $(python --version), and the pinned packages need Python >= 3.11"

echo "installing into $ENV_DIR ($(python --version))"
torch_before=$(version_of torch)
built_for=$(cat "$stamp" 2>/dev/null || echo "$torch_before")
kind=$(operators)
if up_to_date && { [ -z "$pretrain" ] || [ "$(version_of "${mmpretrain%%==*}")" = "${mmpretrain##*==}" ]; } &&
    [ "$kind" != none ] && [ "$compiled_ops$kind" != 1torchvision ] &&
    { [ "$kind" = torchvision ] || [ "$built_for" = "$torch_before" ]; } && python tools/doctor.py; then
    echo "everything was in place already ($SECONDS s)"
    exit 0
fi

echo "full output: $log"
: >"$log"
python -m pip --version >>"$log" 2>&1 || python -m ensurepip --upgrade >>"$log" 2>&1 ||
    fail "$ENV_DIR has no pip, and ensurepip cannot bring it"
if [ -n "$compiled_ops" ]; then
    needed=()
    python -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        needed+=("$(python -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')")
    command -v "${CXX:-c++}" >/dev/null || needed+=(g++)
    [ ${#needed[@]} = 0 ] ||
        need_packages "--compiled-ops compiles mmcv, which takes a C++ compiler and Python's headers" "${needed[@]}"
fi

steps=$((2 + ${compiled_ops:-0} + ${pretrain:-0}))
[ "$torch_before" ] || need_space
step "1/$steps torch, mmcv, mmdet, mmseg and the rest (6.0 GB on disk; about 2 minutes on a fast line)" install_packages
torch=$(version_of torch)
kind=$(operators)
if [ "$kind" = compiled ] && { [ "$built_for" != "$torch" ] || ! works cpu; }; then
    echo "mmcv's compiled operators here do not fit torch $torch, or may have been compiled for another: they are removed"
    step "    mmcv without compiled operators (seconds)" without_operators
    kind=none
fi
if [ "$kind" = compiled ]; then
    echo "2/$steps mmcv's compiled operators, which are here, are kept: torchvision's give way to them
    (to have torchvision's:  pip uninstall -y $mmcv; bash tools/install.sh)"
else
    step "2/$steps torchvision's kernels in place of mmcv's compiled operators (seconds)" python -m mmlk._mmcv_file
fi
if [ -n "$compiled_ops" ]; then
    target=$(compile_target)
    [ "$target" != none ] || fail "there is a GPU, but no nvcc of CUDA $(python -c 'import torch; print(torch.version.cuda)'), \
which torch was built with: mmcv's operators compiled now would not run on that GPU.
The environment is complete and uses those of torchvision, which do.
To compile mmcv's for the CPU alone:  CUDA_VISIBLE_DEVICES= bash tools/install.sh --compiled-ops"
    if [ "$kind" != compiled ] || ! works "$target"; then
        MAX_JOBS=${MAX_JOBS:-$(compile_jobs)}
        build_env+=("MAX_JOBS=$MAX_JOBS" "FORCE_CUDA=${FORCE_CUDA:-0}")
        step "3/$steps mmcv's operators, compiled for $target in $MAX_JOBS jobs (for the CPU on 2 cores: 2 to 4 minutes)" \
            compile_operators
    fi
    echo "$torch" >"$stamp"
fi
[ -z "$pretrain" ] || step "$steps/$steps mmpretrain, for configs/pretrain (seconds)" install_mmpretrain

python tools/doctor.py || fail "not everything works: the doctor's advice is above, the full output in $log"
echo "installed and proved in $SECONDS s"
[ "$ENV_DIR" != "$PWD/$venv" ] || echo "to use it:  source $venv/bin/activate"
