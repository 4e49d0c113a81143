"""Tables of the paper: which runs they need, what is finished, and how the numbers are laid side by side."""
