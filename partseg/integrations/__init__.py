"""Optional bridges to other frameworks; nothing in the core imports them."""
