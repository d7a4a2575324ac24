"""Class-activation maps of a segmentor, detector or classifier, drawn over images.

``python tools/cam.py --help`` describes the options.
``mmlk cam`` is the same command, whose code is mmlk/cli/cam.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('cam')


if __name__ == '__main__':
    main()
