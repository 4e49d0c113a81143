"""Weights from files and hubs into systems and back, a report of what was loaded, and which parameters train."""
