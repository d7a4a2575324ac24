"""The depthwise operator against PyTorch's own: time, rate and memory of every backend, and what they make of a model.

``python tools/benchmark_ops.py --help`` describes the options.
``mmlk benchmark-ops`` is the same command, whose code is mmlk/cli/benchmark_ops.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('benchmark-ops')


if __name__ == '__main__':
    main()
