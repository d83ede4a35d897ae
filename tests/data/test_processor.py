# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images of all kinds to patches, prompts to arrays, prompts to batches."""

import io
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from data_cases import IMAGE_ID, k12, make_image, media_of, save_image
from PIL import Image

from rlvlm_jax.data.images import ImageError, flatten, image_size, load_pixels
from rlvlm_jax.data.prompts import collate, encode_prompt
from rlvlm_jax.errors import InputError
from rlvlm_jax.models.qwen2_vl.config import CLIP_MEAN, CLIP_STD
from rlvlm_jax.models.qwen2_vl.media import ImageSpec, patch_layout, patchify, resized_size

SPEC = ImageSpec(max_pixels=12_845_056)
ONE = "<|vision_start|><|image_pad|><|vision_end|>"


def noise(width, height, mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "P":
        return image.quantize(16)
    image = image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
    return image


def encoded_bytes(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "limits", "expected"),
    [
        (28, 28, (784, 10**7), (28, 28)),
        (100, 170, (3136, 10**7), (112, 168)),  # 3.57 and 6.07 blocks
        (42, 70, (784, 10**7), (56, 56)),  # 1.5 and 2.5 blocks round to even
        (13, 3, (3136, 10**7), (140, 28)),  # grown by sqrt(3136 / 39) = 8.97: 116.6 and 26.9, up
        (1, 1, (3136, 10**7), (56, 56)),
        (7, 28, (3136, 10**7), (28, 112)),  # grown by 4 exactly
        (1000, 500, (3136, 50_000), (308, 140)),  # shrunk by sqrt(10): 316.2 and 158.1, down
        (2000, 15, (784, 784), (308, 28)),  # shrunk by 6.19; one block is the least
        (2000, 11, (784, 784), (392, 28)),  # 11 rounds to no block, hence too small: scaled up
        (200, 1, (784, 10**7), (420, 28)),
    ],
)
def test_resized_size(width, height, limits, expected):
    spec = ImageSpec(min_pixels=limits[0], max_pixels=limits[1])
    assert resized_size(width, height, spec) == expected
    assert spec.count_tokens(width, height) == expected[0] * expected[1] // 784


@pytest.mark.parametrize(("width", "height"), [(201, 1), (3, 601)])
def test_too_long_images_are_refused(width, height):
    with pytest.raises(ImageError, match="aspect ratio over 200") as caught:
        SPEC.count_tokens(width, height)
    assert caught.value.kind == "image_too_long"


# ---- against transformers -------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(3136, 12_845_056), (3136, 50_176), (200_704, 401_408)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_patches_equal_those_of_transformers(mode, limits):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    theirs = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])
    spec = ImageSpec(min_pixels=limits[0], max_pixels=limits[1])
    for width, height in ((13, 3), (7, 28), (1, 1), (100, 170), (517, 333), (56, 56), (5, 900)):
        image = noise(width, height, mode)
        patches, grid = patchify(load_pixels(image), spec)
        expected = theirs(image, return_tensors="np")
        assert expected["image_grid_thw"].tolist() == [[1, *grid]]
        frames = expected["pixel_values"].reshape(-1, 3, 2, 14 * 14)
        mean, std = (np.reshape(x, (3, 1)) for x in (CLIP_MEAN, CLIP_STD))
        grey = (frames[:, :, 0] * std + mean) * 255.0  # back to the bytes before normalisation
        np.testing.assert_allclose(grey, np.rint(grey), atol=1e-3)
        np.testing.assert_array_equal(np.rint(grey).reshape(patches.shape), patches)
        np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])


# ---- order of patches -----------------------------------------------------------------------


def test_patches_are_in_merge_block_order():
    spec = ImageSpec(patch_size=2, min_pixels=1)
    pixels = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    patches, grid = patchify(Image.fromarray(pixels), spec)
    assert grid == (2, 4)
    coords, _ = patch_layout(2, 4, spec)
    order = [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert coords.tolist() == order
    for patch, (row, column) in zip(patches, order, strict=True):
        block = pixels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert patch.tolist() == block.transpose(2, 0, 1).reshape(-1).tolist()


def test_windows_at_the_edges_are_smaller():
    spec = ImageSpec(patch_size=1, merge_size=2, window_size=4, min_pixels=1)
    coords, window = patch_layout(6, 10, spec)  # windows of 4 x 4 patches: 2 x 3 of them
    for (row, column), number in zip(coords, window, strict=True):
        assert number == (row // 4) * 3 + column // 4
    assert np.bincount(window).tolist() == [16, 16, 8, 8, 8, 4]


def test_without_windows_there_is_one_per_image():
    assert not patch_layout(6, 10, ImageSpec())[1].any()


@pytest.mark.parity
@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (10, 18), (16, 24), (4, 30), (22, 6)])
def test_windows_equal_those_of_transformers(grid):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.vision_utils").get_vision_window_index
    index, ends = theirs(
        torch.tensor([[1, *grid]]), spatial_merge_size=2, window_size=112, patch_size=14
    )
    ends = torch.unique_consecutive(torch.as_tensor(ends)).tolist()
    order = (index[:, None] * 4 + torch.arange(4)).reshape(-1)  # of patches
    _, window = patch_layout(*grid, ImageSpec(window_size=112))
    in_their_order = window[order.numpy()]
    groups = [in_their_order[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    assert all(len(set(group.tolist())) == 1 for group in groups)
    assert len({int(group[0]) for group in groups}) == len(groups) == window.max() + 1


# ---- flattening -----------------------------------------------------------------------------


def black_on_nothing(mode):
    """An image whose left half is black and whose right half is transparent black."""
    alpha = Image.new("L", (4, 2), 255)
    alpha.paste(0, (2, 0, 4, 2))
    if mode == "RGBA":
        image = Image.new("RGB", (4, 2))
        image.putalpha(alpha)
        return image
    if mode == "LA":
        return Image.merge("LA", (Image.new("L", (4, 2)), alpha))
    if mode == "La":
        return black_on_nothing("LA").convert("La")
    if mode == "RGBa":
        return black_on_nothing("RGBA").convert("RGBa")
    if mode == "PA":
        image = Image.new("L", (4, 2)).convert("PA")
        image.putalpha(alpha)
        return image
    image = Image.new({"P-bytes": "P"}.get(mode, mode), (4, 2))
    if mode.startswith("P"):
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.paste(1, (2, 0, 4, 2))
        image.info["transparency"] = bytes([255, 0]) if mode == "P-bytes" else 1
        return image
    image.paste({"RGB": (9, 9, 9), "L": 9}[mode], (2, 0, 4, 2))
    image.info["transparency"] = {"RGB": (9, 9, 9), "L": 9}[mode]
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA", "P", "P-bytes", "RGB", "L"])
def test_transparency_becomes_white(mode):
    pixels = np.asarray(flatten(black_on_nothing(mode)))
    assert pixels.shape == (2, 4, 3)
    assert (pixels[:, :2] == 0).all()
    assert (pixels[:, 2:] == 255).all()


def test_half_transparency_is_blended():
    image = Image.new("RGBA", (1, 1), (0, 100, 200, 51))  # a fifth: 0.2 x + 0.8 * 255
    assert flatten(image).getpixel((0, 0)) == (204, 224, 244)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bit_grey_keeps_its_range(dtype):
    image = Image.fromarray(np.array([[0, 257, 32_896, 65_535]], dtype))
    assert np.asarray(flatten(image))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_without_range_is_stretched_over_its_own(dtype):
    image = Image.fromarray(np.array([[-1000, 0, 1000]], dtype))
    assert np.asarray(flatten(image))[0, :, 1].tolist() == [0, 128, 255]
    even = Image.fromarray(np.zeros((1, 2), dtype))
    assert np.asarray(flatten(even)).tolist() == [[[255] * 3] * 2]


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV"])
def test_other_modes_keep_black_and_white(mode):
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (255, 255, 255))
    assert np.asarray(flatten(image.convert(mode)))[0, :, 0].tolist() == [0, 255]


def test_first_frame_of_an_animation():
    frames = [make_image(28, 28, colour) for colour in ("red", "blue")]
    data = encoded_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_pixels(data).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_and_its_size_known_from_the_header(kind, orientation):
    corner = make_image(64, 32, "black")
    corner.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded_bytes(corner, kind, exif=exif)
    upright = load_pixels(data)
    assert image_size(data) == upright.size == ((32, 64) if orientation > 4 else (64, 32))
    right, bottom = {
        1: (0, 0),
        2: (1, 0),
        3: (1, 1),
        4: (0, 1),
        5: (0, 0),
        6: (1, 0),
        7: (1, 1),
        8: (0, 1),
    }[orientation]
    width, height = upright.size
    assert min(upright.getpixel((right * (width - 1), bottom * (height - 1)))) > 200
    assert max(upright.getpixel(((1 - right) * (width - 1), (1 - bottom) * (height - 1)))) < 50


def test_damaged_exif_does_not_cost_the_image():
    data = encoded_bytes(make_image(), "JPEG", exif=b"Exif\x00\x00garbage")
    assert image_size(data) == load_pixels(data).size == (28, 28)


# ---- sources and defects --------------------------------------------------------------------


def test_sources_are_paths_addresses_bytes_and_open_images(tmp_path):
    path = save_image(tmp_path / "a b.png", 30, 20)
    sources = (
        path,
        str(path),
        f"file://{tmp_path}/a%20b.png",
        path.read_bytes(),
        make_image(30, 20),
    )
    for source in sources:
        assert image_size(source) == (30, 20)
        assert load_pixels(source).getpixel((0, 0)) == (255, 0, 0)
        assert load_pixels(source).getpixel((0, 0)) == (255, 0, 0)  # an image stays usable


def header_only_png(width, height):
    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_header_is_enough_for_the_size():
    assert image_size(header_only_png(1234, 567)) == (1234, 567)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("nowhere.png", "missing_image"),
        ("https://example.org/a.png", "missing_image"),
        (b"", "unreadable_image"),
        (b"this is no image", "unreadable_image"),
        (header_only_png(0, 5), "unreadable_image"),
        (header_only_png(100_000, 100_000), "image_too_large"),  # Pillow refuses
        (header_only_png(10_000, 10_000), "image_too_large"),  # Pillow would only warn
    ],
)
def test_what_cannot_be_opened(source, kind):
    with pytest.raises(ImageError) as caught:
        SPEC.count_tokens(*image_size(source))
    assert caught.value.kind == kind


@pytest.mark.filterwarnings("default")
def test_large_image_is_refused_where_warnings_are_not_errors():
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ImageError, match="at most"):
        image_size(header_only_png(10_000, 10_000))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damaged_bodies_never_raise_anything_else(kind):
    data = bytearray(encoded_bytes(noise(64, 64), kind))
    refused = 0
    rng = np.random.default_rng(0)
    for trial in range(60):
        damaged = bytearray(data)
        if trial % 2:
            damaged = damaged[: rng.integers(1, len(data))]
        else:
            for place in rng.integers(0, len(data), 20):
                damaged[place] = rng.integers(256)
        try:
            patchify(load_pixels(bytes(damaged)), SPEC)
        except ImageError:
            refused += 1
    assert refused


def test_cut_off_file_is_refused():
    data = encoded_bytes(noise(64, 64))
    assert image_size(data[: len(data) // 2]) == (64, 64)
    with pytest.raises(ImageError, match="cannot be decoded") as caught:
        load_pixels(data[: len(data) // 2])
    assert caught.value.kind == "unreadable_image"


# ---- settings -------------------------------------------------------------------------------


def test_spec_of_a_directory(model_dir):
    expected = ImageSpec(min_pixels=784, max_pixels=78_400, window_size=112)
    assert media_of(model_dir) == expected


@pytest.mark.parametrize(
    ("files", "changes"),
    [
        ({}, {}),
        (
            {"preprocessor_config.json": {"size": {"shortest_edge": 784, "longest_edge": 9999}}},
            {"min_pixels": 784, "max_pixels": 9999},
        ),
        (
            {"preprocessor_config.json": {"size": {"min_pixels": 784, "max_pixels": 9999}}},
            {"min_pixels": 784, "max_pixels": 9999},
        ),
        (
            {
                "preprocessor_config.json": {
                    "min_pixels": 784,
                    "size": {"shortest_edge": 1, "longest_edge": 9999},
                }
            },
            {"min_pixels": 784, "max_pixels": 9999},
        ),
        (
            {"processor_config.json": {"image_processor": {"patch_size": 8, "merge_size": 4}}},
            {"patch_size": 8, "merge_size": 4},
        ),
        ({"config.json": {"vision_config": {"patch_size": 8}}}, {"patch_size": 8}),
        ({"config.json": {"model_type": "qwen2_5_vl"}}, {"window_size": 112}),
        (
            {"config.json": {"model_type": "qwen2_5_vl", "vision_config": {"window_size": 56}}},
            {"window_size": 56},
        ),
        ({"config.json": {"model_type": "qwen2_vl", "vision_config": {}}}, {}),
        (
            {"preprocessor_config.json": {"image_mean": [0, 0, 0], "do_resize": True}},
            {},
        ),
    ],
)
def test_spec_of_files(files, changes):
    texts = {name: json.dumps(content) for name, content in files.items()}
    assert ImageSpec.from_files(texts) == replace(ImageSpec(), **changes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("preprocessor_config.json", "{", "not valid JSON"),
        ("preprocessor_config.json", "[]", "expected an object"),
        ("preprocessor_config.json", '{"resample": 2}', "resample=2"),
        ("preprocessor_config.json", '{"do_normalize": false}', "do_normalize"),
        ("preprocessor_config.json", '{"rescale_factor": 1.0}', "rescale_factor"),
        ("preprocessor_config.json", '{"patch_size": "14"}', "patch_size='14'"),
        ("preprocessor_config.json", '{"min_pixels": 9, "max_pixels": 8}', "is above"),
        ("config.json", '{"vision_config": {"patch_size": 16}}', "must agree"),
        (
            "preprocessor_config.json",
            '{"temporal_patch_size": 4}',
            "temporal_patch_size=4, but config.json has vision_config.temporal_patch_size=2",
        ),
    ],
)
def test_spec_refuses(name, content, message):
    files = {
        "preprocessor_config.json": '{"patch_size": 14}',
        "config.json": '{"vision_config": {"temporal_patch_size": 2}}',
    }
    files[name] = content
    with pytest.raises(InputError, match=message):
        ImageSpec.from_files(files)


# ---- prompts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec(model_dir):
    return media_of(model_dir)


def test_encode_prompt_with_two_images(tokenizer, spec):
    images = [make_image(56, 28, "black"), make_image(140, 140, "white")]
    one = encode_prompt(f"a{ONE}b{ONE}", images, tokenizer, spec)
    start, end = tokenizer.token_id("<|vision_start|>"), tokenizer.token_id("<|vision_end|>")
    expected = [97, start, *[IMAGE_ID] * 2, end, 98, start, *[IMAGE_ID] * 25, end]
    assert one.tokens.tolist() == expected
    assert one.positions[:, [0, 2, 3, 4, 6, 7, 31, 32]].tolist() == [
        [0, 2, 2, 4, 6, 7, 7, 12],
        [0, 2, 2, 4, 6, 7, 11, 12],
        [0, 2, 3, 4, 6, 7, 11, 12],
    ]
    assert one.media.image.tolist() == [1] * 8 + [2] * 100
    assert sorted(set(one.media.window.tolist())) == [1, 2, 3, 4, 5]  # one, then 2 x 2
    assert one.media.window[:8].tolist() == [1] * 8
    assert one.media.pixels.shape == (108, 588)
    assert one.media.pixels[:8].max() == 0
    assert one.media.pixels[8:].min() == 255
    assert one.media.coords[:8].tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3],
    ]  # fmt: skip
    assert [one.tokens.dtype, one.media.pixels.dtype, one.media.window.dtype] == [
        np.int32,
        np.uint8,
        np.int32,
    ]


def test_encode_prompt_without_images(tokenizer, spec):
    one = encode_prompt("ab", [], tokenizer, spec)
    assert one.tokens.tolist() == [97, 98]
    assert one.media.pixels.shape == (0, 588)
    assert one.media.coords.shape == (0, 2)


def test_without_windows_the_window_is_the_image(tokenizer, spec):
    images = [make_image(), make_image(280, 280)]
    one = encode_prompt(ONE + ONE, images, tokenizer, replace(spec, window_size=0))
    np.testing.assert_array_equal(one.media.window, one.media.image)


@pytest.mark.parametrize(("text", "images"), [("a", 1), (ONE, 0), (ONE * 2, 1), (ONE, 2)])
def test_images_and_placeholders_must_agree(tokenizer, spec, text, images):
    message = f"item 7: {images} images, but {text.count(ONE)} "
    with pytest.raises(InputError, match=message):
        encode_prompt(text, [make_image()] * images, tokenizer, spec, "item 7")


def test_video_and_empty_prompt_are_refused(tokenizer, spec):
    with pytest.raises(InputError, match="video"):
        encode_prompt("a<|video_pad|>", [], tokenizer, spec)
    with pytest.raises(InputError, match="empty"):
        encode_prompt("", [], tokenizer, spec)


def test_vision_tokens(tokenizer):
    names = (SPEC.image_token, *SPEC.reserved_tokens, SPEC.video_token)
    assert list(map(tokenizer.token_id, names)) == [262, 259, 260, 261, 263]


def test_collate_pads_tokens_left_and_patches_right(tokenizer, spec):
    with_image = encode_prompt(f"a{ONE}", [make_image()], tokenizer, spec)
    plain = encode_prompt("abc", [], tokenizer, spec)
    batch = collate([with_image, plain, None], 6, 8, 77, spec)
    assert batch.tokens.tolist() == [
        [77, 77, 97, 259, 262, 260],
        [77, 77, 77, 97, 98, 99],
        [77] * 6,
    ]
    assert batch.mask.sum(axis=1).tolist() == [4, 3, 0]
    assert (batch.mask == (batch.tokens != 77)).all()
    assert batch.positions[0].tolist() == [[0, 0, 0, 1, 2, 3]] * 3
    assert batch.media.image.tolist() == [[1] * 4 + [0] * 4, [0] * 8, [0] * 8]
    assert batch.media.window.tolist() == batch.media.image.tolist()
    np.testing.assert_array_equal(batch.media.pixels[0, :4], with_image.media.pixels)
    assert not batch.media.pixels[0, 4:].any()
    assert not batch.media.pixels[1:].any()
    assert batch.media.coords[0, :4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert [x.dtype for x in (*batch[:3], *batch.media)] == [
        np.int32,
        bool,
        np.int32,
        np.uint8,
        *[np.int32] * 3,
    ]
    assert [x.shape[0] for x in (*batch[:3], *batch.media)] == [3] * 7


@pytest.mark.parametrize(("p", "i"), [(3, 8), (6, 3)])
def test_collate_refuses_what_does_not_fit(tokenizer, spec, p, i):
    one = encode_prompt(f"a{ONE}", [make_image()], tokenizer, spec)
    with pytest.raises(ValueError, match="does not fit"):
        collate([one], p, i, 0, spec)


def test_an_encoded_prompt_is_as_small_as_its_pixels(tokenizer, spec):
    one = encode_prompt(ONE, [make_image(280, 280)], tokenizer, spec)
    pixels, *others = one.media
    extra = sum(array.nbytes for array in (one.tokens, one.positions, *others))
    assert pixels.nbytes == 280 * 280 * 3
    assert extra < pixels.nbytes / 20


# ---- real images --------------------------------------------------------------------------


def k12_rows(folder):
    return map(json.loads, (folder / "k12.jsonl").read_text(encoding="utf-8").splitlines())


def test_token_counts_of_real_images_from_headers():
    folder = k12()
    shapes = [image_size(folder / row["image"]) for row in k12_rows(folder)]
    assert len(shapes) == 298

    def counts(limit):
        spec = ImageSpec(max_pixels=limit)
        return [spec.count_tokens(*shape) for shape in shapes]

    default = counts(12_845_056)
    assert (min(default), int(np.median(default)), max(default)) == (4, 35, 3302)
    assert round(np.mean(default)) == 241
    assert max(counts(1_003_520)) == 1264
    assert max(counts(501_760)) == 630


@pytest.mark.slow
def test_every_real_image_becomes_patches():
    folder = k12()
    spec = ImageSpec(max_pixels=501_760)
    uniform = 0
    for row in k12_rows(folder):
        path = folder / row["image"]
        patches, (rows, columns) = patchify(load_pixels(path), spec)
        assert patches.shape == (rows * columns, 588)
        assert rows * columns == 4 * spec.count_tokens(*image_size(path))
        uniform += patches.min() == patches.max()
    assert uniform == 0  # dropping transparency would leave five images black
