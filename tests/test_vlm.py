# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`VLM` with the bundled model: what a notebook relies on.

Nearly all calls have four prompts with up to two images, so that they share a few compilations.
"""

import importlib.resources
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import rlvlm_jax
from rlvlm_jax.errors import InputError

BUNDLED = Path(str(importlib.resources.files("rlvlm_jax") / "assets" / "tiny"))
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VISION_TOKENS = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
SAMPLES, LIMIT = 4, 8
HOT = 1e4  # a temperature at which all allowed tokens are as good as equally probable


def chat(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def make_image(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def vlm():
    return rlvlm_jax.VLM.from_pretrained(str(BUNDLED))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Four prompts with one, no, two and one image; one of them a file."""
    path = tmp_path_factory.mktemp("images") / "image.png"
    make_image(84, 56, 3).save(path)
    return [
        {"text": chat(f"{IMAGE}How many?"), "images": [make_image(60, 90, 0)]},
        {"text": chat("What is 2 + 3?"), "images": []},
        {
            "text": chat(f"{IMAGE}{IMAGE}Which is larger?"),
            "images": [make_image(112, 56, 1), make_image(70, 70, 2)],
        },
        {"text": chat(f"{IMAGE}What is it?"), "images": [str(path)]},
    ]


@pytest.fixture(scope="module")
def sampled(vlm, prompts):
    return vlm.generate(prompts, n=SAMPLES, max_tokens=LIMIT)


@pytest.fixture(scope="module")
def greedy(vlm, prompts):
    """One answer to each prompt."""
    return [one for (one,) in vlm.generate(prompts, temperature=0, max_tokens=LIMIT)]


@pytest.fixture(scope="module")
def hot(vlm, prompts):
    """Sixty-four random responses to each prompt, eight for each of its eight copies."""
    return vlm.generate(prompts * 8, n=8, temperature=HOT, max_tokens=LIMIT, seed=5)


def tokens(completions):
    return [[one.tokens for one in group] for group in completions]


def assert_same(got, expected):
    """The same tokens, and the same log-probabilities but for the rounding of other shapes."""
    assert tokens(got) == tokens(expected)
    for some, others in zip(got, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


# ---------------------------------------------------------------- what comes back


def test_completions_have_the_promised_types_and_lengths(vlm, prompts, sampled, hot):
    assert [len(group) for group in sampled] == [SAMPLES] * len(prompts)
    assert [len(group) for group in hot] == [8] * 8 * len(prompts)
    for one in (one for group in [*sampled, *hot] for one in group):
        assert isinstance(one.text, str)
        assert isinstance(one.tokens, list)
        assert {type(token) for token in one.tokens} == {int}
        assert 1 <= len(one.tokens) <= LIMIT
        assert isinstance(one.logprobs, np.ndarray)
        assert (one.logprobs.dtype, one.logprobs.shape) == (np.float32, (len(one.tokens),))
        assert (one.logprobs <= 0).all()
        assert one.text == vlm.tokenizer.decode(one.tokens)


def test_a_response_ends_at_its_first_stop_token_or_at_the_limit(vlm, sampled, hot):
    reasons = set()
    for one in (one for group in [*sampled, *hot] for one in group):
        ended = one.tokens[-1] in vlm.tokenizer.stop_ids
        assert one.finish_reason == ("stop" if ended else "length")
        assert ended or len(one.tokens) == LIMIT
        assert not set(one.tokens[:-1]) & set(vlm.tokenizer.stop_ids)
        reasons.add(one.finish_reason)
    assert reasons == {"stop", "length"}


def test_vision_tokens_are_never_sampled_and_all_others_are(vlm, hot):
    """Some 2000 uniform draws out of 507 tokens: without the ban all five would be among them."""
    drawn = {token for group in hot for one in group for token in one.tokens}
    banned = {vlm.tokenizer.token_id(f"<|{name}|>") for name in VISION_TOKENS}
    assert len(banned) == 5
    assert not drawn & banned
    assert len(drawn) > 450


def test_no_prompts_give_nothing(vlm):
    assert vlm.generate([]) == []
    assert vlm.logprobs([], []) == []


# ---------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("number", range(SAMPLES))
def test_the_sampler_records_the_models_own_logprobs(vlm, prompts, sampled, number):
    chosen = [group[number] for group in sampled]
    found = vlm.logprobs(prompts, [one.tokens for one in chosen])
    for one, lps in zip(chosen, found, strict=True):
        assert lps.dtype == np.float32
        np.testing.assert_allclose(one.logprobs, lps, atol=1e-5)


@pytest.mark.slow
def test_they_are_those_of_temperature_1_whatever_was_sampled(vlm, prompts, hot, greedy):
    for chosen in ([group[0] for group in hot[:4]], greedy):
        found = vlm.logprobs(prompts, [one.tokens for one in chosen])
        for one, lps in zip(chosen, found, strict=True):
            np.testing.assert_allclose(one.logprobs, lps, rtol=1e-5, atol=1e-5)


def test_a_response_does_not_depend_on_its_neighbours(vlm, prompts):
    """An empty response has no log-probabilities, and an array of tokens is as good as a list."""
    responses = [[3, 4, 5, 6], [], [7], np.array([8, 9])]
    found = vlm.logprobs(prompts, responses)
    assert [lps.shape for lps in found] == [(4,), (0,), (1,), (2,)]
    assert {lps.dtype for lps in found} == {np.dtype(np.float32)}
    turned = vlm.logprobs(prompts[::-1], responses[::-1])[::-1]
    longer = vlm.logprobs(prompts, [[3, 4, 0], [1, 2], [7, 7], [8, 9, 10]])
    for lps, other, more in zip(found, turned, longer, strict=True):
        np.testing.assert_allclose(lps, other, atol=1e-5)
        shared = 2 if len(lps) >= 2 else len(lps)
        np.testing.assert_allclose(lps[:shared], more[:shared], atol=1e-5)


def test_images_matter(vlm, prompts):
    """Each of two images, and their order."""
    text, (first, second) = prompts[2]["text"], prompts[2]["images"]
    other = make_image(*second.size, 9)
    pairs = [(first, second), (second, first), (first, other), (second, second)]
    found = vlm.logprobs([{"text": text, "images": pair} for pair in pairs], [[3, 4, 5]] * 4)
    for one, lps in enumerate(found):
        assert all(np.abs(lps - earlier).max() > 1e-4 for earlier in found[:one])


# ---------------------------------------------------------------- sampling


def test_greedy_is_the_same_for_every_seed_and_sample(vlm, prompts, greedy):
    again = vlm.generate(prompts, temperature=0, max_tokens=LIMIT, seed=99)
    assert tokens(again) == [[one.tokens] for one in greedy]


def test_greedy_takes_the_most_probable_token(greedy, sampled, hot):
    """Wherever a sampled response leaves the greedy one, its token was not more probable."""
    compared = 0
    for number, best in enumerate(greedy):
        others = [one for group in hot[number::4] for one in group] + sampled[number]
        for one in others:
            pairs = zip(one.tokens, best.tokens, strict=False)
            fork = next((t for t, (a, b) in enumerate(pairs) if a != b), None)
            if fork is not None:
                assert one.logprobs[fork] <= best.logprobs[fork] + 1e-5
                compared += 1
    assert compared > 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, pytest.param({"top_p": 1e-6}, marks=pytest.mark.slow)]
)
def test_the_narrowest_choice_is_greedy(vlm, prompts, greedy, narrow):
    found = vlm.generate(prompts, temperature=1.0, max_tokens=LIMIT, seed=3, **narrow)
    assert tokens(found) == [[one.tokens] for one in greedy]


def test_seeds_and_samples_differ_and_a_seed_repeats(vlm, prompts, sampled, hot):
    again = vlm.generate(prompts, n=SAMPLES, max_tokens=LIMIT)
    other = vlm.generate(prompts, n=SAMPLES, max_tokens=LIMIT, seed=1)
    assert_same(again, sampled)
    assert tokens(other) != tokens(sampled)
    assert any(len({tuple(one.tokens) for one in group}) > 1 for group in sampled)
    # at a high temperature nothing repeats at all, a prompt that is given again included
    everything = [tuple(one.tokens) for group in hot for one in group if len(one.tokens) > 3]
    assert len(everything) > 200
    assert len(set(everything)) == len(everything)


# ---------------------------------------------------------------- other prompts of the call


def test_neither_order_nor_other_prompts_change_the_samples(vlm, prompts, sampled):
    order = [2, 0, 3, 1]
    turned = vlm.generate([prompts[i] for i in order], n=SAMPLES, max_tokens=LIMIT)
    assert_same(turned, [sampled[i] for i in order])


@pytest.mark.slow
def test_a_prompt_alone_has_the_same_samples(vlm, prompts, sampled):
    """Alone it is padded less, and its row is the first."""
    alone = vlm.generate(prompts[1:2], n=SAMPLES, max_tokens=LIMIT)
    assert_same(alone, sampled[1:2])


def test_images_of_equal_content_and_other_shape_are_other_prompts(vlm, prompts):
    """Blank images 2 x 1 and 1 x 2 have the same patches and as many tokens."""
    wide, tall = (Image.new("RGB", size, "white") for size in ((112, 56), (56, 112)))
    both = [{"text": prompts[0]["text"], "images": [image]} for image in (wide, tall)]
    rest = prompts[2:3]
    one = vlm.generate([both[1], *rest, *prompts[:1]], n=SAMPLES, max_tokens=LIMIT)
    two = vlm.generate([both[0], *rest, both[1]], n=SAMPLES, max_tokens=LIMIT)
    assert_same(two[2:], one[:1])


# ---------------------------------------------------------------- forms of a prompt


def test_messages_equal_their_rendered_text(vlm, prompts, sampled, tmp_path):
    path = tmp_path / "an image.png"
    prompts[2]["images"][1].save(path)
    first, file = prompts[0]["images"][0], prompts[3]["images"][0]
    contents = [
        [{"type": "image", "image": first}, {"type": "text", "text": "How many?"}],
        "What is 2 + 3?",
        [
            {"type": "image", "image": prompts[2]["images"][0]},
            {"type": "image_url", "image_url": {"url": path.as_uri()}},
            {"type": "text", "text": "Which is larger?"},
        ],
        [{"type": "image", "path": file}, {"type": "text", "text": "What is it?"}],
    ]
    chats = [{"messages": [{"role": "user", "content": content}]} for content in contents]
    assert_same(vlm.generate(chats, n=SAMPLES, max_tokens=LIMIT), sampled)
    responses = [group[0].tokens for group in sampled]
    for one, other in zip(
        vlm.logprobs(chats, responses), vlm.logprobs(prompts, responses), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"text": chat("What?"), "images": [Image.new("RGB", (28, 28))]}, "1 images, but 0"),
        ({"text": chat(f"{IMAGE}What?"), "images": []}, "0 images, but 1"),
        ({"text": chat(f"{IMAGE}What?")}, "0 images, but 1"),
        ({"text": chat("<|video_pad|>What?"), "images": []}, "video is not supported"),
        ({"text": "", "images": []}, "the prompt is empty"),
        ({"text": chat(IMAGE), "images": ["/no/such/image.png"]}, "image.png does not exist"),
        ({"text": chat(IMAGE), "images": ["https://x.org/a.png"]}, "not a local file"),
        ({"text": chat(IMAGE), "images": [BUNDLED / "config.json"]}, "config.json cannot be"),
        ({"text": chat(IMAGE), "images": [b"GIF89a"]}, "cannot be read"),
        ({"text": chat(IMAGE), "images": [Image.new("RGB", (3000, 10))]}, "aspect ratio"),
        ({"question": "What?"}, 'neither "text" nor "messages"'),
        ({"messages": [{"role": "user"}]}, "expected a string or a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "names no image"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "'audio'"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named(vlm, prompts, prompt, message):
    with pytest.raises(InputError, match=message):
        vlm.generate([prompts[1], prompt], max_tokens=1)
    with pytest.raises(InputError, match=message):
        vlm.logprobs([prompts[1], prompt], [[1], [2]])


@pytest.mark.parametrize(
    "prompts",
    [
        ["Read the text and answer."],  # a text instead of {"text": ...}
        {"text": chat("What?"), "images": []},  # one prompt instead of a list of them
        [{"messages": "What?"}],
        [{"messages": ["What?"]}],
        [{"text": None, "images": []}],
        [{"text": chat(IMAGE), "images": Image.new("RGB", (28, 28))}],  # not in a list
        [{"text": chat(IMAGE), "images": [np.zeros((28, 28, 3), np.uint8)]}],
        [{"text": chat(IMAGE), "images": [None]}],
    ],
)
def test_a_prompt_of_a_wrong_type_is_bad_input(vlm, prompts):
    with pytest.raises(InputError):
        vlm.generate(prompts, max_tokens=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("max_tokens", 0),
    ],
)
def test_an_argument_out_of_range_is_named(vlm, prompts, name, value):
    with pytest.raises(InputError, match=f"^generate: {name} must be"):
        vlm.generate(prompts, **{name: value})


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([[1]], "4 prompts, but 1 responses"),
        ([[1], [2], [3], [4], [5]], "4 prompts, but 5 responses"),
        ([[1], [2], [3, 512], [4]], r"response 2 holds a token id outside 0\.\.511"),
        ([[1], [-1], [3], [4]], r"response 1 holds a token id outside 0\.\.511"),
    ],
)
def test_responses_that_do_not_fit_are_named(vlm, prompts, responses, message):
    with pytest.raises(InputError, match=message):
        vlm.logprobs(prompts, responses)


# ---------------------------------------------------------------- loading and saving


def test_the_bundled_name_and_a_path_object_are_the_same_model(vlm):
    for given in ("bundled", BUNDLED):
        other = rlvlm_jax.VLM.from_pretrained(given)
        assert jax.tree.structure(other.params) == jax.tree.structure(vlm.params)
        pairs = zip(jax.tree.leaves(other.params), jax.tree.leaves(vlm.params), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def copy(directory, **changes):
    """The bundled model with other values in config.json."""
    shutil.copytree(BUNDLED, directory)
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(content | changes))
    return directory


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp_path: tmp_path / "missing", "there is no directory .*missing"),
        (lambda tmp_path: tmp_path, "has no config.json"),
        (lambda tmp_path: BUNDLED / "config.json", "is a file, expected a model directory"),
        (lambda tmp_path: copy(tmp_path / "a", model_type="bert"), "bert"),
        (
            lambda tmp_path: copy(tmp_path / "b", image_token_id=509, vision_token_id=510),
            r"image_token_id=509, but its tokenizer gives <\|image_pad\|> the id 510",
        ),
    ],
)
def test_what_is_no_model_is_named(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        rlvlm_jax.VLM.from_pretrained(make(tmp_path))


def test_an_unknown_compute_type_is_named():
    with pytest.raises(InputError, match="'int8' is not one of float32, bfloat16"):
        rlvlm_jax.VLM.from_pretrained(BUNDLED, dtype="int8")


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same_and_records_float32(vlm, prompts, greedy):
    coarse = rlvlm_jax.VLM.from_pretrained(BUNDLED, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(coarse.params)} == {np.dtype(np.float32)}
    responses = [one.tokens for one in greedy]
    fine = np.concatenate(vlm.logprobs(prompts, responses))
    found = np.concatenate(coarse.logprobs(prompts, responses))
    assert found.dtype == np.float32
    assert 0 < np.abs(found - fine).max() < 0.2


def stored(directory):
    """{name: (type, shape, bytes)} of every tensor in a model directory."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                array = file.get_tensor(name)
                found[name] = (str(array.dtype), array.shape, array.tobytes())
    return found


def test_what_is_saved_is_bit_equal_and_loads_again(vlm, tmp_path):
    vlm.save_pretrained(tmp_path / "new" / "model")
    out = tmp_path / "new" / "model"
    source = stored(BUNDLED)
    assert len(source) > 50
    assert stored(out) == source
    for path in BUNDLED.iterdir():
        if path.suffix != ".safetensors":
            assert (out / path.name).read_bytes() == path.read_bytes()
    again = rlvlm_jax.VLM.from_pretrained(out)
    again.save_pretrained(tmp_path / "again")
    assert stored(tmp_path / "again") == source


def test_nothing_is_saved_where_a_model_or_a_file_is(vlm, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for name in ("model", "file", "file/below"):
        with pytest.raises(InputError, match=name):
            vlm.save_pretrained(tmp_path / name)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["file", "model", "model/config.json"]
