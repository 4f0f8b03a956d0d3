"""Folders of models as other servers lay them out, read as versions to be added."""

from modelport.catalog.download import SourceError
from modelport.catalog.imports.folder import Found, read_folder

__all__ = ["Found", "SourceError", "read_folder"]
