"""Speed benchmarks: ratios measured side by side on one machine, as one JSON document each."""

from attention_transfer.benchmark.command import measure
from attention_transfer.benchmark.document import Case, Document
from attention_transfer.benchmark.figures import Spread

__all__ = ["Case", "Document", "Spread", "measure"]
