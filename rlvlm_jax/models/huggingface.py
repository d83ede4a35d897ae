# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Converts weights between a Hugging Face directory and our parameter tree.

One table of names serves both directions. Reading fills each parameter exactly once and uses each
tensor exactly once, or reports which do not fit. Writing produces what transformers and vLLM load.
Neither direction needs memory beyond the parameters and one more tensor. This module needs NumPy
only. It knows nothing about devices (`load_hf` passes each parameter to its caller) or tokenizers
(their files are copied as text).
"""

import itertools
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rlvlm_jax.errors import InputError
from rlvlm_jax.models.common.hf_config import Fields
from rlvlm_jax.models.common.weights import Rule, WeightTable
from rlvlm_jax.models.families import FAMILIES
from rlvlm_jax.models.model import Config
from rlvlm_jax.types import Params

# The files of a model directory besides the weights; all are copied unread, as text.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in a safetensors header


def hf_table(config: Config) -> tuple[Rule, ...]:
    """Returns the table of a model, with each of its tensors and parameters exactly once."""
    return FAMILIES[config.family].weights(config).rules


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters by path; reads no weights."""
    return {rule.path: rule.our_shape for rule in hf_table(config)}


def resolve(path_or_repo: str | os.PathLike) -> Path:
    """Finds a model: a local directory, or a repository on the Hugging Face hub.

    Args:
        path_or_repo: A directory, or "owner/name", which is downloaded into the hub's cache if it
            is not there already.

    Returns:
        The local directory.

    Raises:
        InputError: if it is neither.
    """
    path = Path(path_or_repo).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{path_or_repo} is a file, expected a model directory")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(path_or_repo)):
        raise InputError(
            f"there is no directory {path_or_repo}, and it is not a hub repository (owner/name)"
        )
    import huggingface_hub  # here, because it is slower to import than the rest of the package
    from huggingface_hub.errors import HfHubHTTPError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(str(path_or_repo), allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path_or_repo} is neither a local directory nor a repository that can be downloaded "
            f"from the Hugging Face hub ({reason}); give the path of a directory"
        ) from error


def read_side_files(directory: str | os.PathLike) -> dict[str, str]:
    """Reads configuration, tokenizer and processor files of a model directory.

    Returns:
        {name: text} of those in `SIDE_FILES` that exist, with line ends unchanged.

    Raises:
        InputError: if there is no config.json, or a file is not UTF-8.
    """
    files = {}
    for path in (Path(directory, name) for name in SIDE_FILES):
        if not path.is_file():
            continue
        try:
            files[path.name] = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text: {error}") from error
    if "config.json" not in files:
        raise InputError(f"{directory} has no config.json, which a model directory must have")
    return files


def read_config(files: Mapping[str, str]) -> Config:
    """Returns the model's configuration from the result of `read_side_files`.

    Raises:
        InputError: if config.json or preprocessor_config.json is not JSON, or not supported.
    """
    names = ("config.json", "preprocessor_config.json")
    config, pixels = (_parse(name, files[name]) if name in files else None for name in names)
    fields = Fields(config)
    model_type = fields.get("model_type")
    if model_type not in tuple(FAMILIES):
        fields.refuse("model_type", " or ".join(map(repr, FAMILIES)))
    return FAMILIES[model_type].read_config(config, pixels)


Read = Callable[[tuple[slice, ...]], np.ndarray]  # slices of a parameter -> float32 values


def _keep(path: str, shape: tuple[int, ...], read: Read) -> np.ndarray:
    return read(tuple(slice(size) for size in shape))


def load_hf(
    directory: str | os.PathLike,
    config: Config,
    *,
    place: Callable[[str, tuple[int, ...], Read], Any] = _keep,
) -> tuple[Params, dict[str, str]]:
    """Reads the weights of a Hugging Face directory, one parameter at a time.

    Args:
        directory: Holds model.safetensors, or shards with their index; float32, float16 or
            bfloat16; names of either generation.
        config: The sizes that the weights must have.
        place: `place(path, shape, read)` returns what to store for the parameter, for example the
            array on its devices. `read` takes one slice per dimension and reads only that part of
            the files, so no host needs more than its devices hold. The default stores whole NumPy
            arrays.

    Returns:
        (params, dtypes): the parameters as a nested dict, and the stored dtype of each tensor,
        {Hugging Face name of the first generation: "float32" | "float16" | "bfloat16"}. With it,
        `save_hf` writes the same bits.

    Raises:
        InputError: if a file is missing or damaged, or if tensors are missing, unexpected, stored
            twice, of the wrong shape or type, or not finite.
    """
    weights = FAMILIES[config.family].weights(config)
    table = weights.rules
    stored = _open_all(Path(directory), weights)
    if weights.tied and weights.tied[0] in stored:
        _drop_tied_head(stored, *weights.tied)
    _check_fit(directory, stored, table)
    dtypes = {name: stored[name].dtype for rule in table for name in rule.names()}
    params: Params = {}
    for rule in table:
        *levels, last = rule.path.split("/")
        level = params
        for key in levels:
            level = level.setdefault(key, {})
        level[last] = place(rule.path, rule.our_shape, partial(_read_part, rule, stored))
    return params, dtypes


class _Stored(NamedTuple):
    """Location of a tensor, from the header of its file."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str


def _parse(name: str | Path, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # bad JSON, or bytes that are not text
        raise InputError(f"{name} is not valid JSON: {error}") from error


def _first_few(items: list[str], limit: int = 3) -> str:
    """Lists the first few items and says how many more there are."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


def _shards(directory: Path) -> dict[Path, set[str] | None]:
    """Returns the weight files, each with its tensor names from the index (None: no index)."""
    single, index = directory / WEIGHTS, directory / INDEX
    if single.is_file() and index.is_file():
        raise InputError(
            f"{directory} holds both {WEIGHTS} and {INDEX}; remove the one that is out of date"
        )
    if single.is_file():
        return {single: None}
    if not index.is_file():
        others = sorted(p.name for p in directory.glob("*.bin")) if directory.is_dir() else []
        hint = f" (found {_first_few(others)}: save it again as safetensors)" if others else ""
        raise InputError(f"{directory} holds neither {WEIGHTS} nor {INDEX}{hint}")
    content = _parse(index, index.read_bytes())
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map from tensor names to files")
    expected: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{index} puts {name} into {file!r}, expected a file next to it")
        expected.setdefault(directory / file, set()).add(name)
    missing = sorted(path.name for path in expected if not path.is_file())
    if missing:
        raise InputError(f"{index} names files that do not exist: {_first_few(missing)}")
    return dict(sorted(expected.items()))


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is truncated or damaged and cannot be read as safetensors ({error}); fetch it "
            "again"
        ) from error


def _open_all(directory: Path, weights: WeightTable) -> dict[str, _Stored]:
    """Reads the headers; returns every tensor of the directory by its first-generation name."""
    names = {code: dtype for dtype, code in CODES.items()}
    stored: dict[str, _Stored] = {}
    unsupported = []
    for file, expected in _shards(directory).items():
        with _open(file) as shard:
            present = set(shard.keys())
            if expected is not None and present != expected:
                absent, extra = sorted(expected - present), sorted(present - expected)
                raise InputError(
                    f"{file} and {INDEX} disagree:"
                    + (f" {_first_few(absent)} not in the file" if absent else "")
                    + (" and" if absent and extra else "")
                    + (f" {_first_few(extra)} not in the index" if extra else "")
                )
            for name in sorted(present):
                ours = name
                for new, old in weights.renamed:
                    if name.startswith(new):
                        ours = old + name.removeprefix(new)
                if re.search(weights.derived, ours):
                    continue
                header = shard.get_slice(name)
                code = header.get_dtype()
                if ours in stored:
                    raise InputError(
                        f"{directory} holds the tensor {ours} twice: as {stored[ours].name} in "
                        f"{stored[ours].file.name} and as {name} in {file.name}"
                    )
                if code not in names:
                    unsupported.append(f"{name} ({code})")
                stored[ours] = _Stored(file, name, tuple(header.get_shape()), names.get(code, ""))
    if unsupported:
        raise InputError(
            f"{directory} holds tensors that are not {', '.join(CODES)}: "
            f"{_first_few(unsupported)}; quantised weights are not supported"
        )
    return stored


def _drop_tied_head(stored: dict[str, _Stored], head_name: str, embedding_name: str):
    """Drops a head that equals the embedding; refuses one that differs, as it would be lost."""
    head, embedding = stored.pop(head_name), stored.get(embedding_name)
    if embedding is None:
        return  # reported later with all missing tensors
    with _open(head.file) as head_file, _open(embedding.file) as embedding_file:
        if not np.array_equal(
            head_file.get_tensor(head.name), embedding_file.get_tensor(embedding.name)
        ):
            raise InputError(
                f"config.json says tie_word_embeddings, but {head.name} in {head.file} differs "
                f"from {embedding.name}; set tie_word_embeddings to false to keep both"
            )


def _check_fit(directory: str | os.PathLike, stored: dict[str, _Stored], table: tuple[Rule, ...]):
    expected = {name: rule.shape for rule in table for name in rule.names()}
    missing = [name for name in expected if name not in stored]
    unexpected = [entry.name for name, entry in stored.items() if name not in expected]
    misshapen = [
        f"{entry.name} has shape {list(entry.shape)}, expected {list(expected[name])}"
        for name, entry in stored.items()
        if name in expected and entry.shape != expected[name]
    ]
    complaints = [
        f"{label} {_first_few(items)}"
        for label, items in (
            ("missing:", missing),
            ("unexpected:", unexpected),
            ("misshapen:", misshapen),
        )
        if items
    ]
    if complaints:
        raise InputError(
            f"the weights in {directory} do not fit its config.json: {'; '.join(complaints)}"
        )


def _read_part(rule: Rule, stored: dict[str, _Stored], index: tuple[slice, ...]) -> np.ndarray:
    """Reads a part of one parameter, file by file, each tensor straight into its layer."""
    starts_and_ends = [s.indices(size)[:2] for s, size in zip(index, rule.our_shape, strict=True)]
    array = np.empty([end - start for start, end in starts_and_ends], np.float32)
    names, targets, inner = rule.names(), [array], index
    if rule.layers is not None:
        names, targets, inner = names[index[0]], array, index[1:]
    pairs = sorted(zip(names, targets, strict=True), key=lambda pair: stored[pair[0]].file)
    for file, group in itertools.groupby(pairs, key=lambda pair: stored[pair[0]].file):
        # Reopened for each parameter: closing releases the pages of the file.
        with _open(file) as shard:
            for name, target in group:
                source = shard.get_slice(stored[name].name)
                if len(rule.shape) == len(inner):
                    target[...] = source[inner]
                else:  # the patch projection: we flatten all axes but the first
                    rows = source[inner[0]]
                    target[...] = rows.reshape(len(rows), -1)[:, inner[1]]
                if not (np.isfinite(target.min()) and np.isfinite(target.max())):
                    raise InputError(
                        f"{stored[name].name} in {file} has values that are not finite"
                    )
    return array


def save_hf(
    params: Params,
    directory: str | os.PathLike,
    *,
    files: Mapping[str, str],
    dtypes: str | Mapping[str, str],
    max_shard_bytes: int = 5_000_000_000,
):
    """Writes a directory that transformers and vLLM load, completely or not at all.

    Tensors are fetched, converted and written one at a time, under names of the first generation,
    which every version of both libraries reads. A tied head is not written.

    Args:
        params: The parameter tree; leaves are NumPy or JAX arrays whose layers can be indexed.
        directory: Created, with its parents; must not hold a model already.
        files: {name: text} of the files next to the weights, from `read_side_files`. Its
            config.json decides what is written. The weight dtype in it is changed only if no tensor
            has that dtype.
        dtypes: One of "float32", "float16", "bfloat16" for all tensors, or the dict that `load_hf`
            returned.
        max_shard_bytes: A file is full when the next tensor would exceed this.

    Raises:
        InputError: if the directory holds a model, the parameters do not fit config.json, or a
            value is not finite in the dtype it is written in.
    """
    target = Path(directory).expanduser().resolve()
    _check_target(target)
    config = read_config(files)
    leaves = dict(_flatten(params))
    _check_parameters(leaves, config)
    tensors = [
        _Planned(name, rule, layer, dtypes if isinstance(dtypes, str) else dtypes.get(name, ""))
        for name, rule, layer in _in_order(hf_table(config))
    ]
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise InputError(
                f"cannot write {tensor.name} as {tensor.dtype!r}, expected one of "
                + ", ".join(DTYPES)
            )
    files = dict(files)
    files["config.json"] = _state_dtype(files["config.json"], tensors)

    staging = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}); name another") from error
    try:
        for name, text in files.items():
            (staging / name).write_bytes(text.encode())
        _write_weights(staging, _split(tensors, max_shard_bytes), leaves)
        _publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def lossless_dtypes(params: Params, files: Mapping[str, str]) -> dict[str, str]:
    """Returns, for `save_hf`, a dtype for each tensor that stores its values exactly.

    It is the dtype that config.json states if that is exact, else float32. A model loaded from
    bfloat16 and not trained keeps the same bits; a trained one loses none.

    Args:
        params: The parameter tree, float32.
        files: {name: text}; only config.json is read.
    """
    content = _parse("config.json", files["config.json"])
    parts = [content, content.get("text_config") or {}]
    stated = [part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]
    stated_dtype = stated[0] if stated and stated[0] in DTYPES else "float32"
    leaves = dict(_flatten(params))
    dtypes = {}
    for name, rule, layer in _in_order(hf_table(read_config(files))):
        leaf = leaves[rule.path]
        value = np.asarray(leaf if layer is None else leaf[layer])
        with np.errstate(over="ignore"):
            exact = np.array_equal(value.astype(DTYPES[stated_dtype]).astype(np.float32), value)
        dtypes[name] = stated_dtype if exact else "float32"
    return dtypes


class _Planned(NamedTuple):
    """A tensor to be written."""

    name: str
    rule: Rule
    layer: int | None
    dtype: str

    @property
    def itemsize(self) -> int:
        return np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.rule.shape) * self.itemsize

    def fetch(self, leaves: Mapping[str, Any]) -> np.ndarray:
        """Returns the tensor in Hugging Face's shape and the dtype to write."""
        leaf = leaves[self.rule.path]
        value = np.asarray(leaf if self.layer is None else leaf[self.layer])
        value = value.reshape(self.rule.shape)
        with np.errstate(over="ignore"):  # float16 may overflow, which is reported below
            value = value.astype(DTYPES[self.dtype])
        if not np.isfinite(value).all():
            raise InputError(f"{self.name} is not finite as {self.dtype}, nothing was written")
        return value


def _check_target(target: Path):
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, expected a directory to write the model to")
    present = [
        path.name
        for pattern in ("config.json", "*.safetensors", "*.safetensors.index.json")
        for path in sorted(target.glob(pattern))
    ]
    if present:
        raise InputError(
            f"{target} already holds a model ({_first_few(present)}); give a new directory or "
            "remove it"
        )


def _check_parameters(leaves: Mapping[str, Any], config: Config):
    expected = param_shapes(config)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    wrong = sorted(
        f"{path} is {shapes.get(path, 'missing')}, expected {expected.get(path, 'none')}"
        for path in expected.keys() | shapes.keys()
        if expected.get(path) != shapes.get(path)
    )
    if wrong:
        raise InputError(f"the parameters do not fit config.json: {_first_few(wrong)}")


def _flatten(tree: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _in_order(table: tuple[Rule, ...]) -> Iterator[tuple[str, Rule, int | None]]:
    """Yields all tensors layer by layer, so that shards hold whole layers as far as they fit."""
    for layers, group in itertools.groupby(table, key=lambda rule: rule.layers):
        rules = list(group)
        for layer in range(layers) if layers is not None else [None]:
            for rule in rules:
                yield rule.name.format(l=layer), rule, layer


def _state_dtype(text: str, tensors: list[_Planned]) -> str:
    """Makes config.json state a dtype that the weights have; leaves a correct file unchanged."""
    content = _parse("config.json", text)
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += math.prod(tensor.rule.shape)
    [(most_common, _)] = counts.most_common(1)
    parts = [content, content.get("text_config") or {}, content.get("vision_config") or {}]
    stated = [(part, key) for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]
    if any(key in content for _, key in stated) and all(
        part[key] in counts for part, key in stated
    ):
        return text
    for part, key in stated or [(content, "torch_dtype")]:
        part[key] = most_common
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _split(tensors: list[_Planned], max_shard_bytes: int) -> list[list[_Planned]]:
    """Splits the tensors into files; a tensor over the limit gets its own file."""
    shards: list[list[_Planned]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def _write_weights(directory: Path, shards: list[list[_Planned]], leaves: Mapping[str, Any]):
    if len(shards) == 1:
        _write_shard(directory / WEIGHTS, shards[0], leaves)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / name, shard, leaves)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(path: Path, tensors: list[_Planned], leaves: Mapping[str, Any]):
    """Writes one safetensors file, one tensor at a time.

    The library's own writer needs all tensors of a file in memory. The format is eight bytes with
    the length of a JSON header, the header, and the tensors in the order of their offsets.

    Source: https://github.com/huggingface/safetensors, section "Format" of its README.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.itemsize)  # keeps every offset aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype],
            "shape": tensor.rule.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.fetch(leaves).tobytes())


def _publish(staging: Path, target: Path):
    """Moves the finished directory to its target; into an existing one, config.json last."""
    if not target.exists() or not any(target.iterdir()):
        staging.replace(target)
        return
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(target / path.name)
