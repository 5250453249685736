"""From a finished run to files that other software runs: ONNX, torch.export, int8, a model card."""

from attention_transfer.export.command import ExportResult, export_run

__all__ = ["ExportResult", "export_run"]
