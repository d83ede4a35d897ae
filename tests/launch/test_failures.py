# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""launch/tpu.sh when gcloud fails: what costs money is never left behind unsaid."""

import json
import shutil

import pytest
from launch_cases import DELETE, PLACE, RECIPE, SLICE

pytestmark = pytest.mark.slow


def check_what_is_left(cloud, output, context):
    """What exists is named with the command that deletes it, and nothing else is claimed."""
    if cloud.exists:
        assert "run1" in output, context
        named = DELETE in output
        if "queued-resource run1" not in output and not cloud.state["queued"]:
            named = named or "+ gcloud compute tpus tpu-vm delete run1" in output
        assert named, context
        assert "still exists" in output or "may still be there" in output, context
    else:
        assert "still exists" not in output, context


def calls_of(cloud, prepare, arguments):
    prepare()
    before = cloud.state["count"]
    ran = cloud.run("tpu.sh", *arguments, HF_TOKEN="s3cret")
    assert ran.returncode == 0, ran.stderr
    return before, cloud.state["kinds"][before:]


@pytest.mark.parametrize(
    ("span", "when"),
    [
        *(("once", "before"), ("kind", "after")),
        pytest.param("kind", "before", marks=pytest.mark.slow),
        pytest.param("once", "after", marks=pytest.mark.slow),
        pytest.param("all", "before", marks=pytest.mark.slow),
        pytest.param("all", "after", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "command",
    ["all", *(pytest.param(c, marks=pytest.mark.slow) for c in ("create", "run", "delete"))],
)
def test_a_failure_at_any_call_leaves_nothing_unsaid(cloud, command, span, when):
    """The n-th call fails: once; it and all later ones of its kind; or everything from there on.

    "after": what was asked for is done all the same, only the answer is lost.
    """

    cloud.reset(road=["ACTIVE"])
    if command in ("run", "delete"):
        assert cloud.run("tpu.sh", "create", *SLICE).returncode == 0
    created = cloud.path / "created"
    (cloud.path / "homes").mkdir(exist_ok=True)
    shutil.copytree(cloud.path / "homes", created)
    slice_state = cloud.state

    def prepare():
        cloud.reset(**slice_state)
        shutil.copytree(created, cloud.path / "homes")

    arguments = {
        "create": ["create", *SLICE],
        "run": ["run", *PLACE, *RECIPE],
        "delete": ["delete", *PLACE],
        "all": ["all", *SLICE, *RECIPE],
    }[command]
    before, kinds = calls_of(cloud, prepare, arguments)
    assert len(kinds) >= 5
    seen = set()
    for n, kind in enumerate(kinds, start=1):
        if span == "kind" and kind in seen:
            continue  # later calls of a kind fail with the first
        seen.add(kind)
        prepare()
        state = cloud.state
        fault = {"at": before + n, "span": span, "when": when}
        (cloud.path / "state.json").write_text(json.dumps({**state, "fault": fault}))
        ran = cloud.run("tpu.sh", *arguments, HF_TOKEN="s3cret")
        output = ran.stdout + ran.stderr
        context = f"call {n} ({kind}) fails {span}, {when}: {ran.returncode}\n{output}"
        check_what_is_left(cloud, output, context)
        assert "s3cret" not in output + cloud.calls
        if ran.returncode == 0:
            # Only where a passing fault was overcome, or where the deed was done.
            assert span == "once" or kind in ("tpu-vm ssh follow", "queued-resources delete")
            if command in ("all", "delete"):
                assert cloud.exists == [], context
            if command in ("all", "run"):
                assert cloud.starts() == 1, context
            if command == "create":
                assert (cloud.path / "installed").exists(), context
