"""For the manual's build: configs that a page links to, for readers of the repository, become files of the site."""
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((ROOT / 'configs').glob('*.py')):
        files.append(File.generated(config, f'configs/{path.name}', abs_src_path=str(path),
                                    inclusion=InclusionLevel.INCLUDED))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return re.sub(r'\]\(\.\./configs/(\w[^/)]*\.py)\)', r'](configs/\1)', markdown)
