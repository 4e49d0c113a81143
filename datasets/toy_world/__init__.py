"""A synthetic Pascal-Part-116: datasets/draw_toy.py draws it and writes it in the real set's layout."""
