"""From a run to a folder that Hugging Face transformers loads: `export_run`. See the README of the folder that it
writes."""

from intern_trainer.export.run import ExportReport, export_run

__all__ = ["ExportReport", "export_run"]
