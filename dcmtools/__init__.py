"""DICOM from PACS to NIfTI in shell pipelines: records in, records out, one JSON object a line."""

__version__ = "0.1.0"
