"""The report in a real browser: opened from disk, read by mouse and keys, hostile text in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MISSING, Page, browser
from runs import HOSTILE, make_run

from r1lab.cli.app import main
from r1lab.report.html import write_report
from r1lab.run_folder import RunFolder

pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"not here: {MISSING}")


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Of a run with hostile text, a fault and a skipped update; its cost asked for."""
    run = make_run(tmp_path_factory.mktemp("one") / "run", hostile=True)
    assert main(["report", str(run.path), "--price", "2", "--watts", "45"]) == 0
    return run.path / "report.html"


@pytest.fixture(scope="module")
def overlaid(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    runs = [
        make_run(folder / f"run-{seed}", name=f"seed-{seed}", seed=seed, steps=6 + seed)
        for seed in (0, 1)
    ]
    output = folder / "both.html"
    assert main(["report", *(str(run.path) for run in runs), "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    """Three runs that differ by their seed only."""
    folder = tmp_path_factory.mktemp("seeds")
    runs = [make_run(folder / f"seed-{seed}", seed=seed) for seed in range(3)]
    return write_report(runs, folder / "seeds.html")


@pytest.fixture
def page(opened: Page, report: Path) -> Page:
    opened.open(report)
    return opened


# ------------------------------------------------------------------------------- the page


def test_it_loads_without_a_word_in_the_console_and_without_a_network(page: Page) -> None:
    assert page.console() == []
    assert page.js("return performance.getEntriesByType('resource').length") == 0
    assert page.text("h1") == "made"
    assert "6 steps" in page.text(".lead")


def drawn(page: Page, panel: str) -> int:
    """How many of a chart's points are not on its ground, as the canvas has them."""
    return int(page.js(
        "const canvas = document.querySelector(`[data-panel='${arguments[0]}'] canvas`);"
        "const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "let coloured = 0;"
        "for (let i = 0; i < pixels.data.length; i += 4) {"
        "  const [r, g, b, a] = pixels.data.slice(i, i + 4);"
        "  if (a > 128 && Math.max(r, g, b) - Math.min(r, g, b) > 60) coloured += 1;"
        "} return coloured", panel,
    ))  # fmt: skip


def test_the_charts_have_the_points_of_the_run(page: Page) -> None:
    panels = page.js(
        "return [...document.querySelectorAll('#panels .panel')].map(p => p.dataset.panel)"
    )
    assert panels == [
        "accuracy", "length", "length_training", "reward", "parts", "pass_at_k", "form", "entropy",
        "clip", "signal", "agreement", "faults", "speed", "time",
    ]  # fmt: skip
    for panel in panels:
        assert drawn(page, panel) > 100, panel
    plot = "R1.page.charts.drawn.find(d => d.panel.id === 'accuracy').plot"
    assert page.js(f"return {plot}.data[0]") == [0, 1, 2, 3, 4, 5, 6]
    assert page.js(
        f"return {plot}.data.slice(1).some(line => line.filter(y => y !== null).length === 3)"
    )
    held_out = page.js("return R1.page.charts.panels[0].series[0]")
    assert held_out["x"] == [0, 3, 6] and all(
        low < y < high
        for low, y, high in zip(held_out["low"], held_out["y"], held_out["high"], strict=True)
    )


def test_a_line_can_be_taken_off_and_the_smoothing_changed(page: Page) -> None:
    button = "document.querySelector(\"[data-panel='accuracy'] .legend button\")"
    before = drawn(page, "accuracy")
    page.js(f"{button}.click()")
    assert page.js(f"return {button}.getAttribute('aria-pressed')") == "false"
    # The chart is drawn anew in the next frame; the one after it shows that.
    page.js("requestAnimationFrame(() => requestAnimationFrame(() => { window.redrawn = true }))")
    page.until("return window.redrawn === true")
    assert drawn(page, "accuracy") < before
    page.js(
        "const s = document.querySelector('#smoothing'); s.value = '1';"
        "s.dispatchEvent(new Event('change'))"
    )
    assert page.js("return R1.page.charts.smoothing") == 1
    assert page.console() == []


def test_every_other_figure_is_there_on_demand(page: Page) -> None:
    page.js("document.querySelector('#extra').open = true")
    page.until("return document.querySelectorAll('#extra canvas').length === 3")
    names = page.js("return [...document.querySelectorAll('#extra h3')].map(h => h.textContent)")
    assert names == ["responses", "grad_norm", "learning_rate"]


def test_cost_faults_events_and_settings(page: Page) -> None:
    facts = page.text("#run-facts")
    for part in ("0.03", "0.00075 kWh", "step 2: 1 update skipped",
                 "step 6: 1 response faulted", "warning: <b>odd</b>", "questions_per_step: 32",
                 "r1lab"):  # fmt: skip
        assert part in facts, part
    assert "$0.03" in page.text(".tiles") and "faults1" in page.text(".tiles")
    table = page.text("#evaluation-tables")
    assert "step 6" in table and "boxes" in table and "temperature 1" in table


# ---------------------------------------------------------------------------- transcripts


def test_filters_narrow(page: Page) -> None:
    status = "#browser [role=status]"
    assert page.text(status) == "42 groups, 174 samples of 174"  # 24 of 4, and 18 of 4 and greedy
    page.set("kind", "0")
    assert page.text(status) == "24 groups, 96 samples of 174"
    page.set("step", "6")
    assert page.text(status) == "4 groups, 16 samples of 174"
    for verdict, num in (("fault", 1), ("cut", 1)):
        page.set("verdict", verdict)
        assert page.text(status) == f"1 group, {num} sample of 174"
    page.until("return document.querySelectorAll('.sample').length === 1")
    assert "cut off" in page.text(".sample")
    page.set("verdict", "right")
    page.until("return [...document.querySelectorAll('.sample')].every(s => s.matches('.right'))")
    page.set("verdict", "any")
    page.set("source", "boxes")
    assert page.text(status).startswith("2 groups")
    page.set("source", "any")
    page.set("problem", "sums-train-6002")
    assert page.text(status) == "1 group, 4 samples of 174"
    page.set("problem", "nothing")
    assert "Nothing matches" in page.text("#groups") and page.count(".sample") == 0


def lengths(page: Page) -> list[int]:
    """The longest response of each group in the list."""
    return list(page.js(
        "const {index, found} = R1.page.transcripts;"
        "const of = (g) => index.samples.length.slice(index.starts[g], index.starts[g + 1]);"
        "return found.map(g => Math.max(...of(g)))"
    ))  # fmt: skip


def test_orders(page: Page) -> None:
    page.set("order", "longest")
    found = lengths(page)
    assert found == sorted(found, reverse=True) and found[0] == 128
    page.set("order", "low")
    page.until("return document.querySelector('#group .sample')")
    page.set("order", "improved")
    gains = page.js("return [...R1.page.transcripts.gains.values()].map(([a, b]) => b - a)")
    rows = page.js("return [...document.querySelectorAll('#groups b')].map(b => b.textContent)")
    shown = [float(after) - float(before) for before, after in (row.split(" → ") for row in rows)]
    assert shown == sorted(shown, reverse=True) and shown[0] > 0
    assert len(gains) == 6  # held-out problems alone come again


def test_search_finds_texts_questions_and_reasons(page: Page) -> None:
    status = "#browser [role=status]"
    page.set("query", "AND SO ON")
    page.until(f"return document.querySelector('{status}').textContent.startsWith('1 group, 1 ')")
    page.until("return document.querySelectorAll('.sample mark').length === 1")
    assert page.text(".sample mark") == "and so on"
    page.set("query", "what is 3 +")
    page.until(f"return document.querySelector('{status}').textContent.startsWith('3 groups')")
    page.set("query", "<i>another")
    page.until(f"return document.querySelector('{status}').textContent.startsWith('1 group, 1 ')")
    page.set("query", "")
    page.until(f"return document.querySelector('{status}').textContent.startsWith('42 groups')")


def test_a_sample_shows_its_verdict_its_reason_its_answer_and_gold(page: Page) -> None:
    page.set("problem", "sums-train-6002")
    page.until("return document.querySelectorAll('.sample').length === 4")
    for part in ("reward 1.2", "accuracy 1", "the same number", "advantage +0.50", "6004"):
        assert part in page.text(".sample.right"), part
    assert page.js("return document.querySelector('.sample .thinking').open") is False
    assert page.text(".sample.right .pair .mono") == "6004"
    assert page.js(
        "return document.querySelector('.sample .pair').children[0].offsetTop ==="
        "document.querySelector('.sample .pair').children[1].offsetTop"
    )


def test_what_a_model_wrote_is_text(page: Page) -> None:
    page.set("problem", "<hr>-0")
    page.until("return document.querySelectorAll('.sample').length === 4")
    first = "document.querySelector('.sample')"
    assert HOSTILE.split(" </think>")[0] in page.js(f"return {first}.textContent")
    assert page.js(f"return {first}.querySelectorAll('script, img, style, b, i').length") == 0
    assert page.text(".asked .question") == "<script>1</script> + 1 ?"
    assert page.text(".sample .pair .mono") == "<b>7</b>"
    page.press("t")
    page.set("query", "document.title")
    page.until("return document.querySelectorAll('.sample mark').length === 3")
    assert page.driver.title == "made · r1lab report"
    assert page.js("return getComputedStyle(document.body).display") == "block"
    assert page.console() == []


def test_a_script_that_reached_the_page_would_not_run(page: Page) -> None:
    page.js(
        "const script = document.createElement('script');"
        "script.textContent = \"document.title = 'taken'\"; document.body.append(script)"
    )
    assert page.driver.title == "made · r1lab report"
    assert any("Content Security Policy" in line for line in page.console())


def test_the_keyboard_goes_through_samples_and_groups(page: Page) -> None:
    page.js("document.querySelector('#transcripts').scrollIntoView()")
    active = "return document.activeElement.dataset.sample"
    page.press("j")
    assert page.js(active) == "0"
    page.press("j", "j", "k")
    assert page.js(active) == "1"
    page.press("t")
    assert page.js("return document.activeElement.querySelector('.thinking').open") is True
    first = page.js("return R1.page.transcripts.open")
    page.press("n")
    page.until(f"return R1.page.transcripts.open !== {first}")
    page.until("return document.querySelectorAll('#groups [aria-current=true]').length === 1")
    page.press("p")
    page.until(f"return R1.page.transcripts.open === {first}")
    page.press("/")
    assert page.js("return document.activeElement.name") == "query"
    page.press("j")  # typed, not a command
    assert page.js("return document.activeElement.value") == "j"
    page.press("\ue00c")  # escape
    assert page.js("return document.querySelector('[name=query]').value") == ""


def test_equal_responses_are_shown_once(page: Page) -> None:
    page.set("problem", "sums-train-6002")
    page.until("return document.querySelectorAll('.sample').length === 4")
    page.js(
        "const browser = R1.page.transcripts;"
        "return browser.index.texts(browser.open).then((texts) => {"
        "  browser.index.samples.flags.fill(1); browser.index.samples.score.fill(1);"
        "  browser.draw(browser.open, [texts[0], texts[1], texts[2].map(() => texts[2][0])]);"
        "})"
    )
    assert page.count(".sample") == 1 and page.text(".sample .times") == "× 4"


def test_the_same_problem_at_other_steps(page: Page) -> None:
    page.set("kind", "1")
    page.until("return document.querySelectorAll('.asked .chips button').length === 3")
    page.js("document.querySelector('.asked .chips button').click()")
    page.until("return document.querySelector('.asked .hint').textContent.includes('eval 0')")
    page.until("return document.querySelectorAll('.sample').length === 5")  # and the greedy answer


def test_runs_that_have_hardly_begun(opened: Page, tmp_path: Path) -> None:
    """One step and no evaluation or recipe; one evaluation and no step; both over each other."""
    stepped, evaluated = RunFolder.create(tmp_path / "stepped"), tmp_path / "evaluated"
    stepped.log_metrics(1, {"reward": 0.5, "length": 12.0, "responses": 4.0})
    make_run(evaluated, steps=1)
    for name in ("metrics.jsonl", "timings.jsonl", "summary.json"):
        (evaluated / name).unlink()
    for runs in ((stepped.path,), (evaluated,), (stepped.path, evaluated)):
        opened.open(write_report(runs, tmp_path / "page.html"))
        assert opened.console() == [] and opened.count("#panels canvas") > 0
    opened.open(write_report([stepped], tmp_path / "page.html"))
    assert "Nothing matches" in opened.text("#groups")
    assert "1 of ? steps, not ended" in opened.text(".lead")


# ------------------------------------------------------------------------ several runs


def test_two_runs_over_each_other(opened: Page, overlaid: Path) -> None:
    opened.open(overlaid)
    assert opened.console() == []
    assert opened.text("h1") == "2 runs"
    assert opened.count("#overview tbody tr") == 2
    runs = "return [...new Set(R1.page.charts.panels[0].series.map(line => line.run))]"
    assert opened.js(runs) == [0, 1]
    both = drawn(opened, "accuracy")
    opened.js("document.querySelector('.runs button').click()")
    assert 100 < drawn(opened, "accuracy") < both
    opened.set("run", "1")
    opened.until("return R1.page.transcripts.index === R1.page.transcripts.indices.get(1)")
    opened.until("return document.querySelectorAll('.sample').length > 0")
    differing = opened.text("#run-facts .block:last-child")
    assert "seed" in differing and "group_size" not in differing


def test_runs_that_differ_by_their_seed_are_drawn_as_their_mean(opened: Page, seeds: Path) -> None:
    opened.open(seeds)
    assert opened.console() == []
    assert opened.text(".runs button") == "made, mean of 3 seeds"
    assert "Student's t over the seeds" in opened.text(".lead")
    rows = opened.js(
        "return [...document.querySelectorAll('#overview tbody tr')].map(r => r.innerText)"
    )
    assert len(rows) == 4 and rows[0].startswith("made, mean of 3 seeds")
    assert rows[0].count("[") == 3 and rows[1].startswith("seed-0")
    mean = opened.js(
        "const lines = R1.page.charts.panels[0].series.filter((line) => line.label === 'pass@1');"
        "return [lines.map((line) => [line.run, line.faint]), lines.map((line) => line.y)]"
    )
    assert mean[0] == [[0, True], [1, True], [2, True], [3, False]]
    seed_ends, mean_end = [y[-1] for y in mean[1][:3]], mean[1][3][-1]
    assert mean_end == pytest.approx(sum(seed_ends) / 3)
    assert "mean of 3 seeds, 95% intervals" in opened.text("[data-panel='accuracy'] .note")
    assert opened.count("[data-panel='accuracy'] .legend li:first-child .now") == 1
    everything = drawn(opened, "accuracy")
    opened.js("document.querySelector('.runs button').click()")  # the mean
    without = drawn(opened, "accuracy")
    assert without < everything
    opened.js("document.querySelectorAll('.runs button')[1].click()")  # a seed
    assert drawn(opened, "accuracy") <= without
    assert opened.console() == []


def test_seeds_beside_another_run(opened: Page, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"seed-{seed}", seed=seed) for seed in range(2)]
    runs.insert(1, make_run(tmp_path / "longer", name="longer", steps=9))
    opened.open(write_report(runs, tmp_path / "page.html"))
    assert opened.console() == []
    assert opened.js("return R1.tones") == [0, 1, 0, 0]
    assert opened.js("return R1.page.charts.several") is True
    numbers = opened.js(
        "return [...document.querySelectorAll(arguments[0])].map((now) => now.style.color)",
        "[data-panel='accuracy'] .legend li:first-child .now",
    )
    assert len(set(numbers)) == len(numbers) == 2  # one for the longer run, one for the mean


# -------------------------------------------------------------------------- any screen


@pytest.mark.parametrize("which", ["report", "overlaid", "seeds"])
def test_a_phone_scrolls_one_way(which: str, opened: Page, request) -> None:
    opened.open(request.getfixturevalue(which), width=360, height=740)
    assert opened.js("return document.documentElement.scrollWidth") == 360
    assert opened.js("return document.querySelector('.panel').clientWidth") > 300
    assert drawn(opened, "accuracy") > 100
    assert opened.console() == []


def luminance(page: Page, selector: str, style: str) -> float:
    color = page.js(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
        selector, style,
    )  # fmt: skip
    red, green, blue = (int(part) for part in color.strip("rgb()").split(", "))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_light_and_dark(opened: Page, report: Path) -> None:
    for dark in (False, True):
        opened.open(report, dark=dark)
        ground = luminance(opened, "body", "backgroundColor")
        ink = luminance(opened, "body", "color")
        assert (ground < 60 < 180 < ink) if dark else (ink < 60 < 180 < ground)
        assert drawn(opened, "accuracy") > 100
    opened.js("document.querySelector('#theme').click()")
    assert luminance(opened, "body", "backgroundColor") > 180
    opened.js("localStorage.clear()")
