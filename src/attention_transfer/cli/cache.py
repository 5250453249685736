"""build, describe, verify or remove a cache of teacher targets on disk"""

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import CacheConfig
from attention_transfer.errors import InputError, nearest
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

if TYPE_CHECKING:
    from attention_transfer.cache import Contents

EXAMPLES = (
    "cache build caches/teacher --teacher runs/teacher --views 15",
    "cache info caches/teacher --teacher runs/teacher --views 200 --gradient",
    "cache verify caches/teacher",
    "cache remove caches/teacher",
)

ACTIONS = ("build", "info", "verify", "remove")


def add_arguments(parser: Parser) -> None:
    """Add the action, the cache's folder and the flags of a new cache to the parser."""
    parser.add_argument(
        "action",
        metavar="|".join(ACTIONS),
        nargs="?",
        help="build, describe, check or delete the cache",
    )
    parser.add_config(CacheConfig, positional=("cache",))


def run(arguments: Namespace) -> int:
    """Build, describe, verify or remove a cache."""
    action = vars(arguments).pop("action", None)
    if action is None:
        raise InputError(f"cache needs an action: {', '.join(ACTIONS)}")
    if action not in ACTIONS:
        raise InputError(f"cache has no action {action!r}; {nearest(str(action), ACTIONS)}")
    if "cache" not in arguments and "config" not in arguments:
        raise InputError(f"cache {action} needs the cache's folder, such as caches/teacher")
    settings = set(vars(arguments)) - {"cache", "json"}
    if action == "build" or (action == "info" and settings):
        config = config_from(arguments, CacheConfig)
        loading("torch", "PyTorch")
        return (
            _build(config, arguments.json) if action == "build" else _plan(config, arguments.json)
        )
    if settings:
        raise InputError(
            f"cache {action} takes only the cache's folder, got --{min(settings).replace('_', '-')}"
        )
    loading("torch", "PyTorch")
    return {"info": _info, "verify": _verify, "remove": _remove}[action](
        Path(arguments.cache), arguments.json
    )


def _build(config: CacheConfig, as_json: bool) -> int:
    from attention_transfer.cache import build_cache

    where = console(as_json)
    began = time.perf_counter()
    cache = build_cache(
        config, lambda finished, total: print_line(where, f"{finished} of {total} shards")
    )
    seconds = time.perf_counter() - began
    if as_json:
        print_json({**_figures(cache.contents, cache.folder), "missing": 0, "seconds": seconds})
        return 0
    print_line(
        where, f"the cache in {cache.folder} is whole, {_size(cache.contents)}; {seconds:.0f} s"
    )
    return 0


def _plan(config: CacheConfig, as_json: bool) -> int:
    from attention_transfer.cache import free_bytes, target_source

    contents = target_source(config).contents
    figures = {**_figures(contents, config.cache), "free_bytes": free_bytes(config.cache)}
    return _print_figures(figures, as_json)


def _info(folder: Path, as_json: bool) -> int:
    from attention_transfer.cache import TargetCache

    cache = TargetCache.open(folder)
    missing = len(cache.missing())
    return _print_figures({**_figures(cache.contents, folder), "missing": missing}, as_json)


def _verify(folder: Path, as_json: bool) -> int:
    from attention_transfer.cache import TargetCache

    cache = TargetCache.open(folder)
    faults = {str(path): fault for path, fault in cache.damaged()}
    if as_json:
        print_json({"folder": str(folder), "shards": cache.contents.shard_count, "faults": faults})
        return 1 if faults else 0
    where = console(False)
    for path, fault in faults.items():
        print_line(where, f"{path} {fault}")
    if faults:
        print_line(where, "delete the damaged files, and run attention-transfer cache build again")
        return 1
    print_line(where, f"all {cache.contents.shard_count} shards are whole")
    return 0


def _remove(folder: Path, as_json: bool) -> int:
    from attention_transfer.cache import remove_cache

    freed = remove_cache(folder)
    if as_json:
        print_json({"folder": str(folder), "freed_bytes": freed})
    else:
        print_line(console(False), f"removed the cache in {folder}, {freed / 1e6:.1f} MB")
    return 0


def _print_figures(figures: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print_json(figures)
        return 0
    provenance = figures.pop("provenance")
    rows = [[name.replace("_", " "), _text(value)] for name, value in figures.items()]
    sources = [[name, str(value)] for name, value in provenance.items()]
    where = console(False)
    print_table(where, ["cache", ""], rows)
    print_table(where, ["computed from", ""], sources)
    return 0


def _figures(contents: "Contents", folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "views": contents.views,
        "samples": contents.samples,
        "maps": [str(target) for target in contents.spec.fields],
        "logits": contents.spec.logits,
        "gradient": contents.spec.gradient,
        "bytes_a_row": contents.row.itemsize,
        "bytes": contents.bytes,
        "shards": contents.shard_count,
        "provenance": dict(contents.provenance),
    }


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _size(contents: "Contents") -> str:
    return (
        f"{contents.views} views x {contents.samples} samples x {contents.row.itemsize} bytes = "
        f"{contents.bytes / 1e6:.1f} MB"
    )
