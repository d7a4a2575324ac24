"""For the manual's build: configs that pages link to become files of the site, and families of backbones are listed."""
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    configs = ROOT / 'configs'
    for path in sorted([*configs.glob('*.py'), *configs.glob('pretrain/*.py')]):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path),
                                    inclusion=InclusionLevel.INCLUDED))
    return files


def backbones() -> str:
    """A section for each registered family. ``mmlk.backbones`` finds them when it is imported, which no page does."""
    found = sorted((name, path.stem) for path in (ROOT / 'mmlk' / 'backbones').glob('*.py')
                   for name in re.findall(r'^@MODELS.register_module\(\)\nclass (\w+)', path.read_text(), re.MULTILINE))
    return '\n'.join(f'\n::: mmlk.backbones.{module}.{name}\n    options:\n      members: []\n'
                     '      show_root_full_path: false' for name, module in found)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri == 'api/backbones.md':
        markdown += backbones()
    return re.sub(r'\]\(\.\./configs/((?:pretrain/)?\w[^/)]*\.py)\)', r'](configs/\1)', markdown)
