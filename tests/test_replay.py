"""The replay: what it records, that its page is whole, how it behaves in a browser."""

import json
import re
import shutil
import warnings

import jax
import numpy as np
import pytest

import pdecode
from pdecode import generation
from pdecode.cli import main as cli
from pdecode.models.bytes import ByteTokenizer
from pdecode.replay import page, record

TEXTS = ["def f(", "é"]


@pytest.fixture(scope="module")
def drafted():
    return pdecode.generate(TEXTS, method="prompt_lookup", max_new_tokens=12)


@pytest.fixture(scope="module")
def revised():
    job = generation.prepare("import os", method="wino", max_new_tokens=16)
    return generation.recorded(job)


def data_of(text):
    """What a page shows."""
    found = re.search(r'id="data">(.*?)</script>', text, re.S)
    return json.loads(found.group(1))


def test_a_result_says_when_each_token_came(drafted):
    assert drafted.prompts == TEXTS
    for row in range(2):
        steps, pieces = drafted.steps[row], drafted.pieces[row]
        assert len(steps) == len(pieces) == len(drafted.tokens[row]) == 12
        assert "".join(pieces) == drafted.text[row]
        assert steps[0] == 0 and max(steps) + 1 == drafted.stats["calls"][row]
        assert all(0 <= prob <= 1 for prob in drafted.probs[row])
        # A causal method commits from left to right, so the last of a step is its own.
        assert steps == sorted(steps)
        kinds = record.of_result(drafted).runs[0].traces[row].kinds
        assert kinds.count("own") == drafted.stats["calls"][row]
        assert kinds[-1] == "own"


def test_letters_of_several_bytes_stand_in_one_piece():
    tokenizer = ByteTokenizer()
    text = "aé\N{SNOWMAN}b"
    found = record.pieces(list(text.encode()), tokenizer)
    assert "".join(found) == text and len(found) == len(text.encode())
    assert found == ["a", "", "é", "", "", "\N{SNOWMAN}", "b"]
    # Half a letter at the end is told as it decodes.
    assert record.pieces(list("é".encode())[:1], tokenizer) == [
        "\N{REPLACEMENT CHARACTER}"
    ]


def test_events_make_the_text_again(revised):
    trace = record.of_result(revised).runs[0].traces[0]
    assert {event[4] for event in trace.events} >= {"filled"}
    now, count = {}, 0
    for step, place, piece, prob, kind in trace.events:
        assert 0 <= step < revised.stats["steps"] and 0 <= prob <= 1
        count += kind != "filled"
        if kind == "reopened":
            del now[place]
        else:
            assert (place in now) == (kind == "revised")
            now[place] = piece
    assert "".join(now[place] for place in sorted(now)) == revised.text[0]
    assert count == revised.stats["revoked"][0]
    # WINO takes back what it filled: without that the test would see little.
    assert count > 0


def test_a_page_is_whole_and_fetches_nothing(drafted):
    made = drafted._replace(prompts=["</script><b>", drafted.prompts[1]])
    text = page.page(record.of_result(made))
    assert text.count("</script>") == 2  # data and code, nothing that a text closes
    assert data_of(text)["prompts"][0] == "</script><b>"
    assert not re.search(r"(src|href)=.(?!data:)", text) and "http" not in text
    html = drafted._repr_html_()
    assert html.startswith("<iframe srcdoc=") and html.count("<") == 2


def test_view_reads_what_the_commands_write(tmp_path, capsys, drafted):
    whole = tmp_path / "made.json"
    whole.write_text(json.dumps(drafted._asdict()))
    assert cli.main(["view", str(whole)]) == 0
    shown = data_of((tmp_path / "made.html").read_text())
    assert shown["runs"][0]["traces"][0]["pieces"] == drafted.pieces[0]

    lines, html = tmp_path / "made.jsonl", tmp_path / "own.html"
    args = ["generate", "--method", "prompt_lookup", "--max-new-tokens", "12", "--json"]
    args += ["--prompt", TEXTS[0], "--prompt", TEXTS[1], "--html", str(html)]
    capsys.readouterr()
    assert cli.main(args) == 0
    lines.write_text(capsys.readouterr().out)
    other = tmp_path / "other.html"
    assert cli.main(["view", str(lines), "--html", str(other), "--grid", "3x4"]) == 0
    mine, its = (data_of(path.read_text()) for path in (html, other))
    assert mine["prompts"] == its["prompts"] == TEXTS
    for a, b in zip(mine["runs"][0]["traces"], its["runs"][0]["traces"]):
        assert a["steps"] == b["steps"] and a["events"] == b["events"]
        assert b["grid"] == [3, 4] and len(b["values"]) == 12 and a["grid"] is None
        assert sum(a["proposed"]) >= a["kinds"].count("accepted")


def test_what_cannot_be_shown_is_said(tmp_path, capsys):
    file = tmp_path / "bad.json"
    for text, said in (
        ("{", "is no JSON"),
        ("{}", "neither a result"),
        (json.dumps({"tokens": [], "method": "x", "prompts": []}), "has no steps"),
    ):
        file.write_text(text)
        assert cli.main(["view", str(file)]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["view", str(tmp_path / "none.json")]) == 2
    file.write_text(json.dumps({"tokens": [[1]], "method": "x", "prompts": [""]}))
    assert cli.main(["view", str(file), "--grid", "3"]) == 2
    assert "write HEIGHTxWIDTH" in capsys.readouterr().err
    here = str(tmp_path / "no" / "page.html")
    assert cli.main(["generate", "--prompt", "a", "--html", here]) == 2
    assert "no folder that can be written" in capsys.readouterr().err


def fake_comparison(tokens=40):
    """Two methods on two prompts, as compare.json has them."""
    rng = np.random.default_rng(0)

    def row(name, per_step, shuffled):
        steps = [
            (rng.permutation(tokens) if shuffled else np.arange(tokens)) // per_step
            for _ in range(2)
        ]
        return {
            "name": name,
            "settings": {},
            "guarantee": "lossy" if shuffled else "lossless",
            "tokens_per_call": float(per_step),
            "calls_per_row": tokens / per_step,
            "mean_accepted": None if shuffled else per_step - 1.0,
            "decode_s": [0.1 * (1 + shuffled)],
            "commit_steps": [each.tolist() for each in steps],
            "pieces": [["ab "] * tokens] * 2,
            "probs": [[0.5] * tokens] * 2,
        }

    return {
        "settings": {"batch_size": 1},
        "rows": [row("left_to_right", 2, False), row("any_order", 5, True)],
        "prompts": [{"prompt": "first: "}, {"prompt": "second: "}],
    }


def test_methods_stand_side_by_side_on_one_clock():
    made = record.of_comparison(fake_comparison())
    left, right = (run.traces[0] for run in made.runs)
    assert (left.calls, right.calls) == (20, 8)
    # 0.1 s over 2 x 20 steps, 0.2 s over 2 x 8.
    np.testing.assert_allclose([left.seconds, right.seconds], [0.05, 0.1])
    assert left.kinds[:4] == ["accepted", "own"] * 2
    assert set(right.kinds) == {"filled"}
    with pytest.raises(ValueError, match="no pieces"):
        broken = fake_comparison()
        broken["rows"][0]["pieces"] = []
        record.of_comparison(broken)


# In a real browser.


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; a loud line where there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return _none("playwright is not installed (pip install -e '.[browser]')")
    own = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    driver = sync_playwright().start()
    try:
        args = ["--no-sandbox"]
        found = driver.chromium.launch(executable_path=own, args=args)
    except Error as error:
        driver.stop()
        return _none(str(error).splitlines()[0])
    yield found
    found.close()
    driver.stop()


def _none(why):
    warnings.warn(f"THE REPLAY WAS NOT TRIED IN A BROWSER: {why}", stacklevel=1)
    pytest.skip(f"THE REPLAY WAS NOT TRIED IN A BROWSER: {why}")


def opened(browser, tmp_path, replay, **context):
    """The page of `replay` in a tab, and what went wrong in it."""
    path = tmp_path / "page.html"
    page.write(replay, str(path))
    tab = browser.new_page(**context)
    wrong = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda asked: wrong.append(asked.url)
           if not asked.url.startswith(("file:", "data:")) else None)  # fmt: skip
    tab.goto(f"file://{path}")
    return tab, wrong


def counts(tab):
    """Tokens that each shown card says it has."""
    return [int(text.split()[0]) for text in tab.locator(".count").all_inner_texts()]


@pytest.mark.browser
def test_load_step_play_hover_and_switch(browser, tmp_path):
    tab, wrong = opened(
        browser, tmp_path, record.of_comparison(fake_comparison()),
        viewport={"width": 1000, "height": 800},
    )  # fmt: skip
    assert counts(tab) == [40, 40]  # it begins with what came out
    tab.keyboard.press("Home")
    assert counts(tab) == [0, 0]
    tab.keyboard.press("ArrowRight")
    assert counts(tab) == [2, 5]  # both clocks count calls
    tab.click("#forth")
    tab.click("#back")
    assert counts(tab) == [2, 5]
    # In seconds a call of the second method is 0.1 / 8, of the first 0.05 / 20.
    tab.select_option("#unit", "seconds")
    tab.evaluate("replay.state.time = 0.0126; replay.refresh()")
    assert counts(tab) == [10, 5]
    tab.select_option("#unit", "calls")

    tab.keyboard.press("Home")
    tab.select_option("#speed", "16")
    tab.click("#play")
    tab.wait_for_function("!replay.state.playing", timeout=20000)
    assert counts(tab) == [40, 40]

    box = tab.locator(".text canvas").first.bounding_box()
    tab.mouse.move(box["x"] + 75, box["y"] + 10)  # behind the seven letters of a prompt
    tip = tab.locator("#tip").inner_text()
    assert '"ab "' in tip and "position 1, step 1 of 20" in tip
    assert "probability 0.500" in tip and "a draft, accepted" in tip
    tab.mouse.move(2, 2)
    assert tab.locator("#tip").is_hidden()

    tab.select_option("#prompt", "1")
    assert counts(tab) == [40, 40]
    tab.click(".chip >> nth=0")
    assert len(tab.locator("section:visible").all()) == 1
    tab.click(".chip >> nth=1")  # the last one stays
    assert len(tab.locator("section:visible").all()) == 1
    tab.click("#deep")
    assert tab.locator(".deep").first.is_hidden()
    assert not wrong


@pytest.mark.browser
def test_revisions_go_back_and_forth(browser, tmp_path, revised):
    tab, wrong = opened(browser, tmp_path, record.of_result(revised))
    steps = revised.stats["steps"]
    trace = record.of_result(revised).runs[0].traces[0]
    tab.keyboard.press("Home")
    for direction in (range(1, steps + 1), range(steps - 1, -1, -1)):
        for step in direction:
            tab.keyboard.press("ArrowRight" if direction.step > 0 else "ArrowLeft")
            now = set()
            for when, place, _, _, kind in trace.events:
                if when < step:
                    (now.discard if kind == "reopened" else now.add)(place)
            assert counts(tab) == [len(now)]
    assert not wrong


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_is_readable_and_a_phone_has_no_sideways_scroll(browser, tmp_path, scheme):
    tab, wrong = opened(
        browser, tmp_path, record.of_comparison(fake_comparison()), color_scheme=scheme,
        viewport={"width": 375, "height": 740}, has_touch=True,
    )  # fmt: skip
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= 375
    for part in np.linspace(0, 1, 9):
        ratio = tab.evaluate(
            """(part) => {
              const light = (text) => text.match(/[0-9.]+/g).slice(0, 3)
                .map((v) => v / 255)
                .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
              const node = document.createElement("i");
              node.style.color = "var(--ink)"; document.body.append(node);
              const both = [getComputedStyle(node).color, replay.shade(part)];
              const pair = both.map(light);
              return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
            }""",
            float(part),
        )
        assert ratio > 4.5, (scheme, part, ratio)
    assert not wrong


@pytest.mark.browser
def test_a_hundred_thousand_tokens_stay_smooth(browser, tmp_path):
    size = 100_000
    rng = np.random.default_rng(0)
    trace = record.Trace(
        prompt=0, pieces=["ab "] * size, steps=(rng.permutation(size) // 10).tolist(),
        probs=[0.5] * size, kinds=["filled"] * size, calls=size // 10, seconds=1.0,
    )  # fmt: skip
    replay = record.Replay("many", ["p"], [record.Run("many", "", [trace])])
    tab, wrong = opened(browser, tmp_path, replay)
    took = tab.evaluate(
        """() => {
          const times = [];
          replay.state.time = 0; replay.refresh();
          for (let i = 1; i <= 60; i++) {
            const began = performance.now();
            replay.state.time = replay.longest() * i / 60; replay.refresh();
            times.push(performance.now() - began);
          }
          return times.sort((a, b) => a - b)[30];
        }"""
    )
    assert took < 100, took  # a frame's work, on a shared and slow machine
    assert counts(tab) == [size]
    assert not wrong


@pytest.mark.browser
def test_an_image_is_a_grid(browser, tmp_path):
    trace = record.Trace(
        prompt=0, pieces=[""] * 16, steps=[i // 4 for i in range(16)],
        probs=[0.5] * 16, kinds=["filled"] * 16, calls=4, seconds=1.0,
        values=[i / 15 for i in range(16)], grid=(4, 4),
    )  # fmt: skip
    replay = record.Replay("image", [""], [record.Run("any_order", "", [trace])])
    tab, wrong = opened(browser, tmp_path, replay)

    def middle(index):
        """The grey in the middle of a cell."""
        return tab.evaluate(
            """(i) => {
              const card = replay.cards[0], side = card.gridSide();
              const at = (n) => Math.round((n + 0.5) * side * devicePixelRatio);
              return [...card.canvas.getContext("2d")
                .getImageData(at(i % 4), at(Math.floor(i / 4)), 1, 1).data].slice(0, 3);
            }""",
            index,
        )

    assert middle(15) == [255] * 3 and middle(0) == [0] * 3
    tab.keyboard.press("ArrowLeft")
    assert middle(15) != [255] * 3 and middle(0) == [0] * 3
    assert not wrong


def test_the_program_is_the_one_that_generate_runs(revised):
    made = pdecode.generate("import os", method="wino", max_new_tokens=16)
    assert made.tokens == revised.tokens and made.steps == revised.steps
    assert jax.tree.leaves(made.stats) == jax.tree.leaves(revised.stats)
