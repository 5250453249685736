"""The teacher's targets on disk: computed once, for every student that is trained after it."""

from attention_transfer.cache.building import build, check_room_for_rest
from attention_transfer.cache.commands import build_cache, target_source
from attention_transfer.cache.contents import Contents, weights_fingerprint
from attention_transfer.cache.source import TargetSource, recommended_points
from attention_transfer.cache.store import TargetCache, free_bytes, remove_cache

__all__ = [
    "Contents",
    "TargetCache",
    "TargetSource",
    "build",
    "build_cache",
    "check_room_for_rest",
    "free_bytes",
    "recommended_points",
    "remove_cache",
    "target_source",
    "weights_fingerprint",
]
