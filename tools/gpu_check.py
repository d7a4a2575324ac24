"""Prove the depthwise operator on a GPU: tests, precision, times against the GPU's floors, RepLKNet-31B against stock.

``python tools/gpu_check.py --help`` describes the options.
``mmlk gpu-check`` is the same command, whose code is mmlk/cli/gpu_check.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('gpu-check')


if __name__ == '__main__':
    main()
