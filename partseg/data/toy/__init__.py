"""A synthetic Pascal-Part-116: `python -m partseg.data.toy` draws it and writes it in the real set's layout."""
