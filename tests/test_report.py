"""The page of a run and the reasons of its rows: numbers against the tables, and data that must stay text."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gistselect.cli import main
from gistselect.report.alerts import Alert, alerts
from gistselect.report.charts import Line, line_chart, ticks
from gistselect.report.figures import density_chart
from gistselect.report.page import MOST_BYTES
from gistselect.run.finished import FinishedRun
from gistselect.run.reasons import COSINE, SHARED_WORDS, Explainer
from gistselect.run.reporting import gather, write_report
from tiny_runs import row, run, write_rows

HOSTILE = [
    "<script>document.body.dataset.owned = 'script'</script>",
    "</script><script>document.body.dataset.owned = 'closed'</script>",
    "<img src=x onerror=\"document.body.dataset.owned = 'handler'\">",
    '<a href="javascript:document.body.dataset.owned=\'link\'" onfocus="document.body.dataset.owned=1" autofocus>x</a>',
    "{{ 7*7 }} {% for x in y %} ${7*7} <%= 7*7 %>",
    "\u202eright to left\u202c \u2066isolated \u200b\u0000",
    "[bold red]markup[/] [/x] *star* `tick` <!-- comment --> ]]> &lt;b&gt; &amp;",
    "'; style='position:fixed;inset:0' x='",
    "<style>*{display:none}</style><svg onload=\"document.body.dataset.owned=1\"><base href='//evil.test/'>",
    "word " * 250_000,
]


def test_selected_rows_lie_within_the_chart_however_long_they_are() -> None:
    """The longest rows stand at its edge, as the squares of all rows do."""
    lengths = np.array([10.0] * 400 + [9000.0])
    scores = np.linspace(0, 1, 401)
    chart = density_chart(lengths, scores, lengths > 10, title="t", x_label="x", y_label="y")
    (across,) = (float(found) for found in re.findall(r'<circle[^>]* cx="([\d.]+)"', chart))
    (width,) = (float(found) for found in re.findall(r'viewBox="0 0 ([\d.]+)', chart))
    assert across < width


@pytest.fixture
def cheap(tmp_path: Path) -> dict[str, Any]:
    """A run of text methods over rows that try to be more than text, in their ids and sources too."""
    rows = [row(text, f"So: {text}", id=f"{text[:90]}#{n}", dataset=text[:60]) for n, text in enumerate(HOSTILE)]
    rows += [row(f"What is {n} and {n + 1}?", f"It is {2 * n + 1}.", id=f"plain-{n}") for n in range(40)]
    rows += [row(HOSTILE[0], "", id=HOSTILE[1])]
    target = [row(f"What is {n} and 2? {HOSTILE[n]}", f"It is {n + 2}.", group=HOSTILE[n][:40]) for n in range(5)]
    return {
        "pool": (str(write_rows(tmp_path / "pool.jsonl", rows)),),
        "target": (str(write_rows(tmp_path / "mine.jsonl", target)),),
        "representation": ("bm25", "bm25:k1=0.5"),
        "budget": 12,
        "output": tmp_path / "run",
    }


class Elements(HTMLParser):
    """Names of all elements, and all attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]


def data_of(page: str) -> dict[str, Any]:
    """What the page's script reads."""
    (packed,) = re.findall(r'<script type="text/plain" id="data">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_the_page_holds_every_row_of_a_small_pool_and_no_markup_of_theirs(cheap: dict[str, Any]) -> None:
    output = run(cheap)
    page = (output / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < MOST_BYTES
    elements = Elements()
    elements.feed(page)
    assert elements.names["script"] == 2, "the data and our own"
    assert elements.names["style"] == 1
    assert not elements.names.keys() & {"img", "base", "iframe", "object", "embed", "link"}
    assert not [
        name for name, _ in elements.attributes if name.startswith("on") or name in ("style", "src", "autofocus")
    ]
    links = {value for name, value in elements.attributes if name == "href"}
    assert {link for link in links if not re.fullmatch("#[a-z0-9-]+", link)} == {
        "https://apple.github.io/embedding-atlas"
    }
    assert "{{ 7*7 }}" in page, "what looks like a template is text"
    held = data_of(page)
    table = pq.read_table(output / "scores.parquet").to_pylist()
    by_row = {one["row"]: one for one in held["rows"]}
    assert set(by_row) == {one["row"] for one in table} | {50}
    assert by_row[50]["status"] == "quarantined"
    assert "empty" in by_row[50]["reason"]
    for one in table:
        assert by_row[one["row"]]["score"] == pytest.approx(one["score"], rel=1e-4, abs=1e-9)
    selected = set(pq.read_table(output / "selection.parquet")["row"].to_pylist())
    assert {number for number, one in by_row.items() if one["status"] == "selected"} == selected
    assert "\u202e" not in page
    assert all("\u202e" not in json.dumps(one, ensure_ascii=False) for one in held["rows"])


def test_every_linked_number_counts_its_rows(cheap: dict[str, Any]) -> None:
    """In a pool that the page holds whole, a number and the rows behind it are the same."""
    output = run(cheap)
    page = (output / "report.html").read_text(encoding="utf-8")
    held = data_of(page)
    tests = {"=": lambda a, b: a == b, ">": lambda a, b: a > b, "<": lambda a, b: a < b, ">=": lambda a, b: a >= b}
    found = re.findall(r'data-rows="(\d+)">([\d,]+)(?: of [\d,]+)?(?: \([^<]*\))?</a>', page)
    assert len(found) > 10
    for number, count in found:
        conditions, where = held["links"][int(number)]
        rows = [
            one
            for one in held["rows"]
            if all(name in one and tests[how](one[name], value) for name, how, value in conditions)
        ]
        assert where
        assert len(rows) == int(count.replace(",", "")), (conditions, where)


def test_reasons_against_the_definition(config: dict[str, Any]) -> None:
    """Nearest query, ranks and statuses of a run with gradients, against the stored features."""
    output = run(config, representation=("gist", "bm25"))
    finished = FinishedRun.open(output)
    explainer = Explainer(finished)
    scores = pq.read_table(output / "scores.parquet").to_pylist()
    best = sorted(scores, key=lambda one: -one["score"])
    top = explainer.find(id=best[0]["id"])
    assert (top.rank, top.status, top.best_target) == (1, "selected", best[0]["best_target"])
    assert explainer.find(row=best[10]["row"]).status == "borderline"
    assert explainer.find(row=best[-1]["row"]).status == "rejected"
    assert explainer.find(id="empty").reason
    from gistselect.run.cells import load_fit

    fit, cell = finished.methods[0].columns["sums"][0]
    fitted = load_fit(fit)
    table = pq.read_table(cell.shard(0))
    place = table["row"].to_pylist().index(top.row)
    own = np.asarray(table["features"][place].as_py(), dtype=np.float64)
    queries = fitted.arrays["query_features"]
    cosines = queries @ own / np.linalg.norm(own) / np.linalg.norm(queries, axis=1)
    groups = [query.group for query in finished.queries]
    mine = [index for index, group in enumerate(groups) if f"sums/{group}" == top.best_target]
    expected = max(mine, key=lambda index: cosines[index])
    assert top.nearest is not None
    assert (top.nearest.query, top.nearest.how) == (expected, COSINE)
    assert top.nearest.value == pytest.approx(cosines[expected], rel=1e-6)
    other = pq.read_table(output / "methods" / "bm25" / "scores.parquet").to_pylist()
    ranked = [one["row"] for one in sorted(other, key=lambda one: -one["score"])]
    assert top.other_ranks == {"bm25": ranked.index(top.row) + 1}
    facts = gather(finished)
    (pair,) = facts.agreements
    both = set(pq.read_table(output / "selection.parquet")["row"].to_pylist())
    theirs = set(pq.read_table(output / "methods" / "bm25" / "selection.parquet")["row"].to_pylist())
    assert pair.overlap == pytest.approx(len(both & theirs) / len(both))
    assert [one.name for one in facts.curves] == ["warm-up"]


def test_explain_on_the_terminal(cheap: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output = str(run(cheap))
    main(["explain", output, "--row", "0"])
    said = capsys.readouterr().out
    assert HOSTILE[0] in said
    assert SHARED_WORDS in said
    assert "rank" in said
    main(["explain", output, "--id", HOSTILE[1]])
    assert "quarantined" in capsys.readouterr().out
    main(["explain", output, "--row", "5"])
    assert "⟨U+202E⟩right to left" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["explain", output, "--row", "4000"])
    assert "no row with number 4000" in capsys.readouterr().err


def test_runs_are_compared_and_a_page_is_made_again_without_the_store(cheap: dict[str, Any], tmp_path: Path) -> None:
    first = run(cheap)
    second = run(cheap, output=tmp_path / "other", budget=9)
    path = write_report([first, second], tmp_path / "both.html")
    page = path.read_text(encoding="utf-8")
    assert "Beside other runs" in page
    assert "75%" in page, "9 of 12 rows are the same"
    shutil.rmtree(first / "artifacts")
    write_report([first])
    held = data_of((first / "report.html").read_text(encoding="utf-8"))
    assert len(held["rows"]) == 51
    assert all(not one["turns"] for one in held["rows"])


def test_a_folder_without_a_selection_is_refused(cheap: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output = run(cheap, until="score")
    assert not (output / "report.html").exists()
    with pytest.raises(SystemExit):
        main(["report", str(output)])
    assert "holds no selection" in capsys.readouterr().err


def test_what_an_older_version_wrote_is_named_with_the_remedy(
    cheap: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(cheap)
    (output / "comparison.json").write_text('[{"task": "mine", "verdicts": ["GIST beats random rows"]}]')
    with pytest.raises(SystemExit):
        main(["report", str(output)])
    assert f"'gistselect evaluate --run {output}' brings it up to date" in " ".join(capsys.readouterr().err.split())
    manifest = json.loads((output / "manifest.json").read_text())
    del manifest["methods"]
    (output / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit):
        main(["report", str(output)])
    assert f"'gistselect select --output {output}' brings it up to date" in " ".join(capsys.readouterr().err.split())


def test_the_proof_counts_outcomes_and_reads_no_sentence(cheap: dict[str, Any]) -> None:
    facts = gather(FinishedRun.open(run(cheap)))
    one = {"verdicts": ["what beats beats us, and is worse than that"] * 3}

    def proof(*outcomes: str) -> Alert:
        return next(alert for alert in alerts(replace(facts, comparison=[{**one, "outcomes": outcomes}]))
                    if alert.title == "Proof")  # fmt: skip

    assert proof("better", "better", "better").level == "good"
    assert proof("better", "undecided", "undecided").level == "look"
    worse = proof("better", "worse", "undecided")
    assert (worse.level, worse.number.text) == ("bad", "better in 1 of 3 comparisons")
    assert worse.said.startswith(", worse in 1;")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.3, 0.52), (1.0, 40.0), (4.44, 4.8), (0.0, 2.5e-7)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low - 1e-9 <= found[0] < found[-1] <= high + 1e-9
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])


def test_an_axis_of_steps_has_no_half_steps() -> None:
    drawn = {}
    for last in (4.0, 3.5):
        line = Line(name="loss", x=[1.0, 2.0, last], y=[3.0, 2.0, 1.0])
        drawn[last] = line_chart([line], title="t", x_label="step", y_label="nats")
    across = {last: re.findall(r'text-anchor="middle" fill="#555555">([^<]+)<', chart) for last, chart in drawn.items()}
    assert across == {4.0: ["1", "2", "3", "4"], 3.5: ["1", "1.5", "2", "2.5", "3", "3.5"]}


def test_data_is_inert_in_a_browser(cheap: dict[str, Any], tmp_path: Path) -> None:
    """Headless Chromium on the hostile page: the rows are there as text, and nothing of them ran."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium; apt-get install chromium")
    page = run(cheap) / "report.html"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [browser, *options, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert 'data-ready="yes"' in shown
    assert "data-owned" not in shown
    assert "50 of the 51 rows" in shown or "51 of the 51 rows" in shown
    assert "&lt;script&gt;document.body.dataset.owned" in shown
    assert shown.count("<script") == 2
