"""What the page shows and what it must never hold; `test_browser.py` tests how it is drawn."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

from job.store import open_store
from job.view import page
from job.view.comparison import labels
from job.view.stored_run import StoredRun, read
from tests.view.runs import altered, write_run

EPOCHS_MAX_BYTES = 2_000_000

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</title></style></svg><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "a\u202eb",
]


class Outline(HTMLParser):
    """The elements and attributes of a page, as a browser's parser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def all(self, tag: str, of_class: str | None = None) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (of_class is None or of_class in (attributes.get("class") or "").split())
        ]


def run(path: Path, **how: object) -> StoredRun:
    store = open_store(str(path))
    write_run(store, **how)  # type: ignore[arg-type]
    return read(store)


def not_cifar100(run: StoredRun) -> StoredRun:
    run.recipe["data_sha256"] = "0" * 64
    return altered(run, {"data.sha256": "0" * 64}) if run.report else run


def curve_points(html: str, index: int) -> list[float]:
    """Return the x coordinates of a curve."""
    path = re.findall(r'<path class="curve [^"]*" d="([^"]*)"', html)[index]
    return [float(x) for x, _ in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_page_of_600_epochs_is_small(tmp_path: Path) -> None:
    html = page.render([run(tmp_path, epochs=600, kills=3)])
    assert len(html.encode()) < EPOCHS_MAX_BYTES


def test_three_kills_show_three_breaks_and_no_epoch_twice(tmp_path: Path) -> None:
    html = page.render([run(tmp_path, epochs=600, kills=3)])
    outline = Outline(html)
    assert len(outline.all("g", "stop")) == 3
    assert len(outline.all("rect", "attempt")) == 4
    assert len(outline.all("rect", "lost")) == 3
    curves = re.findall(r'<path class="curve', html)
    assert len(curves) == 6  # accuracy, two losses, throughput, learning rate, momentum
    for index in range(6):
        x = curve_points(html, index)
        assert len(x) == 600
        assert all(before < after for before, after in pairwise(x))
    assert len(outline.all("line", "break")) == 3 * 5  # in each of the five charts
    assert len(re.findall(r"<tr><th>\d+</th>", html)) == 600


def test_five_seeds_show_mean_and_interval(tmp_path: Path) -> None:
    accuracies = [0.8012, 0.8046, 0.8037, 0.7991, 0.8050]
    runs = [
        run(tmp_path / str(seed), epochs=30, seed=seed, accuracy=accuracy)
        for seed, accuracy in enumerate(accuracies)
    ]
    html = page.render(runs)
    half = 2.7764451051977987 * np.std(accuracies, ddof=1) / np.sqrt(5)
    assert f"{100 * np.mean(accuracies):.2f} % ± {100 * half:.2f}" in html  # 80.27 % ± 0.31
    assert "5 seeds (0, 1, 2, 3, 4)" in html
    assert len(Outline(html).all("path", "band")) == 2  # of accuracy and test loss
    for seed in range(5):
        assert f"{seed} (seed {seed})</li>" in html


def test_a_copy_of_a_run_changes_no_statistic(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(seed), epochs=9, seed=seed, accuracy=0.8 + seed / 100) for seed in range(3)]
    once, twice = page.render(runs), page.render([*runs, runs[0]])
    for pattern in (r'<path class="band[^>]*>', r'<path class="curve k9[^>]*>', r"[\d.]+ % ± [\d.]+"):
        assert re.findall(pattern, once)
        assert re.findall(pattern, twice) == re.findall(pattern, once)


def test_two_seeds_have_a_mean_and_no_interval(tmp_path: Path) -> None:
    html = page.render([run(tmp_path / str(seed), epochs=5, seed=seed) for seed in range(2)])
    assert "mean of 2 seeds" in html
    assert "±" not in html
    assert "interval" not in html
    assert not Outline(html).all("path", "band")


def test_runs_have_their_folders_names_and_differences_with_the_hash_next_to_it(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, epochs=5, seed=seed) for seed, name in enumerate(("first", "second"))]
    html = page.render(runs)
    for seed, one in enumerate(runs):
        label = f"{one.name} (seed {seed})"
        assert re.search(rf">{re.escape(label)}</a><br><small>{one.identity}</small>", html)
        assert f"{label}</li>" in html  # the legend
    alone = page.render(runs[:1])
    assert "<title>first · micronet</title>" in alone
    assert f" · {runs[0].identity}</p>" in alone


def test_a_hash_that_is_the_folders_name_is_not_repeated(tmp_path: Path) -> None:
    one = run(tmp_path / "a", epochs=5)
    named = replace(one, uri=str(tmp_path / one.identity))
    assert f"/{named.name}</p>" in page.render([named])
    assert "<br><small>" not in page.render([named, named])


def test_of_many_differences_a_label_has_the_seed_only(tmp_path: Path) -> None:
    names = ("first", "second", "seed 2")
    runs = [run(tmp_path / name, epochs=5, seed=seed) for seed, name in enumerate(names)]
    assert labels(runs) == ["first (seed 0)", "second (seed 1)", "seed 2"]
    runs[1].recipe.update(width=5, depth=28, mixup_alpha=0.0)
    assert labels(runs) == ["first (seed 0)", "second (seed 1)", "seed 2"]
    for one in runs:
        one.recipe["seed"] = 0
    assert labels(runs)[1] == "second (depth 28, width 5, mixup_alpha 0.0)"
    runs[0].recipe["holdout"] = 100
    assert labels(runs) == ["first", "second", "seed 2"]


def test_what_changed_between_attempts_is_shown(tmp_path: Path) -> None:
    one = run(tmp_path, epochs=5, kills=2)
    assert "changed between attempts" not in page.render([one])
    drift = [
        {"generation": 2, "field": "code", "before": "aaaa", "now": "<b>"},
        {"generation": 3, "field": "git", "before": None, "now": "bbbb"},
    ]
    html = page.render([altered(one, {"lineage.drift": drift})])
    assert "What changed between attempts" in html
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", html)]
    assert ["2", "code", "aaaa", "&lt;b&gt;"] in cells
    assert ["3", "git", "not known", "bbbb"] in cells


def test_the_demos_data_is_named_in_words(tmp_path: Path) -> None:
    one = not_cifar100(run(tmp_path, epochs=5))
    html = page.render([altered(one, {"data.source": "demo:"})])
    assert "generated, as train --demo does" in html
    assert "demo:" not in html


def test_the_recipe_is_shown_and_what_differs_comes_first(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", epochs=5), run(tmp_path / "b", epochs=5)]
    runs[1].recipe["weight_decay"] = 0.25
    html = page.render(runs)
    assert re.search(
        r'<tbody>\s*<tr class="marked"><th scope="row">weight_decay</th>\s*<td>0.1</td><td>0.25</td>', html
    )
    assert "b (weight_decay 0.25)" in html
    assert re.search(r'<th scope="row">mixup_alpha</th>\s*<td>0.4</td>', page.render(runs[:1]))


def test_another_recipe_is_no_seed_and_has_no_mean(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", epochs=5), run(tmp_path / "b", epochs=5, seed=1)]
    runs[1].recipe["width"] = 5
    html = page.render(runs)
    assert "±" not in html
    assert not Outline(html).all("path", "band")


def test_the_same_run_named_twice_is_one_seed(tmp_path: Path) -> None:
    one = run(tmp_path, epochs=5)
    assert "±" not in page.render([one, one])


def test_the_headline_says_whether_the_run_passes_and_where_it_would_stand(tmp_path: Path) -> None:
    passed = page.render([run(tmp_path / "a", epochs=5, accuracy=0.8)])
    assert "Reaches the challenge's 80 %" in passed
    assert "28th of 29" in passed
    missed = page.render([run(tmp_path / "b", epochs=5, accuracy=0.7999)])
    assert "Misses the challenge's 80 %" in missed
    assert "79.99 %" in missed
    assert "With 80 % it would be 28th of 29" in missed


def cards(html: str) -> dict[str, list[str]]:
    """Return the text of the paragraphs of each of the headline's cards, by its heading."""
    section = re.findall(r'<section class="headline".*?</section>', html, re.DOTALL)[0]
    return {
        heading: [re.sub(r"<[^>]+>", "", text) for text in re.findall(r"<p[^>]*>(.*?)</p>", card, re.DOTALL)]
        for heading, card in re.findall(r"<h2>([^<]+)</h2>(.*?)</div>", section, re.DOTALL)
    }


def test_a_compressed_run_is_shown_and_placed_by_its_official_score(tmp_path: Path) -> None:
    compressed, dense = run(tmp_path / "a", epochs=5, compressed=True), run(tmp_path / "b", epochs=5)
    html = page.render([compressed])
    figure, sentence, _ = cards(html)["Score"]
    assert figure == "0.05430"
    assert sentence.startswith("Under the official rules, lower is better. It would be 13th of 29")
    assert '<td class="number">0.0543</td>' in html  # of the leaderboard with this run
    figure, sentence, _ = cards(page.render([dense]))["Score"]
    assert figure == "0.46347"
    assert sentence.startswith("Under the leaderboard rules, lower is better.")
    both = page.render([compressed, dense])
    assert re.findall(r'<td class="number">([\d.]+) <small>(\w+)</small></td>', both) == [
        ("0.05430", "official"),
        ("0.46347", "leaderboard"),
    ]


def test_the_time_of_a_run_is_shown_where_it_is_known(tmp_path: Path) -> None:
    one = run(tmp_path, epochs=5)
    assert cards(page.render([one]))["Time"][0] == "10 h 42 min"
    assert cards(page.render([altered(one, {"training.wall_seconds": None})]))["Time"][0] == "not known"


def test_a_place_is_given_on_the_leaderboards_own_data_only(tmp_path: Path) -> None:
    html = page.render([not_cifar100(run(tmp_path, epochs=5, accuracy=0.9))])
    assert "Reaches the challenge" not in html
    assert "No place on the 2019 leaderboard" in html
    assert "of 29" not in html


def test_80_per_cent_are_asked_for_on_cifar100_only(tmp_path: Path) -> None:
    asked, other = run(tmp_path / "a", epochs=5), not_cifar100(run(tmp_path / "b", epochs=5, seed=1))
    running = not_cifar100(run(tmp_path / "c", epochs=8, finished=False))
    for runs, lines, columns in (
        ([asked], 2, 0),  # over the epochs, and against the score
        ([other], 0, 0),
        ([running], 0, 0),
        ([other, running], 0, 0),
    ):
        html = page.render(runs)
        assert len(Outline(html).all("line", "threshold")) == lines
        assert html.count('<th scope="col">80 %</th>') == columns
    html = page.render([asked, other])
    assert '<th scope="col">80 %</th>' in html
    assert "not asked for" in html


def test_the_precision_explains_why_best_and_final_differ(tmp_path: Path) -> None:
    bf16 = run(tmp_path, epochs=5)
    assert bf16.report is not None
    assert bf16.report.accuracy.best.epoch == 5
    final = bf16.report.accuracy.final
    clause = "It was measured in bf16, as each epoch is: these are the final weights"
    bf16 = altered(bf16, {"accuracy.best.value": final + 0.001})
    assert f"{clause}, so the difference comes from the precision." in page.render([bf16])
    bf16 = altered(bf16, {"accuracy.best.value": final})
    assert "It was measured in bf16, as each epoch is." in page.render([bf16])
    bf16 = altered(bf16, {"accuracy.best.epoch": 4})
    html = page.render([bf16])
    assert "It was measured in bf16, as each epoch is; the final weights are measured in fp32." in html
    assert "precision of its training (bf16), the final accuracy in fp32" in html
    bf16 = altered(bf16, {"training.precision": "fp32"})
    bf16.recipe["precision"] = "fp32"
    assert "It was measured in" not in page.render([bf16])
    assert "precision of its training" not in page.render([bf16])


def test_each_run_has_its_own_score(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, epochs=5) for name in ("a", "b", "c")]
    runs[1] = altered(runs[1], {"score.official.score": 0.25})
    html = page.render(runs)
    assert re.findall(r"10.49 B, of ([^<]+)</p>", html) == ["a, c", "b"]
    assert '<td class="number">0.25000</td>' in html


def test_what_all_runs_share_is_written_once(tmp_path: Path) -> None:
    html = page.render([run(tmp_path / str(seed), epochs=5, seed=seed) for seed in range(2)])
    assert html.count('<th scope="row">depth</th>') == 1
    assert re.search(r'<th scope="row">depth</th>\s*<td colspan="2">22</td>', html)
    assert re.search(r'<th scope="row">seed</th>\s*<td>0</td><td>1</td>', html)


def test_the_score_is_broken_down_by_block(tmp_path: Path) -> None:
    html = page.render([run(tmp_path, epochs=5)])
    rows = dict(
        re.findall(r'<tr><th scope="row">(stem|block\d|linear)</th><td class="number">([\d,]+)</td>', html)
    )
    assert rows["stem"] == "432"  # 3 x 3 x 3 x 16
    # 96 -> 192 channels: two 3x3 convolutions, a 1x1 shortcut, and two batch norms.
    assert rows["block4"] == f"{96 * 192 * 9 + 192 * 192 * 9 + 96 * 192 + 2 * 96 + 2 * 192:,}"
    assert rows["linear"] == "38,500"
    assert "block9" in rows


def test_a_recipe_that_is_not_the_reports_network_is_not_recounted(tmp_path: Path) -> None:
    for changed in ({"depth": 16}, {"depth": 23}, {"width": 10**9}, {"depth": "22"}, {"depth": -2}):
        one = run(tmp_path, epochs=5)
        one.recipe.update(changed)
        assert "block4" not in page.render([one])


def test_a_forged_shape_of_images_is_not_counted(tmp_path: Path) -> None:
    one = run(tmp_path, epochs=5)
    for forged in ([3, 10**6, 10**6], [3, 256, 256]):
        assert "block4" not in page.render([altered(one, {"model.input_shape": forged})])


def test_an_unfinished_run_has_a_page(tmp_path: Path) -> None:
    html = page.render([run(tmp_path, epochs=40, kills=1, finished=False)])
    assert "Not finished" in html
    assert "After epoch 20" in html
    assert len(curve_points(html, 0)) == 20
    assert len(Outline(html).all("g", "stop")) == 1
    assert "No predictions yet" in html
    assert "No sheet of training images here" in html


def test_misclassified_test_images_are_shown_with_their_answers(tmp_path: Path) -> None:
    one = run(tmp_path, epochs=5)
    assert one.predictions is not None
    mistakes = one.predictions.worst_mistakes()
    assert mistakes is not None
    shown = re.findall(
        r'<li><img src="data:image/png;base64,([^"]+)" alt="Test image (\d+)"><strong>([^<]+)</strong>'
        r"<span>([^<]+)</span>",
        page.render([one]),
    )
    assert [(base64.b64decode(png), int(index), name, answer) for png, index, name, answer in shown] == [
        (each.png, each.index, each.name, each.predicted_as) for each in mistakes
    ]
    assert len(shown) == 24


def test_an_older_run_without_images_of_its_mistakes_has_a_page(tmp_path: Path) -> None:
    one = run(tmp_path, epochs=5)
    assert one.predictions is not None
    older = replace(one, predictions=replace(one.predictions, mistakes=None, images=None))
    assert "stored no test images, as older versions did not" in page.render([older])


def test_before_the_first_epoch_there_is_a_page_too(tmp_path: Path) -> None:
    run(tmp_path, epochs=40, finished=False)
    (tmp_path / "history.jsonl").unlink()
    html = page.render([read(open_store(str(tmp_path)))])
    assert "Not finished" in html
    assert "<path" not in html


def test_without_superclasses_the_page_says_so(tmp_path: Path) -> None:
    html = page.render([run(tmp_path, epochs=5, superclasses=[])])
    assert "do not name the superclass of each class" in html
    assert not Outline(html).all("rect", "wrong")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_out_of_a_bucket_stays_text(tmp_path: Path, text: str) -> None:
    classes = [f"{text}{index}" for index in range(10)]
    hostile = run(
        tmp_path / "run", epochs=5, kills=1, run_id=text, classes=classes, superclasses=[text] * 5 + ["b"] * 5
    )
    hostile.recipe["seed"] = text
    hostile.recipe["width"] = text
    hostile.attempts[0] = type(hostile.attempts[0])(1, None, None, text, text, text, None)
    hostile = altered(hostile, {"environment.git": text, "data.source": text})
    plain = run(tmp_path / "plain", epochs=5, kills=1, classes=["c"] * 10, superclasses=["a"] * 5 + ["b"] * 5)
    plain.recipe["width"] = "c"
    plain.attempts[0] = type(plain.attempts[0])(1, None, None, "c", "c", "c", None)
    for runs in ([hostile], [hostile, plain]):
        html = page.render(runs)
        outline = Outline(html)
        assert str(escape(text)) in html
        assert len(outline.all("script")) == 1
        assert len(outline.all("img")) == (1 + 24 if len(runs) == 1 else 0)
        assert not any(name.startswith("on") for _, attributes in outline.elements for name in attributes)
        links = {attributes.get("href") for attributes in outline.all("a")}
        assert all(link and link.startswith(("#", "https://micronet-challenge.github.io/")) for link in links)
    names = [[tag for tag, _ in Outline(page.render([one])).elements] for one in (hostile, plain)]
    assert names[0] == names[1]


def test_the_policy_allows_this_style_and_script_and_nothing_else(tmp_path: Path) -> None:
    html = page.render([run(tmp_path, epochs=5)])
    outline = Outline(html)
    policy = next(meta["content"] for meta in outline.all("meta") if "http-equiv" in meta)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any("style" in attributes for _, attributes in outline.elements)
    assert {(image["src"] or "")[:22] for image in outline.all("img")} == {"data:image/png;base64,"}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", html)


def test_every_figure_has_its_text(tmp_path: Path) -> None:
    outline = Outline(page.render([run(tmp_path, epochs=5, kills=2)]))
    ids = {attributes.get("id") for _, attributes in outline.elements}
    images = [svg for svg in outline.all("svg") if svg.get("role") == "img"]
    assert len(images) == 5 + 4  # curves; accuracy against score, standings, timeline, confusion
    assert all(svg["aria-labelledby"] in ids for svg in images)
    named = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(named) == len(set(named))


def test_it_is_published_next_to_the_report(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_run(store, epochs=5)
    assert page.publish(store) == f"{tmp_path}/report.html"
    assert (tmp_path / "report.html").read_text("utf-8") == page.render([read(store)])
