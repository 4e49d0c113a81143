"""Prompt templates and vocabulary to text features."""
