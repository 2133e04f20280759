"""Models whose blocks differ in width: the code that is shipped with them, and what names it."""
