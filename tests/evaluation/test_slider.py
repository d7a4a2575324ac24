"""Two pictures behind a slider, in a browser."""
import json

import numpy as np
import pytest

from mmlk.evaluation import page
from mmlk.evaluation.slider import SCRIPT, SIDE, STYLE, Scene, slider

COLOURS = {'image': (90, 90, 90), 'ground truth': (0, 160, 0), 'one </script><b>': (200, 0, 0),
           'two & "two"': (0, 0, 200)}
LEGEND = [('sky & sea', (10, 20, 30)), ('tree', (0, 90, 0))]


def picture(colour, width=320):
    return np.broadcast_to(np.uint8(colour), (width * 5 // 8, width, 3)).copy()


def test_a_page_needs_no_network_and_escapes_what_it_shows():
    made = page.document('t', slider([Scene('a', {name: picture(colour) for name, colour in COLOURS.items()})], LEGEND),
                         style=STYLE, script=SCRIPT)
    assert made.count('</script>') == 2 and '<b>' not in made and '://' not in made
    assert 'sky &amp; sea' in made and 'background: rgb(10, 20, 30)' in made
    assert made.count('data:image/webp;base64,') == len(COLOURS)
    large = slider([Scene('a', dict(image=np.random.RandomState(0).randint(0, 256, (3 * SIDE, SIDE, 3), np.uint8)))])
    assert len(large) < 600_000  # scaled down


def test_the_slider_in_a_browser(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select
    scenes = [Scene(title, {name: picture(np.array(colour) + shift) for name, colour in COLOURS.items()})
              for title, shift in (('first', 0), ('second', 50))]
    (tmp_path / 'report.html').write_text(page.document('Models', slider(scenes, LEGEND), style=STYLE, script=SCRIPT),
                                          encoding='utf-8')
    browser.get(f'file://{tmp_path}/report.html')

    def at(fraction):
        """The colour of the page at a part of the width of the pictures."""
        import io

        from PIL import Image
        box = browser.find_element('id', 'slider-box').rect
        screen = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert('RGB')
        return screen.getpixel((int(box['x'] + fraction * box['width']), int(box['y'] + box['height'] / 2)))

    def alts():
        return [one.get_attribute('alt') for one in browser.find_elements('css selector', '.slider img')]

    names = list(COLOURS)
    assert alts() == [f'first: {names[2]}', f'first: {names[3]}']
    assert at(0.4) == pytest.approx(COLOURS[names[2]], abs=4) and at(0.6) == pytest.approx(COLOURS[names[3]], abs=4)
    cut = browser.find_element('id', 'slider-cut')
    cut.send_keys(Keys.HOME)
    assert at(0.1) == pytest.approx(COLOURS[names[3]], abs=4)
    cut.send_keys(Keys.END)
    assert at(0.9) == pytest.approx(COLOURS[names[2]], abs=4)
    for _ in range(60):  # by 0.5 % each
        cut.send_keys(Keys.LEFT)
    assert at(0.65) == pytest.approx(COLOURS[names[2]], abs=4) and at(0.75) == pytest.approx(COLOURS[names[3]], abs=4)
    Select(browser.find_element('id', 'slider-left')).select_by_visible_text('ground truth')
    Select(browser.find_element('id', 'slider-image')).select_by_visible_text('second')
    assert alts() == ['second: ground truth', f'second: {names[3]}']
    assert at(0.3) == pytest.approx((50, 210, 50), abs=4)
    sent = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    asked = {one['params']['request']['url'].partition(':')[0] for one in sent
             if one['method'] == 'Network.requestWillBeSent'}
    assert 'file' in asked <= {'file', 'data', 'chrome'} and not browser.get_log('browser')
