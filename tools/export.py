"""Write a trained model as ONNX, TorchScript or an exported program, checked against PyTorch on real images.

``python tools/export.py --help`` describes the options.
``mmlk export`` is the same command, whose code is mmlk/cli/export.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('export')


if __name__ == '__main__':
    main()
