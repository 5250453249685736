"""How fast it is, as ratios measured side by side on one machine: one JSON document a question."""

from attention_transfer.benchmark.command import measure
from attention_transfer.benchmark.document import Case, Document
from attention_transfer.benchmark.figures import Spread

__all__ = ["Case", "Document", "Spread", "measure"]
