# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The report from run directories with chosen numbers, and from the published curves."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation import runs
from rlvlm_jax.report import __main__ as report
from rlvlm_jax.report import browser, curves, figures, tables
from tests.run_directories import response, write_run

PAPER = Path(__file__).parents[3] / "shared" / "data" / "maye_figures.json"
HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=alert(1)> \\boxed{2}"
# The paper's table 3, RL mean in percent: validation, test of pass@8, pass@1 T 0.6, pass@1 T 0.01.
TABLE_3 = {
    "Qwen2-VL-7B@mm_math5k": (48.5, 35.2, 23.4, 14.1, 24.1, 14.1),
    "Qwen2.5-VL-7B@mm_math5k": (64.8, 54.6, 39.8, 29.0, 40.3, 31.8),
    "Qwen2-VL-7B@geometry3k": (52.5, 58.0, 25.2, 30.3, 26.7, 31.1),
    "Qwen2.5-VL-7B@geometry3k": (60.8, 69.3, 33.4, 41.5, 34.6, 42.0),
}


@pytest.fixture
def sweep(tmp_path):
    """Two seeds of RL with images, hostile text and reflection, and a vanilla evaluation."""
    for seed in (0, 1):
        path = tmp_path / "rl" / f"seed_{seed}"
        (path / "images").mkdir(parents=True)
        Image.new("RGB", (40, 30), "red").save(path / "images" / "a.png")
        steps = []
        for step in range(6):
            rows = [
                response(
                    f"q{n // 2}",
                    n % 2,
                    text=HOSTILE if n == 0 else f"wait, it is {n}: \\boxed{{{n}}}",
                    reflective=n > 0,
                    image="images/a.png" if n < 2 else "images/missing.png",
                    truncated=n == 3,
                )
                for n in range(4)
            ]
            numbers = {
                "response/length": 20.0 + step + seed,
                "reflection/ratio": 0.1 * step,
                "reflection_words/wait": 3.0,
                "throughput/rollout_tokens_per_s": 100.0,
                "time/step_s": 2.0,
                "epoch/train_accuracy": 0.3 + 0.01 * step,
                "eval/val/pass@1_t1.0_unbiased": 0.4,
                "eval/val/pass@2_t1.0_unbiased": 0.1 * (step + 1),
                "time/eval_s": 1.0,
                "memory/host_rss_gib": 2.0 + 0.1 * step,
            }
            steps.append((numbers, rows))
        evaluations = [(s, "val", [1, int(s == 3), 0, 0]) for s in (0, 3, 6)]
        evaluations += [(s, "test", [1, int(s == 3), 0, 0]) for s in (0, 3, 6)]
        write_run(path, seed=seed, steps=steps, evaluations=evaluations)
    untrained = [(0, split, [1, 0, 0, 0]) for split in ("val", "test")]
    write_run(tmp_path / "vanilla", mode="eval", evaluations=untrained)
    return [tmp_path / "rl", tmp_path / "vanilla"]


def make(tmp_path, *arguments):
    out = tmp_path / "out" / "report.html"
    assert report.main([*map(str, arguments), f"--out={out}"]) == 0
    return out.read_text(encoding="utf-8"), out.with_name("report_files")


def rows_of(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_page_figures_and_numbers(tmp_path, sweep):
    text, files = make(tmp_path, *sweep)
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+|http-equiv", "", text)  # nothing to load
    names = {file.name for file in files.iterdir()}
    for figure in ("dynamics", "accuracy", "reflection", "words"):
        assert {f"{figure}.svg", f"{figure}.png"} <= names
    with Image.open(files / "dynamics.png") as image:
        assert np.asarray(image.convert("L")).std() > 5  # not blank
    validation, _, rl, vanilla = rows_of(files / "accuracy.csv")
    assert (validation["questions"], validation["selected"]) == ("validation", "")  # it chose
    assert (rl["method"], rl["n"], rl["before training"]) == ("RL", "2", "25.0")
    assert (rl["mean"], rl["max (optimistic)"]) == ("37.5", "50.0")
    assert (rl["selected"], rl["std (population)"], rl["std (sample)"]) == ("50.0", "0.0", "0.0")
    assert float(rl["95 % low"]) <= 50 <= float(rl["95 % high"])
    assert (vanilla["method"], vanilla["before training"]) == ("Vanilla", "25.0")
    assert vanilla["std (sample)"] == ""  # of one run
    differences = rows_of(files / "difference.csv")
    assert [row["difference"] for row in differences] == ["+25.0", "+0.0", "+50.0"]
    assert [row["number of questions"] for row in differences] == ["4", "2", "2"]
    kinds = rows_of(files / "kinds.csv")
    on_test = [row for row in kinds if row["questions"] == "test"]
    assert [(row["method"], row["kind"], row["selected"]) for row in on_test] == [
        *(("RL", "text", "50.0"), ("RL", "vision", "50.0")),
        *(("Vanilla", "text", "50.0"), ("Vanilla", "vision", "0.0")),
    ]
    assert {row["method"] for row in kinds if row["questions"] == "validation"} == {"Vanilla"}
    assert [row["n"] for row in differences] == ["2, 1"] * 3
    (estimates,) = rows_of(files / "pass_at_k.csv")
    assert (estimates["k = 1"], estimates["k = 2"]) == ("40.0", "60.0")
    (speed,) = rows_of(files / "speed.csv")
    assert float(speed["whole run (s)"]) > 0
    assert float(speed["evaluations %"]) > 0
    assert speed["host memory (GiB)"] == "2.5"
    assert speed["device memory (GiB)"] == ""  # of a CPU nothing is known
    points = [row for row in rows_of(files / "curves.csv") if row["metric"] == "response/length"]
    assert [(row["n"], row["x"], row["mean"], row["std (population)"]) for row in points[:2]] == [
        ("2", "1", "20.5", "0.5"),
        ("2", "2", "21.5", "0.5"),
    ]
    (length,) = rows_of(files / "length.csv")
    assert (length["first"], length["last"]) == ("20.5", "25.5")
    assert rows_of(files / "words.csv")[0]["total"] == "18"
    assert "Vanilla" in text
    assert "selected" in text


@pytest.mark.slow
def test_text_of_a_model_stays_text(tmp_path, sweep):
    text, _ = make(tmp_path, *sweep)
    assert text.count("<script") == 2  # the data and the page's own
    assert text.count("</script>") == 2
    embedded = re.search(r'<script type="application/json" id="responses">(.*?)</script>', text)[1]
    found = json.loads(embedded)
    assert found["groups"][0]["responses"][0]["response"] == HOSTILE
    assert "<img src=x" not in text


def test_images_go_in_once_and_missing_ones_are_marked(sweep):
    methods = [curves.measured(group) for group in runs.read_groups(sweep)]
    found = browser.collect(methods, 10_000)
    assert found["shown"] == found["total"] == 2 * (6 * 4 + 6 * 4) + 8
    assert len(found["images"]) == 2  # one a run directory
    assert found["groups"][0]["images"] == [0]
    assert found["groups"][1]["images"] == [None]
    fewer = browser.collect(methods, 30)
    assert 20 <= fewer["shown"] <= 30
    assert {group["step"] for group in fewer["groups"]} >= {0, 2, 4, 6}  # from the whole run
    assert all(len(group["responses"]) in (1, 2) for group in fewer["groups"])


def test_large_images_are_scaled_down(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.png")
    images = browser._Images()
    assert images.add(tmp_path / "big.png") == 0
    assert images.uris[0].startswith("data:image/jpeg;base64,")
    assert len(images.uris[0]) < 400_000


def test_there_is_a_limit_to_all_images(tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "MAX_IMAGE_BYTES", 400)
    images = browser._Images()
    for number in range(9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    found = [images.add(tmp_path / f"{number}.png") for number in range(9)]
    assert found[:2] == [0, 1]
    assert found[-3:] == [None] * 3
    assert images.add(tmp_path / "a\0b.png") is None


def test_transparent_images_lie_on_white(tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "LARGEST", 10)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    images = browser._Images()
    images.add(tmp_path / "clear.png")
    encoded = base64.b64decode(images.uris[0].partition(",")[2])
    with Image.open(io.BytesIO(encoded)) as image:
        assert np.asarray(image).min() > 250


def test_odd_names_and_texts_are_no_obstacle(tmp_path):
    place = write_run(tmp_path / "costs $5 or $x", steps=[({"response/length": 1.0}, [])])
    other = write_run(tmp_path / "b", steps=[({"response/length": 1.0}, [])], note="\ud800")
    text, _ = make(tmp_path, place, other)
    assert "costs $5 or $x" in text


def test_runs_of_different_programs_are_told(tmp_path):
    for seed, revision in ((0, "abc"), (1, "def")):
        path = write_run(tmp_path / "rl" / f"seed_{seed}", seed=seed)
        about = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**about, "git_revision": revision}))
    text, _ = make(tmp_path, tmp_path / "rl")
    assert "The runs of RL differ in git_revision" in text


def test_different_versions_of_the_judge_are_told(tmp_path):
    for seed, judge in ((0, None), (1, 2)):
        evaluations = [(0, "val", [1, 0])]
        write_run(tmp_path / f"seed_{seed}", seed=seed, judge=judge, evaluations=evaluations)
    write_run(tmp_path / "seed_1", seed=1, judge=3, evaluations=[(2, "val", [1, 0])])  # resumed
    text, _ = make(tmp_path, tmp_path, write_run(tmp_path / "eval", mode="eval", judge=2))
    told = "RL seed 0 by version 1, RL seed 1 by versions 2 and 3, Vanilla seed 0 by version 2."
    assert f"so accuracies cannot be compared: {told}" in text


@pytest.mark.parametrize("judge", [None, 2])
def test_nothing_is_told_of_runs_by_the_same_judge(tmp_path, judge):
    for seed in (0, 1):
        evaluations = [(0, "val", [1, 0])]
        write_run(tmp_path / f"seed_{seed}", seed=seed, judge=judge, evaluations=evaluations)
    text, _ = make(tmp_path, tmp_path)
    assert "versions of the judge" not in text


def test_questions_that_were_trained_on_are_told(tmp_path):
    path = write_run(tmp_path / "rl")
    about = json.loads((path / "config.json").read_text())
    data = {"train": {"used": 9}, "val": {"also_in_train": []}, "test": {"also_in_train": ["<q7>"]}}
    (path / "config.json").write_text(json.dumps({**about, "data": data}))
    text, _ = make(tmp_path, path)
    assert "test set that are in its training set too: 1, such as &lt;q7&gt;." in text
    assert "val set that" not in text


@pytest.mark.slow
def test_accuracy_may_be_drawn_over_steps(tmp_path, sweep):
    _, files = make(tmp_path, *sweep, "--over=step")
    points = [row for row in rows_of(files / "curves.csv") if row["metric"].startswith("eval/val")]
    assert {row["x is"] for row in points} == {"step"}
    assert {float(row["x"]) for row in points if row["method"] == "RL"} >= {0, 3, 6}


def test_no_two_methods_look_alike():
    methods = [curves.Method(str(n), "RL", published=False, find=lambda _: None) for n in range(12)]
    assert len({repr(look) for look in figures.line_styles(methods).values()}) == 12


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's curves are not at hand")
def test_published_curves_alone_give_the_papers_table_and_correlations():
    published = curves.published(PAPER)
    correlations = (0.75, 0.77, 0.69, 0.39)
    for (name, methods), expected in zip(published.items(), correlations, strict=True):
        written = [row for row in tables.accuracy(methods).rows if row[2].startswith("RL")]
        means = {row[:2]: float(row[5]) for row in written}
        for n, mean in enumerate(TABLE_3[name]):
            cell = (("validation", "test")[n % 2], list(curves.SETTINGS.values())[n // 2])
            assert means[cell] == pytest.approx(mean, abs=0.1), (name, cell)
        (row,) = tables.correlation(methods).rows
        assert float(row[2]) == pytest.approx(expected, abs=0.02), name


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's curves are not at hand")
@pytest.mark.slow
@pytest.mark.parametrize("beside_ours", [False, True])
def test_published_curves_in_a_page(tmp_path, sweep, beside_ours):
    content = json.loads(PAPER.read_text())
    content["settings"] = {"a": content["settings"]["a"]}
    (tmp_path / "one.json").write_text(json.dumps(content))
    text, files = make(tmp_path, *(sweep if beside_ours else []), f"--paper={tmp_path}/one.json")
    assert "Published: Qwen2-VL-7B@mm_math5k" in text
    assert (files / "Qwen2-VL-7B_mm_math5k-dynamics.svg").exists()
    assert (files / "dynamics.svg").exists() == beside_ours


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to report"),
        (["nowhere"], "nowhere is no run directory"),
        (["--paper=nowhere.json"], "--paper=nowhere.json cannot be read"),
        (["--paper=nowhere.json", "--over=step"], "published curves are over epochs"),
    ],
)
def test_what_cannot_be_reported_is_said(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        report.main([*arguments, f"--out={tmp_path / 'r.html'}"])
    assert not (tmp_path / "r.html").exists()


def test_a_directory_is_no_page(tmp_path):
    for out in (tmp_path, "."):
        with pytest.raises(InputError, match="is a directory; name a file"):
            report.main([str(write_run(tmp_path / "run")), f"--out={out}"])


def test_damaged_file_of_curves_is_said(tmp_path):
    (tmp_path / "p.json").write_text('{"settings": {"a": "x"}}')
    with pytest.raises(InputError, match="is not a file of published curves"):
        report.main([f"--paper={tmp_path / 'p.json'}", f"--out={tmp_path / 'r.html'}"])
