"""Latency, throughput and peak memory of models, interleaved in one run; inference and a training step.

``python tools/benchmark.py --help`` describes the options.
``mmlk benchmark`` is the same command, whose code is mmlk/cli/benchmark.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('benchmark')


if __name__ == '__main__':
    main()
