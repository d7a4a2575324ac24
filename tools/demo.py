"""One or two models in a browser: predictions, latency, and the receptive field at a clicked pixel.

``python tools/demo.py --help`` describes the options.
``mmlk demo`` is the same command, whose code is mmlk/cli/demo.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('demo')


if __name__ == '__main__':
    main()
