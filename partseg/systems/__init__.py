"""One folder per system, named and written after its paper; nothing outside a folder names it."""
