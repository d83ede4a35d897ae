# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m rlvlm_jax.report RUN_DIR [RUN_DIR ...] --out=report.html`.

Reads run directories (or directories of `seed_N` runs) and writes one page. Next to it, in
report_files/, writes each figure as SVG and PNG and each table as CSV.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlvlm_jax import cli
from rlvlm_jax.errors import InputError

if TYPE_CHECKING:
    from rlvlm_jax.report import curves


def main(argv: Sequence[str]) -> int:
    """Writes the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rlvlm_jax.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN_DIR")
    parser.add_argument("--out", required=True, help="the page to write, such as report.html")
    parser.add_argument("--paper", help="JSON file of published curves to draw with the runs")
    parser.add_argument("--over", choices=("epoch", "step"), default="epoch", help="of accuracies")
    parser.add_argument("--title", default="rlvlm_jax report")
    parser.add_argument("--responses", type=int, default=10_000, help="maximum number in the page")
    arguments = parser.parse_args(argv)
    if not arguments.runs and not arguments.paper:
        raise InputError("nothing to report: give one or more run directories, or --paper=FILE")
    if arguments.paper and arguments.over == "step":
        raise InputError("--over=step: published curves are over epochs; leave out --paper")
    out = Path(arguments.out)
    if not out.name or out.is_dir():
        raise InputError(f"--out={arguments.out} is a directory; name a file, such as report.html")
    # Imported here, so that a bad flag is reported before matplotlib is loaded.
    from rlvlm_jax.evaluation import runs
    from rlvlm_jax.report import browser, curves, figures, page, tables

    ours = [curves.measured(group, arguments.over) for group in runs.read_groups(arguments.runs)]
    papers = curves.published(arguments.paper) if arguments.paper else {}
    methods_by_heading = {"Runs": ours} if ours else {}
    for name, methods in papers.items():
        methods_by_heading[f"Published: {name}"] = [*ours, *methods]
    sections = []
    files: dict[str, bytes] = {}
    for heading, methods in methods_by_heading.items():
        layouts = figures.layouts(methods)
        shown = methods if heading == "Runs" else [m for m in methods if m.published]
        section_tables = tables.all_tables(shown)
        sections.append((heading, methods, layouts, section_tables))
        prefix = "" if heading == "Runs" else heading.removeprefix("Published: ") + "-"
        for layout in layouts:
            for form in ("svg", "png"):
                files[f"{prefix}{layout.name}.{form}"] = figures.render(layout, methods, form)
        for table in (*section_tables, tables.points(shown, layouts)):
            files[f"{prefix}{table.name}.csv"] = tables.to_csv(table).encode()
    configs = {
        f"{method.label}, seed {run.seed}": {"config": run.config, **run.about}
        for method in ours
        for run in method.group.runs
    }
    responses = browser.collect(ours, arguments.responses)
    notes = judges(ours)
    notes += [note for method in ours for note in (*differences(method), *overlaps(method))]
    write(out, page.build(arguments.title, sections, notes, configs, responses), files)
    return cli.DONE


def judges(methods: Sequence["curves.Method"]) -> list[str]:
    """Returns a warning that lists each run's judge version, if not all are the same."""
    versions_by_run = {
        f"{method.label} seed {run.seed}": run.judge_versions
        for method in methods
        for run in method.group.runs
    }
    if len(set().union(*versions_by_run.values())) < 2:
        return []
    decided = [
        f"{label} by version{'s' * (len(versions) > 1)} {' and '.join(map(str, versions))}"
        for label, versions in versions_by_run.items()
    ]
    return [
        "Warning: different versions of the judge decided what is correct, so accuracies cannot be "
        f"compared: {', '.join(decided)}."
    ]


def differences(method: "curves.Method") -> list[str]:
    """Returns a note per difference in program or device between the runs of one group."""
    notes = []
    for name in ("git_revision", "versions", "device_kind", "device_count"):
        values = {json.dumps(run.about.get(name), sort_keys=True) for run in method.group.runs}
        if len(values) > 1:
            notes.append(
                f"The runs of {method.label} differ in {name}: {'; '.join(sorted(values))}"
            )
    return notes


def overlaps(method: "curves.Method") -> list[str]:
    """Returns a note per evaluation set of a group that shares questions with its training set."""
    data = method.group.runs[0].about.get("data", {})
    return [
        f"Questions of {method.label}'s {name} set that are in its training set too: "
        f"{len(report['also_in_train'])}, such as {report['also_in_train'][0]}."
        for name, report in data.items()
        if report.get("also_in_train")
    ]


def write(out: Path, text: str, files: dict[str, bytes]) -> None:
    """Writes the page to `out`, and the other files to a directory NAME_files next to it.

    Raises:
        InputError: they cannot be written.
    """
    folder = out.with_name(f"{out.stem}_files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("/", "_").replace("@", "_")).write_bytes(content)
        out.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"--out={out} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    cli.exit_with(main)
