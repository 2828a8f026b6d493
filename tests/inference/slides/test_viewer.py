"""`slide.html`: one file, which a browser opens without a server and the network."""

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from densenet_flax.inference.slides.viewer import write_viewer
from tests.helpers.slide_results import MALIGNANT_COLOR, SIZE, TISSUE, make_result, make_slide

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
HOSTILE = (
    "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>\n'\"&{{ 7*7 }}"
)


def _write(folder, result):
    path = folder / "slide.html"
    write_viewer(path, result, make_slide())
    return path, path.read_text()


def _data(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1]
    )


def _picture(page, name):
    source = re.search(f'id="{name}"[^>]* src="data:image/jpeg;base64,([^"]*)"', page)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))).astype(int)


def test_page_holds_the_slide_its_tiles_and_their_pictures(tmp_path):
    result = make_result()
    _, page = _write(tmp_path, result)
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "http:" not in page
    assert "https:" not in page and "Research use only, not for diagnosis." in page
    data = _data(page)
    assert data["probability"] == {"1": result.prediction.probability[:, 1].tolist()}
    np.testing.assert_allclose(data["y"], result.grid.y)
    np.testing.assert_allclose(data["overview"], SIZE)
    overview = _picture(page, "overview")
    assert np.abs(overview[450, 650] - TISSUE).max() < 12
    # Each tile's picture is at its slot of the sheet.
    sheet, slots = _picture(page, "thumbnails"), data["thumbnails"]
    assert sorted(slots["tiles"]) == list(range(len(result.grid)))
    for slot, tile in enumerate(slots["tiles"]):
        row, column = divmod(slot, slots["columns"])
        y, x = row * slots["height"], column * slots["width"]
        middle = sheet[y + slots["height"] // 2, x + slots["width"] // 2]
        if result.prediction.probability[tile, 1] == 1:
            assert np.abs(middle - MALIGNANT_COLOR).max() < 40


def test_many_tiles_have_pictures_of_those_that_matter_within_the_size(tmp_path):
    result = make_result(stride=0.16)
    _, page = _write(tmp_path, result)
    data = _data(page)
    shown, calibrated = data["thumbnails"]["tiles"], result.prediction.calibrated[:, 1]
    assert 1000 < len(shown) < len(result.grid)
    assert calibrated[shown].min() >= np.delete(calibrated, shown).max()
    assert len(page) < 10e6


def test_hostile_names_are_text(tmp_path):
    result = make_result(name=HOSTILE, classes=("benign", HOSTILE))
    problems = (HOSTILE,)
    network = dataclasses.replace(result.network, description=HOSTILE)
    damaged = result.grid.select(np.arange(2))
    result = dataclasses.replace(result, network=network, damaged=damaged, problems=problems)
    _, page = _write(tmp_path, result)
    assert "document.title='hacked'" not in page and "<img src=x" not in page
    assert page.count("<script") == 2 and "49" not in page.split("<body>")[1].split("</h1>")[0]
    assert _data(page)["classes"][1].startswith("</script>")
    assert "2 tiles cannot be read and count nowhere." in page


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_opens_it_at_a_tile(tmp_path):
    result = make_result(name=HOSTILE)
    path, _ = _write(tmp_path, result)
    tile = int(result.prediction.probability[:, 1].argmax())
    positive = int((result.prediction.probability[:, 1] >= 0.3).sum())
    completed = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000",
            f"{path.as_uri()}#tile={tile}&threshold=0.3",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    dom = completed.stdout
    assert 'data-ready="1"' in dom and "<title>hacked" not in dom
    row, column = result.grid.rows[tile], result.grid.columns[tile]
    assert f'id="tile-title">Tile {row}, {column}: malignant</h3>' in dom
    assert f"{positive} of {len(result.grid)} tiles at or above 0.300 (malignant)" in dom
    assert dom.count('aria-label="Tile ') == 12  # the most probable ones
