"""How values pass between steps: JSON text and handles to stored directories, never pickle.

Importing this package registers the materializers for the types they serve.
"""

from materializers.handle import HandleMaterializer
from materializers.json_value import JsonValueMaterializer

__all__ = ["HandleMaterializer", "JsonValueMaterializer"]
