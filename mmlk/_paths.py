"""Where the files are that belong to mmlk and are not Python modules."""
from pathlib import Path

#: Folder with ``configs``, ``tools`` and ``model-index.yml``: links in a checkout, the files themselves in a wheel.
MIM = Path(__file__).parent / '.mim'
