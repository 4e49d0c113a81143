"""CAT-Seg's parts by themselves: windows, class attention, chunks, variants, and what is refused."""
