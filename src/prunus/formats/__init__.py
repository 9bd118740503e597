"""What leaves the house: artifacts, programs, ONNX, folders for `from_pretrained`."""

from prunus.formats.artifact import load, load_masks, save
from prunus.formats.int8 import export_onnx_int8
from prunus.formats.onnx import export_onnx, export_program
from prunus.formats.pretrained import save_pretrained
from prunus.formats.registry import EXPORTERS, Exportable, Exported, exporter

__all__ = [
    "EXPORTERS",
    "Exportable",
    "Exported",
    "export_onnx",
    "export_onnx_int8",
    "export_program",
    "exporter",
    "load",
    "load_masks",
    "save",
    "save_pretrained",
]
