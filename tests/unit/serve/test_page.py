"""The page of a server in a real browser: it writes, colours tokens by their loops, shows the lens, and says what is
wrong."""

from pathlib import Path

import pytest

from tests.support.browser import BROWSER, Page, browse
from tests.support.served import serving
from tests.support.text_runs import save_text_run

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome")
LENS = "[...document.querySelectorAll('#lens tr')].map(row => [...row.children].map(cell => cell.textContent))"
LOOPS = "[...document.querySelectorAll('#answer .token')].map(each => each.title)"
IS_DONE = "!document.getElementById('write').disabled && document.querySelector('#mean').textContent"


def test_people_write_choose_loops_and_look_inside(tmp_path: Path) -> None:
    run = save_text_run(tmp_path)
    with serving(run, "--max-loops", "3", "--name", "<b>kings</b>") as client:

        async def visit(page: Page) -> None:
            await page.until("document.querySelectorAll('#loops option').length === 6")
            assert await page.run("document.getElementById('name').textContent") == "<b>kings</b>"
            assert await page.run("document.getElementById('loops').value") == "2"
            await page.run(
                "at('prompt').value = 'the king of'; at('tokens').value = 9; at('temperature').value = 0;"
                "at('loops').value = 3; at('write').click()"
            )
            await page.until(IS_DONE)
            wanted = client.complete(prompt="the king of", max_tokens=9, num_loops=3)["choices"][0]
            assert await page.run("at('answer').textContent") == "the king of" + wanted["text"]
            titles = await page.run(LOOPS)
            assert titles and {each for title in titles for each in title.removesuffix(" loops").split(", ")} == {"3"}
            await page.run("at('look').click()")
            head, *rows = await page.until(f"document.querySelector('#lens tr') && {LENS}")
            assert head == ["token", "1 loop", "2 loops", "3 loops"] and [row[0] for row in rows[1:]]
            await page.picture(tmp_path / "page.png")
            await page.run(
                "at('loops').value = 'auto:change'; at('loops').onchange(); at('threshold').value = '1e9';"
                "at('write').click()"
            )
            await page.until(IS_DONE)
            assert "1.00 loops a token" in await page.run("at('mean').textContent")
            assert not await page.run("at('threshold-label').hidden")
            await page.run("at('tokens').value = 999; at('write').click()")
            assert "more than the 64 that are offered" in await page.until("at('trouble').textContent")

        said = browse(f"http://127.0.0.1:{client.port}/", tmp_path, visit)
        assert all("400 (Bad Request)" in each for each in said), said


def test_a_page_that_needs_a_key_asks_for_it(tmp_path: Path) -> None:
    with serving(save_text_run(tmp_path), key="opensesame") as client:

        async def visit(page: Page) -> None:
            await page.until("!at('key-label').hidden")
            assert "needs the API key" in await page.until("at('trouble').textContent")
            await page.run("at('key').value = 'opensesame'; at('key').onchange()")
            await page.until("document.querySelectorAll('#loops option').length === 5")
            assert await page.run("at('trouble').textContent") == ""

        browse(f"http://127.0.0.1:{client.port}/", tmp_path, visit)
