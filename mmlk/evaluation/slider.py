"""Pictures of several models on the same images, two at a time behind a slider, as a part of a page without network."""
import base64
import io
import json
from typing import List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np
from PIL import Image

from mmlk.evaluation import page

SIDE = 960  # of a picture at most, in pixels

STYLE = '''
.slider { position: relative; width: 100%; max-width: 800px; line-height: 0; user-select: none; }
.slider img { display: block; width: 100%; }
.slider img.right { position: absolute; inset: 0; height: 100%; clip-path: inset(0 0 0 var(--cut, 50%)); }
.slider::after { content: ''; position: absolute; top: 0; bottom: 0; left: var(--cut, 50%); width: 2px;
  margin-left: -1px; background: #fff; box-shadow: 0 0 2px #000; pointer-events: none; }
.slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.slider:focus-within { outline: 2px solid #0072B2; }
.choose label { margin-right: 1.5em; }
.choose select { max-width: 18em; }
.key span { white-space: nowrap; margin-right: 1em; }
.key i { display: inline-block; width: .85em; height: .85em; margin-right: .35em; border: 1px solid #8888; }
'''

SCRIPT = '''
(() => {
  const pictures = JSON.parse(document.getElementById('pictures').textContent);
  const find = name => document.getElementById('slider-' + name);
  const box = find('box'), cut = find('cut'), choices = ['image', 'left', 'right'].map(find);
  function show() {
    const [image, left, right] = choices.map(choice => choice.value);
    for (const [side, name] of [['left', left], ['right', right]]) {
      const shown = box.querySelector('img.' + side);
      shown.src = pictures[image].views[name];
      shown.alt = pictures[image].title + ': ' + find(side).selectedOptions[0].text;
    }
  }
  function move() { box.style.setProperty('--cut', cut.value + '%'); }
  choices.forEach(choice => choice.addEventListener('change', show));
  cut.addEventListener('input', move);
  show();
  move();
})();
'''


class Scene(NamedTuple):
    """An image with what is to be compared.

    Args:
        title: Its title.
        views: Pictures of one size, (H, W, 3), uint8, RGB, by name. All scenes have the same names.
    """
    title: str
    views: Mapping[str, np.ndarray]


def slider(scenes: Sequence[Scene], legend: Sequence[Tuple[str, Tuple[int, int, int]]] = ()) -> str:
    """Returns a part of a page that shows two views of a scene, left and right of a line that can be moved.

    The page also needs ``STYLE`` and ``SCRIPT``, see :func:`mmlk.evaluation.page.document`, and has one such part.

    Args:
        scenes: One or more. The last two views are shown first.
        legend: Names with their RGB colours, written below.
    """
    names = list(scenes[0].views)
    pictures = [dict(title=scene.title, views=[data_url(scene.views[name]) for name in names]) for scene in scenes]
    content = json.dumps(pictures).replace('<', '\\u003c')  # else a title could end the element
    choices = [('image', 'image', [scene.title for scene in scenes], 0),
               ('left', 'left', names, max(0, len(names) - 2)), ('right', 'right', names, len(names) - 1)]
    key = ''.join(f'<span><i style="background: rgb{tuple(map(int, colour))}"></i>{page.text(name)}</span> '
                  for name, colour in legend)
    return '\n'.join([
        f'<script type="application/json" id="pictures">{content}</script>',
        '<p class="choose">' + ' '.join(_choice(*choice) for choice in choices) + '</p>',
        '<div class="slider" id="slider-box"><img class="left" alt=""><img class="right" alt="">'
        '<input type="range" id="slider-cut" min="0" max="100" step="0.5" value="50" '
        'aria-label="where the left picture ends"></div>', f'<p class="key">{key}</p>'])


def data_url(picture: np.ndarray) -> str:
    """Returns a picture, (H, W, 3), uint8, RGB, as a WebP image in a data URL, scaled down to ``SIDE`` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    image.save(encoded, 'WEBP', quality=85)
    return f'data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}'


def _choice(name: str, label: str, options: List[str], chosen: int) -> str:
    listed = ''.join(f'<option value="{index}"{" selected" * (index == chosen)}>{page.text(option)}</option>'
                     for index, option in enumerate(options))
    return f'<label>{label} <select id="slider-{name}">{listed}</select></label>'
